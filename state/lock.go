package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lockWait is how long a starting daemon waits for one that is ending.
const lockWait = time.Second

// locks are what keeps other daemons away until it is closed.
type locks []*os.File

// lock takes both directories for this process; the kernel gives them back however the process ends. The run directory by
// itself, too: the engine's pods, their namespaces and the daemon's own sockets are in it, whatever the root directory is.
func lock(root, run string) (locks, error) {
	f, err := lockRoot(root)
	if err != nil {
		return nil, err
	}
	held := locks{f}
	dir, err := os.OpenFile(run, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == nil {
		held = append(held, dir)
		err = flock(dir)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("the run directory %s is in use by another daemon, which has another root directory; stop it first (fuser %s shows it) or use another run directory: %w",
			run, run, errdefs.ErrFailedPrecondition)
	} else if err != nil {
		err = fmt.Errorf("lock the run directory: %w", err)
	}
	if err != nil {
		return nil, errors.Join(err, held.Close())
	}
	return held, nil
}

func (l locks) Close() error {
	var errs []error
	for _, f := range l {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// flock waits a moment for a daemon that is ending.
func flock(f *os.File) error {
	deadline := time.Now().Add(lockWait)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline):
			return err
		default:
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// lockRoot takes the root directory. The file holds the owner's pid, for the message only.
func lockRoot(root string) (*os.File, error) {
	path := filepath.Join(root, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) {
		// Of a file system that became read-only what runs is served all the same: a lock asks for no right to write.
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	err = flock(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		owner := lockOwner(f)
		_ = f.Close()
		return nil, fmt.Errorf("the state directory %s is in use by %s; stop it first or use another root directory: %w", root, owner, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// With a full or read-only disk the pid cannot be written; the lock holds all the same.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

func lockOwner(f *os.File) string {
	data, _ := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
		return fmt.Sprintf("process %d", pid)
	}
	return "another process"
}
