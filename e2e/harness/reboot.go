package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Reboot takes from the node, and from a kubelet on it (nil: there is none), what a reboot takes: all processes, mounts,
// cgroups, interfaces, firewall rules and run files. Then the engine, the daemon and the kubelet are started again. Rules of the
// whole test program go too: no other node may have pods.
func (n *Node) Reboot(t T, k *Kubelet) {
	t.Helper()
	var cgroup, dir string
	if k != nil {
		k.Process.Kill()
		cgroup, dir = k.cgroup, k.dir
	}
	n.Shim.Kill()
	if n.Docker == nil {
		native{n.Shim}.cleanup(t, n.CgroupParent(), false)
	} else {
		n.Docker.crash(t)
	}
	if k != nil {
		Eventually(t, 20*time.Second, "the end of everything in the pods", func() error {
			removeCgroup(cgroup)
			if left := Cgroups("/"); containsUnder(left, cgroup) {
				return fmt.Errorf("cgroup %s is left", cgroup)
			}
			return nil
		})
		unmountAll(dir)
	}
	unmountAll(n.Shim.dir)
	if err := os.RemoveAll(n.Shim.RunDir); err != nil {
		t.Fatalf("removing the run files: %v", err)
	}
	removeBridge(t, n.CNI.Bridge)
	for _, table := range []string{"nat", "filter"} {
		Run(t, "iptables", "-w", "-t", table, "-F")
		Run(t, "iptables", "-w", "-t", table, "-X")
	}
	if k != nil {
		makeCgroup(t, cgroup)
	}
	makeCgroup(t, n.CgroupParent())
	if n.Docker != nil {
		n.Docker.Start()
	}
	n.Shim.Start()
	if k != nil {
		k.launch()
	}
}

// crash ends dockerd and all that it started, at once, and removes what it keeps of a running machine.
func (d *Docker) crash(t T) {
	t.Helper()
	d.Process.Kill()
	Eventually(t, 20*time.Second, "the end of everything that dockerd started", func() error {
		for _, pid := range processesNaming(d.dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		removeCgroup(d.CgroupParent)
		if pids := processesNaming(d.dir); len(pids) > 0 {
			return fmt.Errorf("processes %v are left", pids)
		}
		return nil
	})
	unmountAll(d.dir)
	for _, name := range []string{"exec", "docker.pid", "docker.sock"} {
		if err := os.RemoveAll(filepath.Join(d.dir, name)); err != nil {
			t.Fatalf("removing the run files of dockerd: %v", err)
		}
	}
}
