package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
