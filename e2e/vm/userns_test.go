package vm

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A pod with users of its own, in systemd's cgroups, is limited and confined as any; its root is nobody on the host, and an
// id-mapped volume keeps its owners.
func TestPodsOfAUserNamespace(t *testing.T) {
	h := onNode(t)
	const first = 500_000 // on the host
	ids := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: 65536}}
	options := &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}, Pid: runtimeapi.NamespaceMode_CONTAINER}
	p := &pod{host: h, config: podConfig(t, "vmusers.slice")}
	p.config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}
	made, err := h.RunPodSandbox(within(t), &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	p.id = made.PodSandboxId
	p.removeAtEnd(t)
	volume := t.TempDir()
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	config := p.container("c", &runtimeapi.LinuxContainerConfig{
		SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: options},
		Resources:       &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20},
	}, "sleep", "100000")
	config.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/mapped", UidMappings: ids, GidMappings: ids}, {HostPath: volume, ContainerPath: "/plain"}}
	id, err := p.startAs(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if uid := owner(t, "/proc/"+strings.Fields(read(t, scope(t, id)+"/cgroup.procs"))[0]); uid != first {
		t.Errorf("its process is user %d's on the host", uid)
	}
	for script, want := range map[string]string{
		"read a b c </proc/self/uid_map; echo $a $b $c":         "0 500000 65536",
		"cat /proc/self/attr/current":                           "crishim-default (enforce)",
		"cat /sys/fs/cgroup/memory.max":                         "67108864",
		"echo x >/mapped/m && echo x >/plain/p && echo x >/own": "",
	} {
		if out, code := h.exec(t, id, script); out != want || code != 0 {
			t.Errorf("%s: %q, %d", script, out, code)
		}
	}
	if out, code := h.exec(t, id, "echo max >/sys/fs/cgroup/memory.max"); code == 0 {
		t.Errorf("it lifted its limit: %s", out)
	}
	for file, want := range map[string]uint32{"m": 0, "p": first} {
		if uid := owner(t, filepath.Join(volume, file)); uid != want {
			t.Errorf("%s is user %d's on the host, want %d", file, uid, want)
		}
	}
}

func owner(t *testing.T, file string) uint32 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}
