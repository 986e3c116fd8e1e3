package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limited is the cgroup with a container's limits: crun makes one of its own in the scope.
func limited(t *testing.T, id string) string {
	t.Helper()
	dir := scope(t, id)
	if inner := filepath.Join(dir, "container"); exists(inner) {
		return inner
	}
	return dir
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// What a program other than libcontainer makes of a pod, in systemd's cgroups: limits, their change, exec, AppArmor, the
// reason of an end, and that all outlives the daemon.
func TestOCIRuntimesAsHandlers(t *testing.T) {
	h := onNode(t)
	for _, handler := range []string{"runc", "crun"} {
		t.Run(handler, func(t *testing.T) {
			p := h.podOf(t, "vm"+handler+".slice", handler)
			id := p.sleeper(t, "c", resources(&runtimeapi.LinuxContainerResources{CpuQuota: 50_000, CpuPeriod: 100_000, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}))
			if got := read(t, filepath.Join(limited(t, id), "memory.max")); got != "67108864" {
				t.Errorf("memory.max is %s", got)
			}
			if _, err := h.UpdateContainerResources(within(t), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{
				CpuQuota: 20_000, CpuPeriod: 100_000, MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20,
			}}); err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string]string{"memory.max": "100663296", "cpu.max": "20000 100000"} {
				if got := read(t, filepath.Join(limited(t, id), file)); got != want {
					t.Errorf("%s is %q, want %q", file, got, want)
				}
			}
			if out, code := h.exec(t, id, "cat /proc/self/attr/current; exit 5"); out != "crishim-default (enforce)" || code != 5 {
				t.Errorf("exec: %q, %d", out, code)
			}
			p.refusesBelowUsage(t)
			run(t, "systemctl", "restart", "crishim")
			if out, _ := h.exec(t, id, "echo here"); out != "here" {
				t.Errorf("exec after a restart of the service: %q", out)
			}
			oom, err := p.start(t, "oom", resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}), "tail", "/dev/zero")
			if err != nil {
				t.Fatal(err)
			}
			terminal := p.container("tty", nil, "sh", "-c", "test -t 0 && test -t 1 && exit 7")
			terminal.Tty = true
			tty, err := p.startAs(t, terminal)
			if err != nil {
				t.Fatal(err)
			}
			for id, want := range map[string]string{oom: "OOMKilled 137", tty: "Error 7"} {
				eventually(t, "the end", func() error {
					if st := h.status(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || fmt.Sprintf("%s %d", st.Reason, st.ExitCode) != want {
						return fmt.Errorf("%v, %s, %d, want %s", st.State, st.Reason, st.ExitCode, want)
					}
					return nil
				})
			}
			if _, err := p.start(t, "nothing", nil, "/no/such/program"); err == nil {
				t.Error("a program that is not there was started")
			}
		})
	}
}
