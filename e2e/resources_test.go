package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// cgroupValue reads a v1 or v2 file of a container's cgroup; the test is skipped where the host has another version.
func cgroupValue(t *testing.T, n *harness.Node, c *harness.Container, controller, file string) string {
	t.Helper()
	for _, parent := range []string{"/sys/fs/cgroup/" + controller, "/sys/fs/cgroup"} {
		found, err := filepath.Glob(parent + n.CgroupParent() + "/kubepods/besteffort/*/" + c.ID + "/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			data, err := os.ReadFile(found[0])
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(data))
		}
	}
	t.Skipf("this host has no %s", file)
	return ""
}

func TestAMemoryLimitBelowWhatIsInUseIsRefused(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "below")
	const script = "dd if=/dev/zero of=/dev/shm/held bs=1M count=40 2>/dev/null && echo ready && exec sleep 100000"
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", script}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	})
	c.WaitLog("ready")
	_, err := n.Shim.Runtime.UpdateContainerResources(ctx(t), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, CpuShares: 1024},
	})
	wantCode(t, "a limit of 16 MiB with 40 MiB in use", err, codes.FailedPrecondition)
	if text := fmt.Sprint(err); !strings.Contains(text, "memory limit 16777216 is below the ") {
		t.Errorf("the reason is %s", text)
	}
	for file, want := range map[string]string{"memory/memory.limit_in_bytes": "67108864", "cpu/cpu.shares": "512"} {
		controller, name, _ := strings.Cut(file, "/")
		if got := cgroupValue(t, n, c, controller, name); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
	if got := c.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	pod.Remove()
}

func TestResourcesAreInTheCgroupAndCanBeChangedBothWays(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "resources")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900}
	})
	check := func(when string, quota, shares, memory string) {
		t.Helper()
		for _, row := range []struct{ controller, file, want string }{
			{"cpu", "cpu.cfs_quota_us", quota}, {"cpu", "cpu.shares", shares}, {"memory", "memory.limit_in_bytes", memory},
		} {
			if got := cgroupValue(t, n, c, row.controller, row.file); got != row.want {
				t.Errorf("%s: %s is %s, want %s", when, row.file, got, row.want)
			}
		}
	}
	check("at the start", "20000", "512", "67108864")
	update := func(r *runtimeapi.LinuxContainerResources) error {
		_, err := n.Shim.Runtime.UpdateContainerResources(ctx(t), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
		return err
	}
	if err := update(&runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 1024, MemoryLimitInBytes: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	check("raised", "50000", "1024", "134217728")
	if got := c.Status().Resources.GetLinux(); got.GetCpuQuota() != 50000 || got.GetMemoryLimitInBytes() != 128<<20 {
		t.Errorf("status says %v", got)
	}
	if err := update(&runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 10000, CpuShares: 2, MemoryLimitInBytes: 32 << 20}); err != nil {
		t.Fatal(err)
	}
	check("lowered", "10000", "2", "33554432")
	if err := update(&runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: -1, CpuShares: 2}); err != nil {
		t.Fatal(err)
	}
	if got := cgroupValue(t, n, c, "cpu", "cpu.cfs_quota_us"); got != "-1" {
		t.Errorf("the quota was to be removed and is %s", got)
	}
	// All or nothing: less memory than it needs to live is refused, and the rest of the request too.
	if err := update(&runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 30000, MemoryLimitInBytes: -7}); err == nil {
		t.Error("a negative limit was taken")
	}
	if got := cgroupValue(t, n, c, "cpu", "cpu.cfs_quota_us"); got != "-1" {
		t.Errorf("a refused update changed the quota to %s", got)
	}
}
