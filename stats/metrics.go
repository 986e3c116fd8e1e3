package stats

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// The names, units and labels are those of the kubelet's cAdvisor endpoint, so that dashboards and alerts go on working.
// CRI values are whole numbers: seconds are cut.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// podContainer is the container label of figures of the pod itself, as cAdvisor had it for pause containers.
const podContainer = "POD"

// metric declares one metric and makes its values: descriptors and values cannot differ, they come from one table.
type metric struct {
	name   string
	help   string
	gauge  bool
	labels []string // beside baseLabels
	needs  string   // a controller, "pressure", or "v1:" and a controller; "" is always there
	values func(m *measurement, add func(value uint64, labels ...string))
}

// measurement is all that is read of one container for its metrics.
type measurement struct {
	target    Target
	sample    Sample
	processes Processes
	fs        *unix.Statfs_t // of the writable layer, nil when not known
	fsDevice  string
	fsUsage   uint64
	hasUsage  bool
	devices   []string // names, in the order of sample.Block
}

const second = 1_000_000_000

// one is the value of a metric without labels of its own.
func one(read func(m *measurement) uint64) func(*measurement, func(uint64, ...string)) {
	return func(m *measurement, add func(uint64, ...string)) { add(read(m)) }
}

func perDevice(read func(d *BlockDevice) uint64) func(*measurement, func(uint64, ...string)) {
	return func(m *measurement, add func(uint64, ...string)) {
		for i := range m.sample.Block {
			add(read(&m.sample.Block[i]), m.devices[i])
		}
	}
}

func onFS(read func(m *measurement) uint64) func(*measurement, func(uint64, ...string)) {
	return func(m *measurement, add func(uint64, ...string)) {
		if m.fs != nil {
			add(read(m), m.fsDevice)
		}
	}
}

func stalled(read func(p *Pressure) *PSI, full bool) func(*measurement, func(uint64, ...string)) {
	return func(m *measurement, add func(uint64, ...string)) {
		psi := read(&m.sample.Pressure)
		switch {
		case psi == nil:
		case full:
			add(psi.Full.Total / second)
		default:
			add(psi.Some.Total / second)
		}
	}
}

func cpuPressure(p *Pressure) *PSI    { return p.CPU }
func memoryPressure(p *Pressure) *PSI { return p.Memory }
func ioPressure(p *Pressure) *PSI     { return p.IO }

