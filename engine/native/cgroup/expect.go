package cgroup

import (
	"os"
	"path/filepath"
	"strings"
)

// ExpectJoin readies the kernel, in the background, for a process that is about to be put into a cgroup. With version 1 the
// first such move in a while waits until every processor has noticed that one is made (an RCU grace period, some 10 ms): forks
// and exits take no lock otherwise. A move that leads nowhere waits as well, beside what goes before the real one, which finds
// the wait behind it; the kernel goes back to where it was a grace period after the last.
func (d *Driver) ExpectJoin() {
	if d.host.CgroupV2 || !d.expecting.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer d.expecting.Store(false)
		if own := d.own("pids"); own != "" {
			_ = write(filepath.Join(own, "cgroup.procs"), "0") // else the real move waits
		}
	}()
}

// own is the folder of the cgroup that this process is in, in the hierarchy of a controller; "" where it cannot be seen.
func (d *Driver) own(controller string) string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if name, path, _ := strings.Cut(rest, ":"); name == controller {
			return d.controller(controller, path)
		}
	}
	return ""
}
