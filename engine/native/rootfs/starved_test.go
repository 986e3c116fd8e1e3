package rootfs

import (
	"testing"

	"golang.org/x/sys/unix"

	"crishim/internal/process"
	"crishim/internal/starving"
)

// A container that is made while the daemon has no descriptor would have the wrong HOME for its whole life.
//
// Rows: R49 (part)
func TestHomeIsNotGuessedForWantOfDescriptors(t *testing.T) {
	root := layer(t, map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh"})
	var home string
	var err error
	starving.Opening(t, unix.O_CLOEXEC, unix.O_PATH, func() { home, err = Home(root, 0) }) // the file itself
	if !process.Starved(err) {
		t.Errorf("it is %q, %v", home, err)
	}
	if home, err = Home(root, 0); home != "/root" || err != nil {
		t.Errorf("it is %q, %v", home, err)
	}
}
