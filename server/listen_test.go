package server

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Rows: S65 (part)
func TestTheSocketIsForRootAndItsGroupOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "crishim.sock")
	listeners, err := Listen([]string{"unix://" + path}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listeners[0].Close() }()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Fatalf("mode %v, %v; want 0660", info.Mode(), err)
	}
}

// Rows: S65 (part)
func TestAStaleSocketIsReplacedAndAnythingElseRefused(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	listeners, err := Listen([]string{stale}, "")
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	defer func() { _ = listeners[0].Close() }()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"a living socket": stale, "a regular file": file, "a symlink": link, "a relative path": "crishim.sock",
	} {
		if _, err := Listen([]string{path}, ""); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := Listen([]string{filepath.Join(dir, "x")}, "no-such-group"); err == nil || !strings.Contains(err.Error(), "socket_group") {
		t.Errorf("an unknown group: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("the file was changed: %q, %v", data, err)
	}
}

func TestAnOldShimsSocketIsListenedOnBesideOurs(t *testing.T) {
	dir := t.TempDir()
	addresses := []string{"unix://" + filepath.Join(dir, "crishim.sock"), "unix://" + filepath.Join(dir, "dockershim.sock")}
	listeners, err := Listen(addresses, "")
	if err != nil || len(listeners) != 2 {
		t.Fatalf("%d sockets, %v", len(listeners), err)
	}
	for i, l := range listeners {
		conn, err := net.Dial("unix", strings.TrimPrefix(addresses[i], "unix://"))
		if err != nil {
			t.Error(err)
			continue
		}
		_ = conn.Close()
		_ = l.Close()
	}
	// Where the old shim still answers nothing is taken from it.
	l, err := net.Listen("unix", filepath.Join(dir, "dockershim.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := Listen(addresses, ""); err == nil || !strings.Contains(err.Error(), "dockershim.sock: another process answers there") {
		t.Errorf("a dockershim that answers: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "crishim.sock")); err == nil {
		t.Error("our own socket stayed behind although the start failed")
	}
}

// A socket that we have already, from systemd most of all, is not taken for another process's where the settings name it in
// another way: /var/run/crishim/crishim.sock is /run/crishim/crishim.sock.
func TestTheSameSocketByAnotherNameIsOne(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "run"), 0o755), os.Symlink("run", filepath.Join(dir, "var-run"))); err != nil {
		t.Fatal(err)
	}
	addresses := []string{"unix://" + filepath.Join(dir, "run", "s.sock"), "unix://" + filepath.Join(dir, "var-run", "s.sock"), "unix://" + dir + "/run//s.sock"}
	listeners, err := Listen(addresses, "")
	if err != nil || len(listeners) != 1 {
		t.Fatalf("%d sockets, %v", len(listeners), err)
	}
	_ = listeners[0].Close()
}

// Whoever hangs has the socket all the same, also when the queue of those that wait for him is full.
func TestTheSocketOfAProcessThatHangsIsNotTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hangs.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if conn, err := net.Dial("unix", path); err == nil {
			defer func() { _ = conn.Close() }()
		}
	}
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if listeners, err := Listen([]string{path}, ""); err == nil || !strings.Contains(err.Error(), "another process may have it") {
		t.Errorf("%d sockets, %v", len(listeners), err)
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was taken: %v", err)
	}
}
