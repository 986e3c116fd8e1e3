package accept

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestASocketIsTakenUnlessNobodyListens(t *testing.T) {
	dir := t.TempDir()
	stale, answers, hangs := filepath.Join(dir, "stale"), filepath.Join(dir, "answers"), filepath.Join(dir, "hangs")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	living, err := net.Listen("unix", answers)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = living.Close() }()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: hangs}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 10 { // as many as wait in the queue of one that takes none
		if conn, err := net.Dial("unix", hangs); err == nil {
			defer func() { _ = conn.Close() }()
		}
	}
	for path, want := range map[string]bool{stale: false, filepath.Join(dir, "none"): false, answers: true, hangs: true} {
		if err := Taken(path); (err != nil) != want {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
		if _, err := os.Lstat(path); err != nil && path != filepath.Join(dir, "none") {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
}
