// Package oom owns what the kernel tells of a cgroup that wants memory: how many of its processes were killed for it, and when
// that happens. A cgroup is given by its directories: by controller, "" for version 2's.
package oom

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// file has a line "oom_kill N" on both versions; "" without a memory controller. A hybrid's version 2 has none.
func file(paths map[string]string) (path string, v2 bool) {
	if dir := paths["memory"]; dir != "" {
		return filepath.Join(dir, "memory.oom_control"), false
	}
	if dir := paths[""]; dir != "" {
		return filepath.Join(dir, "memory.events"), true
	}
	return "", false
}

// Kills reads the counter of the cgroup's own processes: whichever cgroup's limit it was, or the machine's. 0 on kernels that
// do not count (before 4.13).
func Kills(paths map[string]string) (uint64, error) {
	path, _ := file(paths)
	if path == "" {
		return 0, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, nil
}

// patience is the last pause before a wake is taken for another's; they double.
const patience = time.Second

// Notify calls notify after each kill until stop, with how many Kills there are. What is waited for is in the runtime's poller: it holds no thread.
func Notify(paths map[string]string, notify func(kills uint64)) (stop func(), err error) {
	path, v2 := file(paths)
	if path == "" {
		return nil, errors.New("no memory controller")
	}
	counted := counter(paths, notify)
	if v2 {
		stop, err = onChange(path, func() { counted() })
	} else {
		stop, err = onControl(path, func() {
			// It wakes before it kills.
			for wait := time.Millisecond; !counted() && wait <= patience; wait *= 2 {
				time.Sleep(wait)
			}
		})
	}
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	return stop, nil
}

// counter makes what looks whether there were kills since its last look, and calls notify then. It returns false where it shall be
// called again: the end of the cgroup, and other counters of the file, wake us too.
func counter(paths map[string]string, notify func(kills uint64)) (counted func() bool) {
	before, _ := Kills(paths)
	return func() bool {
		now, err := Kills(paths)
		if err == nil && now > before {
			before = now
			notify(now)
			return true
		}
		return err != nil
	}
}

// onChange calls f after each change of a file of cgroup v2, which the kernel tells who polls it. It takes none of root's inotify
// instances, of which there are 128 by default, and which the node's other programs want.
func onChange(path string, f func()) (stop func(), err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) // with O_NONBLOCK the runtime polls it
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	if err := file.SetDeadline(time.Time{}); err != nil { // it can be polled
		_ = file.Close()
		return nil, err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	go func() {
		_ = conn.Read(func(uintptr) bool {
			f()
			return false // wait for the next; a change while f looks counts as one
		})
	}()
	return func() { _ = file.Close() }, nil
}

// onControl calls f when cgroup v1 tells of want of memory.
func onControl(path string, f func()) (stop func(), err error) {
	source, err := watchControl(path)
	if err != nil {
		return nil, err
	}
	go func() {
		buf := make([]byte, 8)
		for {
			if _, err := source.Read(buf); err != nil {
				return
			}
			f()
		}
	}()
	return func() { _ = source.Close() }, nil
}

// watchControl asks cgroup v1 for an event; the kernel keeps its own reference of the control file.
func watchControl(path string) (*os.File, error) {
	control, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	request := fmt.Sprintf("%d %d", fd, control.Fd())
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "cgroup.event_control"), []byte(request), 0); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}
