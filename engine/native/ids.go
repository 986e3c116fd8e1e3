package native

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// newID is 64 hexadecimal digits, as Docker's and containerd's ids are.
func newID() string {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(random)
}

// removeTree removes a folder of our own, in which nothing is mounted.
func removeTree(path string) error {
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// isHangup is how a terminal's master says that its other end was closed.
func isHangup(err error) bool { return errors.Is(err, unix.EIO) }
