package stats

import (
	"errors"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Collector builds CRI answers. Its methods may be called from many goroutines.
type Collector struct {
	reader *Reader
	disk   *Disk
}

// NewCollector joins the two sources.
func NewCollector(r *Reader, d *Disk) *Collector { return &Collector{reader: r, disk: d} }

// ContainerStats is CRI ContainerStats. A container without a cgroup (exited, or ending at this moment) has attributes and the
// writable layer only.
func (c *Collector) ContainerStats(t Target) (*runtimeapi.ContainerStats, error) {
	return c.containerStats(t, ofContainer)
}

func (c *Collector) containerStats(t Target, extent extent) (*runtimeapi.ContainerStats, error) {
	stats := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          t.ContainerID,
			Metadata:    &runtimeapi.ContainerMetadata{Name: t.ContainerName, Attempt: t.Attempt},
			Labels:      t.Labels,
			Annotations: t.Annotations,
		},
		WritableLayer: c.writableLayer(t),
	}
	sample, err := c.reader.sample(t.CgroupPath, t.ContainerID, extent)
	if errors.Is(err, errdefs.ErrNotFound) {
		return stats, nil
	}
	if err != nil {
		return nil, err
	}
	stats.Cpu, stats.Memory, stats.Swap, stats.Io = cpuUsage(&sample), memoryUsage(&sample), swapUsage(&sample), ioUsage(&sample)
	return stats, nil
}

func (c *Collector) writableLayer(t Target) *runtimeapi.FilesystemUsage {
	bytes, inodes, at, ok := c.disk.Usage(t.ContainerID)
	if !ok {
		return nil
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: t.Mountpoint},
		UsedBytes:  value(bytes),
		InodesUsed: value(inodes),
	}
}

// PodSandboxStats is CRI PodSandboxStats with its containers.
func (c *Collector) PodSandboxStats(p PodTarget) (*runtimeapi.PodSandboxStats, error) {
	linux := &runtimeapi.LinuxPodSandboxStats{}
	extent := ofContainer
	if p.CgroupPath == "" {
		extent = ofPod // they are summed up
	}
	for _, t := range p.Containers {
		container, err := c.containerStats(t, extent)
		if err != nil {
			return nil, err
		}
		linux.Containers = append(linux.Containers, container)
	}
	sample, err := c.podSample(p)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return nil, err
	}
	if err == nil {
		linux.Cpu, linux.Memory, linux.Io = cpuUsage(&sample), memoryUsage(&sample), ioUsage(&sample)
		linux.Process = &runtimeapi.ProcessUsage{Timestamp: sample.Time.UnixNano(), ProcessCount: value(sample.Pids.Current)}
	}
	if linux.Network, err = c.networkUsage(p); err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          p.PodID,
			Metadata:    &runtimeapi.PodSandboxMetadata{Name: p.PodName, Namespace: p.Namespace, Uid: p.UID, Attempt: p.Attempt},
			Labels:      p.Labels,
			Annotations: p.Annotations,
		},
		Linux: linux,
	}, nil
}

// podSample is the pod's own cgroup, or the sum of what runs in the pod where it has none.
func (c *Collector) podSample(p PodTarget) (Sample, error) {
	if p.CgroupPath != "" {
		return c.reader.sample(p.CgroupPath, p.PodID, ofPod)
	}
	var sum Sample
	found := false
	for i := range len(p.Containers) + 1 {
		path, owner := p.PauseCgroup, p.PodID
		if i > 0 {
			path, owner = p.Containers[i-1].CgroupPath, p.Containers[i-1].ContainerID
		}
		s, err := c.reader.sample(path, owner, ofPod)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return Sample{}, err
		}
		if !found {
			sum.Time, sum.CPU.HasRate = s.Time, true
		}
		found = true
		sum.add(&s)
	}
	if !found {
		return Sample{}, errdefs.ErrNotFound
	}
	return sum, nil
}

