package stats

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	v1Path      = "/kubepods/burstable/podabc/c1"
	systemdPath = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podabc.slice/docker-c1.scope"
)

func testReader(t testing.TB, tree string) *Reader {
	t.Helper()
	r, err := NewReader(filepath.Join("testdata", tree))
	if err != nil {
		t.Fatal(err)
	}
	r.clock = func() time.Time { return time.Unix(1_000_000, 0) }
	return r
}

func golden(t *testing.T, name string, got any) {
	t.Helper()
	data, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, '\n')
	path := filepath.Join("testdata", name+".golden.json")
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != string(data) {
		t.Errorf("differs from %s (%v):\n%s", path, err, data)
	}
}

func TestRecordedTrees(t *testing.T) {
	for tree, path := range map[string]string{"v1hybrid": v1Path, "v2": v1Path, "v2systemd": systemdPath} {
		r := testReader(t, tree)
		sample, err := r.Container(path)
		if err != nil {
			t.Fatal(err)
		}
		sample.Time = time.Time{}
		golden(t, tree, sample)
		if want := map[bool]int{true: 1, false: 2}[tree == "v1hybrid"]; r.CgroupVersion() != want {
			t.Errorf("%s: version %d", tree, r.CgroupVersion())
		}
		for _, absent := range []string{"/kubepods/gone", "", "/../../../../etc"} {
			if _, err := r.Container(absent); !errdefs.IsNotFound(err) {
				t.Errorf("%s: cgroup %q: %v, want not found", tree, absent, err)
			}
		}
		if len(r.known) != 1 {
			t.Errorf("%s: something is kept of absent cgroups", tree)
		}
		r.forgetAll(func(*history) bool { return true })
		if len(r.known) != 0 {
			t.Errorf("%s: something is kept after Forget", tree)
		}
	}
}

