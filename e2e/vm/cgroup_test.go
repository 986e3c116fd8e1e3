package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func resources(r *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerConfig {
	return &runtimeapi.LinuxContainerConfig{Resources: r}
}

func TestLimitsAreThoseOfCgroup2(t *testing.T) {
	h := onNode(t)
	p := h.pod(t, "vmlimits.slice")
	limits := &runtimeapi.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 50_000, CpuPeriod: 100_000, CpusetCpus: "0", CpusetMems: "0", MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 80 << 20,
		OomScoreAdj: 500, Unified: map[string]string{"memory.high": "50331648", "pids.max": "77"},
	}
	hugetlb := exists("/sys/kernel/mm/hugepages/hugepages-2048kB") && strings.Contains(read(t, "/sys/fs/cgroup/cgroup.controllers"), "hugetlb")
	if hugetlb {
		limits.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}
	} else {
		t.Log("this kernel has no huge pages of 2 MB, or no cgroups of them")
	}
	id := p.sleeper(t, "c", resources(limits))
	dir := scope(t, id)
	want := map[string]string{
		"cpu.weight": "59", "cpu.max": "50000 100000", "cpuset.cpus": "0", "cpuset.mems": "0", "memory.max": "67108864", "memory.swap.max": "16777216",
		"memory.high": "50331648", "pids.max": "77",
	}
	if hugetlb {
		want["hugetlb.2MB.max"] = "4194304"
	}
	check := func() {
		t.Helper()
		if got := oomScoreAdj(t, dir); got != "500" {
			t.Errorf("oom_score_adj is %s", got)
		}
		for file, value := range want {
			if got := read(t, filepath.Join(dir, file)); got != value {
				t.Errorf("%s is %q, want %q", file, got, value)
			}
		}
	}
	check()
	if _, err := h.UpdateContainerResources(within(t), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{
		CpuShares: 1024, CpuQuota: 20_000, CpuPeriod: 100_000, MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20,
	}}); err != nil {
		t.Fatal(err)
	}
	want = map[string]string{"cpu.weight": "100", "cpu.max": "20000 100000", "memory.max": "100663296", "memory.swap.max": "0"}
	check()
	// systemd sets its units' values again when it reads them anew.
	run(t, "systemctl", "daemon-reload")
	check()
	if out, code := h.exec(t, id, "cat /sys/fs/cgroup/memory.max"); out != want["memory.max"] || code != 0 {
		t.Errorf("seen inside: %q, %d", out, code)
	}
	// systemd does not know of the last, which the kernel refuses; whatever was set before it is taken back.
	if _, err := h.UpdateContainerResources(within(t), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{
		CpuShares: 2048, CpuQuota: 30_000, CpuPeriod: 50_000, MemoryLimitInBytes: 80 << 20, CpusetCpus: "1",
		Unified: map[string]string{"memory.low": "1048576", "cpu.max.burst": "99999999999"},
	}}); err == nil {
		t.Error("a burst of a day was accepted")
	}
	want["memory.low"], want["cpuset.cpus.effective"] = "0", "0"
	check()
	guarded := p.sleeper(t, "guarded", resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: -998}))
	if got := oomScoreAdj(t, scope(t, guarded)); got != "-998" {
		t.Errorf("oom_score_adj of a guaranteed container is %s", got)
	}
}

// oomScoreAdj is that of the first process in a cgroup's folder.
func oomScoreAdj(t *testing.T, dir string) string {
	t.Helper()
	return read(t, fmt.Sprintf("/proc/%d/oom_score_adj", pids(t, dir)[0]))
}

// Version 2 of cgroups takes any limit of memory and kills for it.
func TestAMemoryLimitBelowTheUsageIsRefused(t *testing.T) {
	onNode(t).pod(t, "vmresize.slice").refusesBelowUsage(t)
}

