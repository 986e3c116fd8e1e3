package process

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// Starved says that an error is of the one who asked: this process had no descriptor or memory of the kernel left. It tells nothing
// of what was asked for, least of all that it is gone. EAGAIN is not among them: a connection ends with it where the other side
// takes none any more.
func Starved(err error) bool {
	return slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS}, func(limit error) bool { return errors.Is(err, limit) })
}