func TestNoCgroupsAtAllIsRefused(t *testing.T) {
	if _, err := NewReader(t.TempDir()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
}

// counters makes a v2 tree of one cgroup whose CPU usage the test sets.
func counters(t *testing.T) (r *Reader, set func(usec uint64), clock *time.Time) {
	t.Helper()
	root := t.TempDir()
	dir := root + "/sys/fs/cgroup/c"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(root+"/sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
	write(dir+"/memory.current", "1\n")
	set = func(usec uint64) { t.Helper(); write(dir+"/cpu.stat", fmt.Sprintf("usage_usec %d\n", usec)) }
	r, err := NewReader(root)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	r.clock = func() time.Time { return now }
	return r, set, &now
}

// Rows: R46 (part)
func TestCPURate(t *testing.T) {
	r, set, now := counters(t)
	read := func() CPU {
		t.Helper()
		s, err := r.Container("/c")
		if err != nil {
			t.Fatal(err)
		}
		return s.CPU
	}
	set(1_000_000)
	if c := read(); c.HasRate || c.Usage != 1_000_000_000 {
		t.Errorf("first sample %+v", c)
	}
	// Younger than a second: the same sample again.
	set(5_000_000)
	*now = now.Add(999 * time.Millisecond)
	if c := read(); c.Usage != 1_000_000_000 {
		t.Errorf("a young sample was read again: %+v", c)
	}
	*now = now.Add(1001 * time.Millisecond)
	if c := read(); !c.HasRate || c.NanoCores != 2_000_000_000 {
		t.Errorf("4 s of CPU in 2 s: %+v", c)
	}
	// R46: a counter that went back (another cgroup of that name), then the wall clock.
	set(10)
	*now = now.Add(2 * time.Second)
	if c := read(); c.HasRate || c.Usage != 10_000 {
		t.Errorf("after the counter went back: %+v", c)
	}
	set(1_000_010)
	*now = now.Add(time.Second)
	if c := read(); !c.HasRate || c.NanoCores != 1_000_000_000 {
		t.Errorf("the next rate: %+v", c)
	}
	*now = now.Add(-time.Hour)
	set(2_000_000)
	if c := read(); c.HasRate || c.Usage != 2_000_000_000 {
		t.Errorf("after time went back: %+v", c)
	}
}

func TestUnreadHistoryIsSwept(t *testing.T) {
	r, set, now := counters(t)
	set(1)
	if _, err := r.Container("/c"); err != nil {
		t.Fatal(err)
	}
	*now = now.Add(forgetAfter + time.Minute)
	_, _ = r.Container("/other")
	if len(r.known) != 0 {
		t.Errorf("%d kept", len(r.known))
	}
}

func TestVanishedCgroupAnswersWithAttributesOnly(t *testing.T) {
	c := NewCollector(testReader(t, "v2"), NewDisk())
	got, err := c.ContainerStats(Target{ContainerID: "c", ContainerName: "web", CgroupPath: "/gone"})
	if err != nil || got.Attributes.Id != "c" || got.Cpu != nil || got.Memory != nil {
		t.Errorf("%v, %v", got, err)
	}
	pod, err := c.PodSandboxStats(PodTarget{PodID: "p", CgroupPath: "/gone", PID: 1 << 30})
	if err != nil || pod.Attributes.Id != "p" || pod.Linux.Network != nil {
		t.Errorf("%v, %v", pod, err)
	}
	metrics, err := c.PodMetrics(PodTarget{PodID: "p", Containers: []Target{{CgroupPath: "/gone"}}})
	if err != nil || len(metrics.ContainerMetrics) != 0 {
		t.Errorf("%v, %v", metrics, err)
	}
}

func testTarget() Target {
	return Target{
		PodID: "p1", PodName: "web", Namespace: "shop", ContainerID: "c1", ContainerName: "app", Image: "busybox:1", Attempt: 2,
		Labels: map[string]string{"a": "b"}, CgroupPath: v1Path, PID: 41, Mountpoint: "/var/lib/docker",
		Limits: engine.Resources{CPUQuota: 20000, CPUShares: 512, MemoryLimit: 64 << 20, MemorySwap: 128 << 20}, StartedAt: time.Unix(900_000, 0),
	}
}

func testPodTarget() PodTarget {
	return PodTarget{
		PodID: "p1", PodName: "web", Namespace: "shop", UID: "u", PID: 41, PauseCgroup: "/kubepods/burstable/podabc/pause",
		Containers: []Target{testTarget()},
	}
}

func TestPodSandboxStats(t *testing.T) {
	got, err := NewCollector(testReader(t, "v1hybrid"), NewDisk()).PodSandboxStats(testPodTarget())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "podstats", got)
}

func TestPodSumsItsContainersWhereItHasNoCgroup(t *testing.T) {
	c := NewCollector(testReader(t, "v1hybrid"), NewDisk())
	p := testPodTarget()
	p.Containers = append(p.Containers, testTarget())
	got, err := c.PodSandboxStats(p)
	if err != nil {
		t.Fatal(err)
	}
	if m := got.Linux.Memory; m.WorkingSetBytes.Value != 2*41943040 || m.AvailableBytes != nil {
		t.Errorf("memory %v", m)
	}
	p.HostNetwork = true
	if got, err = c.PodSandboxStats(p); err != nil || got.Linux.Network != nil {
		t.Errorf("a pod on the host's network has network figures: %v, %v", got, err)
	}
}

// A pod between CNI's DEL and its end, or one whose interface somebody took away, has lo only. A kubelet (1.37's
// criInterfaceToSummary) reads the default interface of whatever network there is, and ends with a panic where that has none.
func TestPodWithoutInterfacesHasNoNetwork(t *testing.T) {
	r, _, _ := counters(t)
	c := NewCollector(r, NewDisk())
	file := filepath.Join(r.root, "proc/7/net/dev")
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte("    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"), 0o644))
	got, err := c.PodSandboxStats(PodTarget{PodID: "p1", PID: 7})
	if err != nil {
		t.Fatal(err)
	}
	if n := got.Linux.Network; n != nil {
		t.Errorf("a network without a default interface: %v", n)
	}
}

