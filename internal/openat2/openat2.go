// Package openat2 opens paths below a folder in a way that another's renames do not fail.
package openat2

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel cannot tell whether a ".." stays in the folder while anything on the host is renamed or mounted, and says EAGAIN
// (openat2(2)). A busy host does that all the time, but a try takes microseconds.
const (
	tries = 1000
	quick = 100 // tries without a pause
)

// Open is openat2, close-on-exec, tried again while it is interrupted or the host is being changed.
func Open(dir int, path string, how *unix.OpenHow) (fd int, err error) {
	for try := range tries {
		again := *how
		again.Flags |= unix.O_CLOEXEC
		fd, err = unix.Openat2(dir, path, &again)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
		if try >= quick {
			time.Sleep(time.Millisecond)
		}
	}
	return fd, err
}