// containerMetrics are sorted by name.
var containerMetrics = []metric{
	{"container_blkio_device_usage_total", "Cumulative bytes read and written by device.", false, []string{"device", "major", "minor", "operation"}, "", func(m *measurement, add func(uint64, ...string)) {
		for i, d := range m.sample.Block {
			major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
			add(d.ReadBytes, m.devices[i], major, minor, "Read")
			add(d.WriteBytes, m.devices[i], major, minor, "Write")
		}
	}},
	{"container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", false, nil, "", one(func(m *measurement) uint64 { return m.sample.CPU.Periods })},
	{"container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", false, nil, "", one(func(m *measurement) uint64 { return m.sample.CPU.ThrottledPeriods })},
	{"container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled, in seconds.", false, nil, "", one(func(m *measurement) uint64 { return m.sample.CPU.ThrottledTime / second })},
	{"container_cpu_system_seconds_total", "Cumulative system CPU time consumed, in seconds.", false, nil, "", one(func(m *measurement) uint64 { return m.sample.CPU.System / second })},
	{"container_cpu_usage_seconds_total", "Cumulative CPU time consumed, in seconds.", false, []string{"cpu"}, "", func(m *measurement, add func(uint64, ...string)) { add(m.sample.CPU.Usage/second, "total") }},
	{"container_cpu_user_seconds_total", "Cumulative user CPU time consumed, in seconds.", false, nil, "", one(func(m *measurement) uint64 { return m.sample.CPU.User / second })},
	{"container_file_descriptors", "Number of open file descriptors of the container.", true, nil, "", one(func(m *measurement) uint64 { return m.processes.FDs })},
	{"container_fs_inodes_free", "Number of available inodes of the file system with the writable layer.", true, []string{"device"}, "", onFS(func(m *measurement) uint64 { return m.fs.Ffree })},
	{"container_fs_inodes_total", "Number of inodes of the file system with the writable layer.", true, []string{"device"}, "", onFS(func(m *measurement) uint64 { return m.fs.Files })},
	{"container_fs_limit_bytes", "Size of the file system with the writable layer, in bytes.", true, []string{"device"}, "", onFS(func(m *measurement) uint64 { return m.fs.Blocks * uint64(m.fs.Bsize) })},
	{"container_fs_reads_bytes_total", "Cumulative bytes read.", false, []string{"device"}, "", perDevice(func(d *BlockDevice) uint64 { return d.ReadBytes })},
	{"container_fs_reads_total", "Cumulative reads completed.", false, []string{"device"}, "", perDevice(func(d *BlockDevice) uint64 { return d.ReadOps })},
	{"container_fs_usage_bytes", "Bytes that the writable layer takes.", true, []string{"device"}, "", func(m *measurement, add func(uint64, ...string)) {
		if m.hasUsage {
			add(m.fsUsage, m.fsDevice)
		}
	}},
	{"container_fs_writes_bytes_total", "Cumulative bytes written.", false, []string{"device"}, "", perDevice(func(d *BlockDevice) uint64 { return d.WriteBytes })},
	{"container_fs_writes_total", "Cumulative writes completed.", false, []string{"device"}, "", perDevice(func(d *BlockDevice) uint64 { return d.WriteOps })},
	{"container_hugetlb_max_usage_bytes", "Maximum huge page usage recorded, in bytes.", true, []string{"pagesize"}, "v1:hugetlb", func(m *measurement, add func(uint64, ...string)) {
		for _, h := range m.sample.Hugetlb {
			add(h.MaxUsage, h.PageSize)
		}
	}},
	{"container_hugetlb_usage_bytes", "Current huge page usage, in bytes.", true, []string{"pagesize"}, "hugetlb", func(m *measurement, add func(uint64, ...string)) {
		for _, h := range m.sample.Hugetlb {
			add(h.Usage, h.PageSize)
		}
	}},
	{"container_last_seen", "Last time the container was seen, in seconds since 1970.", true, nil, "", one(func(m *measurement) uint64 { return unixSeconds(m.sample.Time.Unix()) })},
	{"container_memory_cache", "Page cache memory, in bytes.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.Cache })},
	{"container_memory_failcnt", "Number of memory usage hits limits.", false, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.FailCount })},
	{"container_memory_failures_total", "Cumulative count of memory allocation failures (page faults).", false, []string{"failure_type", "scope"}, "", func(m *measurement, add func(uint64, ...string)) {
		for _, scope := range []string{"container", "hierarchy"} {
			add(m.sample.Memory.PageFaults, "pgfault", scope)
			add(m.sample.Memory.MajorPageFaults, "pgmajfault", scope)
		}
	}},
	{"container_memory_kernel_usage", "Kernel memory, in bytes.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.Kernel })},
	{"container_memory_mapped_file", "Memory mapped files, in bytes.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.MappedFile })},
	{"container_memory_max_usage_bytes", "Maximum memory usage recorded, in bytes.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.MaxUsage })},
	{"container_memory_rss", "Anonymous memory, in bytes.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.RSS })},
	{"container_memory_swap", "Swap usage, in bytes.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.Swap })},
	{"container_memory_usage_bytes", "Current memory usage with the page cache, in bytes.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.Usage })},
	{"container_memory_working_set_bytes", "Current working set: usage without inactive page cache, in bytes.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.WorkingSet })},
	{"container_oom_events_total", "Processes of the container that were killed for lack of memory.", false, nil, "", one(func(m *measurement) uint64 { return m.sample.Memory.OOMKills })},
	{"container_pressure_cpu_stalled_seconds_total", "Total time in which no task could run for want of CPU, in seconds.", false, nil, "pressure", stalled(cpuPressure, true)},
	{"container_pressure_cpu_waiting_seconds_total", "Total time in which tasks waited for CPU, in seconds.", false, nil, "pressure", stalled(cpuPressure, false)},
	{"container_pressure_io_stalled_seconds_total", "Total time in which no task could run for want of I/O, in seconds.", false, nil, "pressure", stalled(ioPressure, true)},
	{"container_pressure_io_waiting_seconds_total", "Total time in which tasks waited for I/O, in seconds.", false, nil, "pressure", stalled(ioPressure, false)},
	{"container_pressure_memory_stalled_seconds_total", "Total time in which no task could run for want of memory, in seconds.", false, nil, "pressure", stalled(memoryPressure, true)},
	{"container_pressure_memory_waiting_seconds_total", "Total time in which tasks waited for memory, in seconds.", false, nil, "pressure", stalled(memoryPressure, false)},
	{"container_processes", "Number of processes in the container.", true, nil, "", one(func(m *measurement) uint64 { return m.processes.Processes })},
	{"container_sockets", "Number of open sockets of the container.", true, nil, "", one(func(m *measurement) uint64 { return m.processes.Sockets })},
	{"container_spec_cpu_period", "CPU period of the container, in microseconds.", true, nil, "", one(func(m *measurement) uint64 { return orDefault(m.target.Limits.CPUPeriod, 100_000) })},
	{"container_spec_cpu_quota", "CPU quota of the container, in microseconds.", true, nil, "", func(m *measurement, add func(uint64, ...string)) {
		if quota := m.target.Limits.CPUQuota; quota > 0 {
			add(uint64(quota))
		}
	}},
	{"container_spec_cpu_shares", "CPU share of the container.", true, nil, "", one(func(m *measurement) uint64 { return orDefault(m.target.Limits.CPUShares, 1024) })},
	{"container_spec_memory_limit_bytes", "Memory limit of the container, 0 without one.", true, nil, "", one(func(m *measurement) uint64 { return orDefault(m.target.Limits.MemoryLimit, 0) })},
	{"container_spec_memory_reservation_limit_bytes", "Memory reservation of the container, 0 without one.", true, nil, "", one(func(*measurement) uint64 { return 0 })},
	{"container_spec_memory_swap_limit_bytes", "Limit of memory plus swap of the container, 0 without one.", true, nil, "", one(func(m *measurement) uint64 { return swapLimit(&m.target.Limits) })},
	{"container_start_time_seconds", "Start time of the container, in seconds since 1970.", true, nil, "", one(func(m *measurement) uint64 { return unixSeconds(m.target.StartedAt.Unix()) })},
	{"container_threads", "Number of threads in the container.", true, nil, "", one(func(m *measurement) uint64 { return m.processes.Threads })},
	{"container_threads_max", "Most threads that the container may have, 0 without a limit.", true, nil, "", one(func(m *measurement) uint64 { return m.sample.Pids.Limit })},
	{"container_ulimits_soft", "Soft limits of the container's first process.", true, []string{"ulimit"}, "", func(m *measurement, add func(uint64, ...string)) {
		for name, limit := range m.processes.Ulimits {
			if limit >= 0 { // unlimited has no number here
				add(uint64(limit), name)
			}
		}
	}},
}

// networkMetric is a metric of one interface of the pod.
type networkMetric struct {
	name, help string
	value      func(n *NetInterface) uint64
}

var networkMetrics = []networkMetric{
	{"container_network_receive_bytes_total", "Cumulative bytes received.", func(n *NetInterface) uint64 { return n.RxBytes }},
	{"container_network_receive_errors_total", "Cumulative errors while receiving.", func(n *NetInterface) uint64 { return n.RxErrors }},
	{"container_network_receive_packets_dropped_total", "Cumulative packets dropped while receiving.", func(n *NetInterface) uint64 { return n.RxDropped }},
	{"container_network_receive_packets_total", "Cumulative packets received.", func(n *NetInterface) uint64 { return n.RxPackets }},
	{"container_network_transmit_bytes_total", "Cumulative bytes transmitted.", func(n *NetInterface) uint64 { return n.TxBytes }},
	{"container_network_transmit_errors_total", "Cumulative errors while transmitting.", func(n *NetInterface) uint64 { return n.TxErrors }},
	{"container_network_transmit_packets_dropped_total", "Cumulative packets dropped while transmitting.", func(n *NetInterface) uint64 { return n.TxDropped }},
	{"container_network_transmit_packets_total", "Cumulative packets transmitted.", func(n *NetInterface) uint64 { return n.TxPackets }},
}

func orDefault(n int64, unset uint64) uint64 {
	if n <= 0 {
		return unset
	}
	return uint64(n)
}

// swapLimit is that of memory plus swap: where none is named, a limit of memory is one of both.
func swapLimit(r *engine.Resources) uint64 {
	if r.MemorySwap == 0 {
		return orDefault(r.MemoryLimit, 0)
	}
	return orDefault(r.MemorySwap, 0)
}

func unixSeconds(s int64) uint64 { return uint64(max(s, 0)) }

// MetricDescriptors are the metrics that this host's kernel can give, sorted by name.
func (c *Collector) MetricDescriptors() []*runtimeapi.MetricDescriptor {
	var all []*runtimeapi.MetricDescriptor
	for _, m := range c.available() {
		all = append(all, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.labels)})
	}
	for _, m := range networkMetrics {
		all = append(all, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, []string{"interface"})})
	}
	slices.SortFunc(all, func(a, b *runtimeapi.MetricDescriptor) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (c *Collector) available() []metric {
	has := map[string]bool{"": true}
	var available []metric
	for _, m := range containerMetrics {
		if _, asked := has[m.needs]; !asked {
			controller, v1only := strings.CutPrefix(m.needs, "v1:")
			has[m.needs] = c.reader.tree.has(controller) && (!v1only || c.reader.CgroupVersion() == 1)
		}
		if has[m.needs] {
			available = append(available, m)
		}
	}
	return available
}

// PodMetrics is CRI PodSandboxMetrics: only metrics that MetricDescriptors declares, gathered live. A container that ended
// meanwhile is left out.
func (c *Collector) PodMetrics(p PodTarget) (*runtimeapi.PodSandboxMetrics, error) {
	answer := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.PodID}
	interfaces, _, err := c.interfaces(p)
	if err != nil {
		return nil, err
	}
	podID := p.CgroupPath
	if podID == "" {
		podID = p.PauseCgroup
	}
	base := []string{podContainer, podID, "", p.PodID, p.Namespace, p.PodName}
	for i := range interfaces {
		for _, m := range networkMetrics {
			answer.Metrics = append(answer.Metrics, &runtimeapi.Metric{
				Name: m.name, MetricType: runtimeapi.MetricType_COUNTER,
				LabelValues: slices.Concat(base, []string{interfaces[i].Name}), Value: value(m.value(&interfaces[i])),
			})
		}
	}
	available := c.available()
	for _, t := range p.Containers {
		m, err := c.measure(t)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		answer.ContainerMetrics = append(answer.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: t.ContainerID, Metrics: m.metrics(available)})
	}
	return answer, nil
}

func (m *measurement) metrics(available []metric) []*runtimeapi.Metric {
	t := &m.target
	base := []string{t.ContainerName, t.CgroupPath, t.Image, t.ContainerID, t.Namespace, t.PodName}
	var all []*runtimeapi.Metric
	for _, metric := range available {
		kind := runtimeapi.MetricType_COUNTER
		if metric.gauge {
			kind = runtimeapi.MetricType_GAUGE
		}
		metric.values(m, func(n uint64, labels ...string) {
			all = append(all, &runtimeapi.Metric{Name: metric.name, MetricType: kind, LabelValues: slices.Concat(base, labels), Value: value(n)})
		})
	}
	return all
}

func (c *Collector) measure(t Target) (*measurement, error) {
	m := &measurement{target: t}
	var err error
	if m.sample, err = c.reader.sample(t.CgroupPath, t.ContainerID, everything); err != nil {
		return nil, err
	}
	if m.processes, err = c.reader.Processes(t.CgroupPath); err != nil {
		return nil, err
	}
	for _, d := range m.sample.Block {
		m.devices = append(m.devices, c.reader.deviceName(d.Major, d.Minor))
	}
	m.fsUsage, _, _, m.hasUsage = c.disk.Usage(t.ContainerID)
	dir := c.disk.dir(t.ContainerID)
	if dir == "" {
		dir = t.Mountpoint
	}
	if dir == "" {
		return m, nil
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(dir, &fs) == nil && unix.Stat(dir, &st) == nil {
		m.fs = &fs
		m.fsDevice = c.reader.deviceName(uint64(unix.Major(uint64(st.Dev))), uint64(unix.Minor(uint64(st.Dev))))
	}
	return m, nil
}

// deviceName is "/dev/sda1", or the number where the kernel knows no name.
func (r *Reader) deviceName(major, minor uint64) string {
	number := strconv.FormatUint(major, 10) + ":" + strconv.FormatUint(minor, 10)
	target, err := os.Readlink(r.root + "/sys/dev/block/" + number)
	if err != nil {
		return number
	}
	return "/dev/" + filepath.Base(target)
}
