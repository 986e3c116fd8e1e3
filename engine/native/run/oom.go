//go:build cgo

package run

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// OOMKills reads the counter of the container's own processes: whichever cgroup's limit it was, or the machine's.
func (c *container) OOMKills() (uint64, error) {
	path := c.oomFile()
	if path == "" {
		return 0, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, nil // a kernel before 4.13
}

// oomFile has a line "oom_kill N" on both versions; "" without a memory controller.
func (c *container) oomFile() string {
	if cgroups.IsCgroup2UnifiedMode() {
		if c.paths[""] == "" {
			return ""
		}
		return filepath.Join(c.paths[""], "memory.events")
	}
	if c.paths["memory"] == "" {
		return ""
	}
	return filepath.Join(c.paths["memory"], "memory.oom_control")
}

// NotifyOOM is serve.Container's. What is waited for is in the runtime's poller: it holds no thread.
func (c *container) NotifyOOM(notify func()) (stop func(), err error) {
	path := c.oomFile()
	if path == "" {
		return nil, errors.New("no memory controller")
	}
	var source *os.File
	if cgroups.IsCgroup2UnifiedMode() {
		source, err = watchEvents(path)
	} else {
		source, err = watchControl(path)
	}
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	before, _ := c.OOMKills()
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := source.Read(buf); err != nil {
				return
			}
			// The end of the cgroup, and other counters of the file, wake it too; version 1 wakes before it kills.
			for range 5 {
				if now, err := c.OOMKills(); err == nil && now > before {
					before = now
					notify()
					break
				}
				time.Sleep(20 * time.Millisecond)
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