// A container's statistics tell of no tasks, so that none are counted for them; a pod that is the sum of its containers needs them
// all the same, also right after its containers were asked for.
func TestTasksAreCountedForPods(t *testing.T) {
	c := NewCollector(testReader(t, "v1hybrid"), NewDisk())
	target := testTarget()
	if _, err := c.ContainerStats(target); err != nil {
		t.Fatal(err)
	}
	s, err := c.reader.sample(target.CgroupPath, target.ContainerID, ofContainer)
	if err != nil || s.Pids.Current != 0 {
		t.Errorf("for a container: %d tasks, %v", s.Pids.Current, err)
	}
	pod, err := c.PodSandboxStats(PodTarget{PodID: "p1", Containers: []Target{target}})
	if err != nil || pod.Linux.Process.ProcessCount.Value == 0 {
		t.Errorf("a pod's processes %v, %v", pod.GetLinux().GetProcess(), err)
	}
}

// expected are the names that critest (cri-tools, validate/pod.go) looks for.
var expected = strings.Fields(`container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total
container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes container_fs_reads_bytes_total
container_fs_reads_total container_fs_usage_bytes container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes
container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_failcnt container_memory_failures_total
container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss container_memory_swap
container_memory_usage_bytes container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total
container_network_receive_packets_dropped_total container_network_receive_packets_total container_network_transmit_bytes_total
container_network_transmit_errors_total container_network_transmit_packets_dropped_total container_network_transmit_packets_total
container_oom_events_total container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total
container_pressure_memory_waiting_seconds_total container_processes container_sockets container_spec_cpu_period container_spec_cpu_quota
container_spec_cpu_shares container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes
container_spec_memory_swap_limit_bytes container_start_time_seconds container_threads container_threads_max container_ulimits_soft`)

func TestMetricsAndDescriptorsAgreeAndAreAllThatCritestWants(t *testing.T) {
	disk := NewDisk()
	dir := t.TempDir()
	disk.Watch("c1", dir)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); disk.Run(ctx) }()
	defer func() { cancel(); <-done }()
	waitFor(t, func() bool { _, _, _, ok := disk.Usage("c1"); return ok })

	c := NewCollector(testReader(t, "v1hybrid"), disk)
	labels := map[string]int{}
	var names []string
	for _, d := range c.MetricDescriptors() {
		labels[d.Name] = len(d.LabelKeys)
		names = append(names, d.Name)
		if d.Help == "" {
			t.Errorf("%s has no help", d.Name)
		}
	}
	if !slices.Equal(names, expected) {
		t.Errorf("descriptors\n%v\nwant\n%v", names, expected)
	}
	got, err := c.PodMetrics(testPodTarget())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range slices.Concat(got.Metrics, got.ContainerMetrics[0].Metrics) {
		seen[m.Name] = true
		if len(m.LabelValues) != labels[m.Name] {
			t.Errorf("%s has %d values for %d labels", m.Name, len(m.LabelValues), labels[m.Name])
		}
	}
	for _, name := range expected {
		if !seen[name] {
			t.Errorf("%s has no value", name)
		}
	}
	for _, m := range got.ContainerMetrics[0].Metrics {
		switch m.Name {
		case "container_fs_inodes_free", "container_fs_inodes_total", "container_fs_limit_bytes", "container_fs_usage_bytes":
			m.Value = &runtimeapi.UInt64Value{} // of this machine
			m.LabelValues[6] = "device"
		}
		if strings.HasPrefix(m.Name, "container_fs_") {
			m.LabelValues[6] = "device"
		}
	}
	golden(t, "podmetrics", got)

	// cgroup v2 has no peak of huge pages: not declared, not given.
	for _, d := range NewCollector(testReader(t, "v2"), disk).MetricDescriptors() {
		if d.Name == "container_hugetlb_max_usage_bytes" {
			t.Errorf("%s is declared on cgroup v2", d.Name)
		}
	}
}