func (p *pod) refusesBelowUsage(t *testing.T) {
	t.Helper()
	id, err := p.start(t, "resized", resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, OomScoreAdj: 500}),
		"sh", "-c", "dd if=/dev/zero of=/dev/shm/held bs=1M count=40 && sleep 100000")
	if err != nil {
		t.Fatal(err)
	}
	dir := limited(t, id)
	eventually(t, "40 MiB in use", func() error {
		used, err := strconv.Atoi(read(t, dir+"/memory.current"))
		if err == nil && used < 40<<20 {
			err = fmt.Errorf("%d bytes", used)
		}
		return err
	})
	for _, refused := range []*runtimeapi.LinuxContainerResources{
		{MemoryLimitInBytes: 16 << 20, OomScoreAdj: 700}, {MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 80 << 20, CpuShares: 512},
	} {
		_, err := p.UpdateContainerResources(within(t), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: refused})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "memory limit 16777216 is below the ") {
			t.Errorf("%v: %v", refused, err)
		}
	}
	for file, want := range map[string]string{"memory.max": "67108864", "memory.swap.max": "0", "cpu.weight": "100"} {
		if got := read(t, filepath.Join(dir, file)); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := oomScoreAdj(t, dir); got != "500" {
		t.Errorf("oom_score_adj is %s", got)
	}
	if st := p.status(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("it is %v, %s", st.State, st.Reason)
	}
	if kills := read(t, dir+"/memory.events"); !strings.Contains(kills, "oom_kill 0") {
		t.Errorf("%s", kills)
	}
	// What fits is taken.
	if _, err := p.UpdateContainerResources(within(t), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 60 << 20}}); err != nil {
		t.Error(err)
	}
	if got := read(t, dir+"/memory.max"); got != "62914560" {
		t.Errorf("memory.max is %s", got)
	}
}

func TestDevicesAreThoseThatWereGranted(t *testing.T) {
	h := onNode(t)
	p := h.pod(t, "vmdevices.slice")
	config := p.container("c", &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"MKNOD"}},
	}}, "sleep", "100000")
	// The disks of this machine: with this test's files, and its root.
	config.Devices = []*runtimeapi.Device{{HostPath: "/dev/nvme0n2", ContainerPath: "/dev/granted", Permissions: "r"}}
	id, err := p.startAs(t, config)
	if err != nil {
		t.Fatal(err)
	}
	node := func(path string) string {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("b %d %d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if out, code := h.exec(t, id, "busybox mknod /tmp/granted "+node("/dev/nvme0n2")+" && busybox mknod /tmp/other "+node("/dev/nvme0n1")); code != 0 {
		t.Fatalf("%s", out)
	}
	for script, denied := range map[string]bool{
		": </dev/granted": false, ": >>/dev/granted": true, ": <>/dev/granted": true, // opened only: nothing is written
		": </tmp/granted": false, ": >>/tmp/granted": true, ": </tmp/other": true, ": >>/tmp/other": true,
	} {
		out, code := h.exec(t, id, script)
		if denied != (code != 0) || denied && !strings.Contains(out, "Operation not permitted") {
			t.Errorf("%s: %d, %s", script, code, out)
		}
	}
}

// Rows: R48 (part)
func TestOutOfMemoryIsTold(t *testing.T) {
	h := onNode(t)
	p := h.pod(t, "vmmemory.slice")
	for _, tt := range []struct {
		name, reason string
		code         int32
		command      []string
	}{
		{"first", "OOMKilled", 137, []string{"tail", "/dev/zero"}},
		{"child", "Error", 3, []string{"sh", "-c", "tail /dev/zero; exit 3"}}, // it outlived the kill
	} {
		id, err := p.start(t, tt.name, resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}), tt.command...)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of "+tt.name, func() error {
			if st := h.status(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != tt.reason || st.ExitCode != tt.code {
				return fmt.Errorf("%v, %s, %d", st.State, st.Reason, st.ExitCode)
			}
			return nil
		})
	}
}

func TestStatisticsComeFromCgroup2(t *testing.T) {
	h := onNode(t)
	p := h.pod(t, "vmstats.slice")
	id, err := p.start(t, "c", resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20}),
		"sh", "-c", "dd if=/dev/zero of=/tmp/f bs=1M count=4; n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; sleep 100000")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "statistics", func() error {
		r, err := h.ContainerStats(within(t), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			return err
		}
		s := r.Stats
		if s.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || s.Memory.GetWorkingSetBytes().GetValue() == 0 || s.Memory.GetUsageBytes().GetValue() == 0 ||
			s.Swap.GetSwapAvailableBytes() == nil || s.WritableLayer.GetUsedBytes().GetValue() < 4<<20 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	r, err := h.PodSandboxStats(within(t), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	if l := r.Stats.GetLinux(); l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || l.GetMemory().GetWorkingSetBytes().GetValue() == 0 ||
		l.GetNetwork().GetDefaultInterface().GetName() != "eth0" || l.GetProcess().GetProcessCount().GetValue() == 0 || len(l.GetContainers()) != 1 {
		t.Errorf("%+v", l)
	}
}

func TestAPodLeavesNoCgroup(t *testing.T) {
	h := onNode(t)
	var dir string
	t.Run("pod", func(t *testing.T) {
		p := h.pod(t, "")
		dir = filepath.Dir(scope(t, p.sleeper(t, "c", nil)))
	})
	eventually(t, "no cgroup", func() error {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			return fmt.Errorf("%s is there: %w", dir, err)
		}
		return nil
	})
}
