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
	var source *os.File
	if v2 {
		source, err = watchEvents(path)
	} else {
		source, err = watchControl(path)
	}
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	before, _ := Kills(paths)
	// The end of the cgroup, and other counters of the file, wake us too.
	counted := func() bool {
		now, err := Kills(paths)
		if err == nil && now > before {
			before = now
			notify(now)
			return true
		}
		return err != nil
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := source.Read(buf); err != nil {
				return
			}
			// Version 2 counts before it wakes, and wakes for each counter: who waits here for one that is to come misses it
			// where the cgroup goes with the process. Version 1 wakes before it kills.
			for wait := time.Millisecond; !counted() && !v2 && wait <= patience; wait *= 2 {
				time.Sleep(wait)
			}
		}
	}()
	return func() { _ = source.Close() }, nil
}

// watchEvents waits for changes of a file of cgroup v2.
func watchEvents(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	return os.NewFile(uintptr(fd), path), nil
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
