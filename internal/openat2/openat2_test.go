package openat2

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// While folders are renamed elsewhere on the file system, a path that climbs is opened all the same.
func TestRenamesElsewhereDoNotFailIt(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"root/a/b/c/d", "other/x"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "root/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(filepath.Join(root, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(dir) }()
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		from, to := filepath.Join(root, "other/x"), filepath.Join(root, "other/y")
		for {
			select {
			case <-done:
				return
			default:
			}
			_ = os.Rename(from, to)
			from, to = to, from
		}
	}()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	const path = "a/b/c/d/../../../../a/b/c/d/../../../../file"
	bare := 0
	for range 20_000 {
		if fd, err := unix.Openat2(dir, path, &how); err != nil {
			bare++
		} else {
			_ = unix.Close(fd)
		}
		fd, err := Open(dir, path, &how)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
	}
	close(done)
	<-stopped
	t.Logf("openat2 by itself failed %d times", bare)
}

// A program started meanwhile must not inherit a way into the host's folders, whatever the caller asked for; and the caller's
// own OpenHow, which it may share, stays as it was.
func TestOpenedFilesAreNotInherited(t *testing.T) {
	how := unix.OpenHow{Flags: unix.O_PATH}
	fd, err := Open(unix.AT_FDCWD, t.TempDir(), &how)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	if flags&unix.FD_CLOEXEC == 0 {
		t.Error("the opened folder would be inherited by programs started later")
	}
	if how.Flags != unix.O_PATH {
		t.Errorf("the caller's flags became %#x", how.Flags)
	}
}
