package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What a kubelet would use or change of the machine at places that it cannot be told: each gets its own, so that kubelets of
// several checkouts run beside each other, and one that is killed leaves the machine as it was.

// kubeletSysctls are those that a kubelet sets where they are otherwise, with what it wants. No namespace has its own, and a
// kubelet leaves them so.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// kubeletFolders are where a kubelet has the sockets of device plugins, of which a second one removes the first one's; and links
// to the logs of containers, and an old one the logs themselves.
var kubeletFolders = []string{"/var/lib/kubelet", "/var/log"}

// ownFolders lays folders of the kubelet over kubeletFolders, for the whole test program, until the cleanup.
func (k *Kubelet) ownFolders() {
	k.t.Helper()
	for _, folder := range kubeletFolders {
		own := filepath.Join(k.dir, "host", folder)
		// Where the machine has none, an empty one stays: its removal would undo the mount of another test program.
		for _, dir := range []string{own, folder} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				k.t.Fatalf("making a folder of the kubelet: %v", err)
			}
		}
		if err := unix.Mount(own, folder, "", unix.MS_BIND, ""); err != nil {
			k.t.Fatalf("giving the kubelet its own %s: %v", folder, err)
		}
		k.t.Cleanup(func() {
			if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
				k.t.Errorf("giving back the machine's own %s: %v", folder, err)
			}
		})
	}
}

// ownSysctls is the command that runs another where kubeletSysctls are files of the kubelet with the values that it wants. That is a mount
// namespace whose /proc alone is its own, so that mounts go both ways as ever: elsewhere, no user namespace could mount a /proc
// while the files are mounted over the machine's.
func (k *Kubelet) ownSysctls() (command string, args []string) {
	k.t.Helper()
	script := "mount --make-rprivate /proc\n"
	for name, value := range kubeletSysctls {
		of := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(of); err != nil {
			continue // the kernel does without
		}
		own := filepath.Join(k.dir, "sysctl."+strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(own, []byte(value+"\n"), 0o644); err != nil {
			k.t.Fatalf("making the kubelet's own sysctl %s: %v", name, err)
		}
		script += fmt.Sprintf("mount --bind %s %s\n", own, of)
	}
	return "unshare", []string{"--mount", "--propagation", "unchanged", "sh", "-ec", script + `exec "$0" "$@"`}
}

// checkSysctls checks that the kubelet found all sysctls as it wants them: else it changed the machine's, or a pod of another one sees it.
func (k *Kubelet) checkSysctls() {
	k.t.Helper()
	for line := range strings.Lines(readString(k.LogFile)) {
		if strings.Contains(line, "Updating kernel flag") {
			k.t.Errorf("the kubelet sets a sysctl of the machine, which kubeletSysctls does not have so: %s", line)
		}
	}
}