// add sums what the CRI shows of pods. There is no limit over a sum, and pressure does not add up.
func (s *Sample) add(o *Sample) {
	if o.Time.Before(s.Time) {
		s.Time = o.Time
	}
	s.CPU.Usage += o.CPU.Usage
	s.CPU.NanoCores += o.CPU.NanoCores
	s.CPU.HasRate = s.CPU.HasRate && o.CPU.HasRate
	s.Memory.Usage += o.Memory.Usage
	s.Memory.WorkingSet += o.Memory.WorkingSet
	s.Memory.RSS += o.Memory.RSS
	s.Memory.PageFaults += o.Memory.PageFaults
	s.Memory.MajorPageFaults += o.Memory.MajorPageFaults
	s.Pids.Current += o.Pids.Current
}

// networkUsage is nil for the host's network, for a pod whose process has gone, and where there is no interface: a network
// without a default interface ends the kubelet with a panic (criInterfaceToSummary of 1.37).
func (c *Collector) networkUsage(p PodTarget) (*runtimeapi.NetworkUsage, error) {
	interfaces, at, err := c.interfaces(p)
	if err != nil || len(interfaces) == 0 {
		return nil, err
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: at.UnixNano()}
	first := defaultInterface(interfaces)
	for i, n := range interfaces {
		u := &runtimeapi.NetworkInterfaceUsage{
			Name: n.Name, RxBytes: value(n.RxBytes), RxErrors: value(n.RxErrors), TxBytes: value(n.TxBytes), TxErrors: value(n.TxErrors),
		}
		if i == first {
			usage.DefaultInterface = u
		} else {
			usage.Interfaces = append(usage.Interfaces, u)
		}
	}
	return usage, nil
}

func (c *Collector) interfaces(p PodTarget) ([]NetInterface, time.Time, error) {
	if p.HostNetwork || p.PID == 0 {
		return nil, time.Time{}, nil
	}
	interfaces, at, err := c.reader.network(p.PodID, p.PID)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, time.Time{}, nil
	}
	return interfaces, at, err
}

// defaultInterface is eth0, else the first.
func defaultInterface(interfaces []NetInterface) int {
	for i, n := range interfaces {
		if n.Name == "eth0" {
			return i
		}
	}
	return 0
}

func cpuUsage(s *Sample) *runtimeapi.CpuUsage {
	u := &runtimeapi.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(s.CPU.Usage), Psi: psiStats(s.Pressure.CPU)}
	if s.CPU.HasRate {
		u.UsageNanoCores = value(s.CPU.NanoCores)
	}
	return u
}

func memoryUsage(s *Sample) *runtimeapi.MemoryUsage {
	m := &s.Memory
	u := &runtimeapi.MemoryUsage{
		Timestamp:       s.Time.UnixNano(),
		WorkingSetBytes: value(m.WorkingSet),
		UsageBytes:      value(m.Usage),
		RssBytes:        value(m.RSS),
		PageFaults:      value(m.PageFaults),
		MajorPageFaults: value(m.MajorPageFaults),
		Psi:             psiStats(s.Pressure.Memory),
	}
	if m.Limit > 0 {
		u.AvailableBytes = value(m.Available)
	}
	return u
}

// swapUsage is nil where the kernel does not account swap.
func swapUsage(s *Sample) *runtimeapi.SwapUsage {
	m := &s.Memory
	if !m.HasSwap {
		return nil
	}
	u := &runtimeapi.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(m.Swap)}
	if m.HasSwapLimit {
		u.SwapAvailableBytes = value(m.SwapLimit - min(m.SwapLimit, m.Swap))
	}
	return u
}

func ioUsage(s *Sample) *runtimeapi.IoUsage {
	if s.Pressure.IO == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: s.Time.UnixNano(), Psi: psiStats(s.Pressure.IO)}
}

func psiStats(p *PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(d PSIData) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: d.Total, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &runtimeapi.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

func value(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