// ContainerStatus tells the same limits: one of memory alone is one of swap too, and -1 is none.
func TestTheSpecMetricOfSwapIsTheLimitInEffect(t *testing.T) {
	c := NewCollector(testReader(t, "v1hybrid"), NewDisk())
	for _, limits := range []struct {
		memory, swap int64
		want         uint64
	}{{64 << 20, 128 << 20, 128 << 20}, {64 << 20, 0, 64 << 20}, {64 << 20, -1, 0}, {0, -1, 0}, {0, 0, 0}} {
		target := testTarget()
		target.Limits.MemoryLimit, target.Limits.MemorySwap = limits.memory, limits.swap
		got, err := c.PodMetrics(PodTarget{PodID: "p1", Containers: []Target{target}})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(got.ContainerMetrics[0].Metrics, func(m *runtimeapi.Metric) bool { return m.Name == "container_spec_memory_swap_limit_bytes" })
		if i < 0 {
			t.Fatal("there is no such metric")
		}
		if got := got.ContainerMetrics[0].Metrics[i].Value.Value; got != limits.want {
			t.Errorf("memory %d, swap %d: the metric says %d, want %d", limits.memory, limits.swap, got, limits.want)
		}
	}
}

func TestProcessesCountSubgroupsToo(t *testing.T) {
	p, err := testReader(t, "v1hybrid").Processes(v1Path)
	if err != nil || p.Processes != 3 || p.Threads != 9 || p.Ulimits["max_open_files"] != 1024 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := testReader(t, "v1hybrid").Processes("/gone"); !errdefs.IsNotFound(err) {
		t.Errorf("error %v", err)
	}
}

func TestOwnProcessIsReadLive(t *testing.T) {
	r, err := NewReader("/")
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	path := ownCgroup(t, r.CgroupVersion())
	s, err := r.Container(path)
	if errdefs.IsNotFound(err) {
		t.Skipf("the test's cgroup %s has no memory controller", path)
	}
	if err != nil || s.Memory.Usage == 0 || s.Memory.WorkingSet == 0 || s.Memory.WorkingSet > s.Memory.Usage {
		t.Errorf("%+v, %v", s.Memory, err)
	}
	for range 2 { // the second from the file that was kept
		if _, at, err := r.network("pod", os.Getpid()); err != nil || at.IsZero() {
			t.Error(at, err)
		}
	}
	if _, _, err := r.network("pod", 1<<30); !errdefs.IsNotFound(err) {
		t.Errorf("network of no process: %v", err)
	}
	r.Forget("pod")
	p, err := r.Processes(path)
	if err != nil || p.Processes == 0 || p.FDs == 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

func ownCgroup(t testing.TB, version int) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if version == 1 && slices.Contains(strings.Split(parts[1], ","), "memory") || version == 2 && parts[0] == "0" {
			return parts[2]
		}
	}
	t.Skip("no cgroup of the version found")
	return ""
}

func TestParentCgroup(t *testing.T) {
	for path, want := range map[string]string{v1Path: "/kubepods/burstable/podabc", "/docker/abc": "/docker", "/a": "", "/": "", "": "", "a/b": "/a"} {
		if got := ParentCgroup(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

// BenchmarkList100Pods reads anew what ListPodSandboxStats and ListContainerStats of 100 pods of one container read,
// from the real cgroup of this process where there is one (kernel files cost more than ordinary ones).
func BenchmarkList100Pods(b *testing.B) {
	r, err := NewReader("/")
	if err != nil {
		b.Skip(err)
	}
	path := ownCgroup(b, r.CgroupVersion())
	now := time.Now()
	r.clock = func() time.Time { now = now.Add(2 * MaxAge); return now } // every sample is too old
	c := NewCollector(r, NewDisk())
	target := testTarget()
	target.CgroupPath = path
	pod := PodTarget{PodID: "p", CgroupPath: path, PID: os.Getpid(), Containers: []Target{target}}
	b.Run("containers", func(b *testing.B) {
		before := cpuTime(b)
		defer func() { b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op") }()
		for b.Loop() {
			for range 100 {
				if _, err := c.ContainerStats(target); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("pods", func(b *testing.B) {
		before := cpuTime(b)
		defer func() { b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op") }()
		for b.Loop() {
			for range 100 {
				if _, err := c.PodSandboxStats(pod); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// cpuTime is this process's so far: on a busy machine it says more than the clock.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
