package accept

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// Taken is nil where nobody listens at the Unix socket that path names, which may be removed then. Only a refusal says so: one that
// hangs takes no more connections when its queue is full.
func Taken(path string) error {
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = conn.Close()
		return errors.New("another process answers there; ss -lxp shows which, stop it first")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil
	}
	return fmt.Errorf("another process may have it and takes no connection; ss -lxp shows which, stop it first: %w", err)
}
