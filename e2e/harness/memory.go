package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// BoundMemory is gate MEM: until the test ends the daemon is in a memory cgroup of so many bytes, where nothing may be killed for
// want of memory. Not with the race detector, which takes several times as much.
func (n *Node) BoundMemory(t T, bytes int) {
	t.Helper()
	if slowdown() > 1 {
		return
	}
	root, limit, events := memoryHierarchy()
	home := cgroupIn(root, n.Shim.PID())
	bounded := filepath.Join(root, filepath.Base(n.Shim.dir)+"-bound")
	write := func(path, value string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			t.Fatalf("bounding the daemon's memory: %v", err)
		}
	}
	if err := os.Mkdir(bounded, 0o755); err != nil {
		t.Fatalf("bounding the daemon's memory: %v", err)
	}
	t.Cleanup(func() {
		if text := readString(filepath.Join(bounded, events)); !strings.Contains("\n"+text, "\noom_kill 0\n") {
			t.Errorf("in %d bytes of memory something was killed:\n%s", bytes, text)
		}
		for _, pid := range cgroupPIDs(bounded) {
			_ = os.WriteFile(filepath.Join(home, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
		Eventually(t, leakLimit, "the cgroup that bounds the daemon to be empty", func() error { return os.Remove(bounded) })
	})
	write(filepath.Join(bounded, limit), strconv.Itoa(bytes))
	write(filepath.Join(bounded, "cgroup.procs"), strconv.Itoa(n.Shim.PID()))
}

// memoryHierarchy is where memory is bounded, and the files of a cgroup there that bound it and count the kills.
func memoryHierarchy() (root, limit, events string) {
	for _, root := range cgroupRoots() {
		if filepath.Base(root) == "memory" {
			return root, "memory.limit_in_bytes", "memory.oom_control"
		}
	}
	return "/sys/fs/cgroup", "memory.max", "memory.events"
}

// cgroupIn is a process's folder in a hierarchy: v1's of memory, or v2's.
func cgroupIn(root string, pid int) string {
	for line := range strings.Lines(readString(fmt.Sprintf("/proc/%d/cgroup", pid))) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		if controllers == "memory" && filepath.Base(root) == "memory" || controllers == "" && filepath.Base(root) != "memory" {
			return filepath.Join(root, path)
		}
	}
	return root
}
