// Package stats reads what pods and containers use, from cgroup files (v1, hybrid and v2), /proc and the writable
// layers, and shapes it into CRI statistics and metrics. No engine is asked.
//
// A caller makes one Reader (files are read at the call; those of lists stay open until Forget) and one Disk (walks the
// writable layers in the background, because a walk takes seconds), joins them in a Collector, and gives it a Target per
// container and a PodTarget per pod from its own index. Everything the builders return carries the time at which it
// was read: at most MaxAge old, except disk usage, whose timestamp is that of its walk.
package stats

import (
	"time"

	"crishim/engine"
)

// MaxAge is how old a cgroup or network sample may be when it is returned.
const MaxAge = time.Second

// Target is a container as the statistics need it.
type Target struct {
	PodID         string
	PodName       string
	Namespace     string
	ContainerID   string
	ContainerName string
	Image         string // as in CRI ContainerStatus.image: what the user asked for
	Attempt       uint32
	Labels        map[string]string
	Annotations   map[string]string
	// CgroupPath and PID are those of engine.ContainerStatus: "" and 0 unless running.
	CgroupPath string
	PID        int
	// Mountpoint is the file system that holds the writable layer ("" when unknown), for FilesystemUsage.fs_id.
	Mountpoint string
	// Limits are the resources in effect, StartedAt the start of the container.
	Limits    engine.Resources
	StartedAt time.Time
}

// PodTarget is a pod sandbox as the statistics need it.
type PodTarget struct {
	PodID       string
	PodName     string
	Namespace   string
	UID         string
	Attempt     uint32
	Labels      map[string]string
	Annotations map[string]string
	// CgroupPath is the pod's own cgroup, above those of its containers (see ParentCgroup); "" where several pods share the
	// parent (none was asked for, or the same for several): the pod's figures are then the sum of its containers and of PauseCgroup.
	CgroupPath  string
	PauseCgroup string // cgroup of the process that holds the namespaces, "" when there is none
	// PID is a process in the pod's network namespace, 0 when there is none. HostNetwork pods have no network figures.
	PID         int
	HostNetwork bool
	StartedAt   time.Time
	Containers  []Target // running ones
}

// Sample is one reading of a cgroup. Counters only grow within the life of the cgroup.
type Sample struct {
	Time     time.Time
	CPU      CPU
	Memory   Memory
	Pids     Pids
	Block    []BlockDevice
	Hugetlb  []Hugetlb
	Pressure Pressure
}

// CPU is time in nanoseconds, summed over the cores.
type CPU struct {
	Usage, User, System uint64
	// NanoCores is the usage rate between this sample and an older one (≥ 1 s apart), in core-nanoseconds per second;
	// HasRate is false until there are two.
	NanoCores uint64
	HasRate   bool
	// Periods, ThrottledPeriods and ThrottledTime (ns) count the quota's effect.
	Periods, ThrottledPeriods, ThrottledTime uint64
}

// Memory is in bytes, faults and events are counts.
type Memory struct {
	Usage, MaxUsage uint64
	// WorkingSet is usage without inactive file cache: what the kubelet evicts by.
	WorkingSet uint64
	// Limit is 0 without one; Available is Limit − WorkingSet, 0 without a limit.
	Limit, Available               uint64
	RSS, Cache, MappedFile         uint64
	Kernel                         uint64
	Swap                           uint64
	SwapLimit                      uint64 // swap alone; 0 without one
	HasSwap, HasSwapLimit          bool
	PageFaults, MajorPageFaults    uint64
	FailCount, OOMEvents, OOMKills uint64
}

// Pids counts tasks (threads). Limit is 0 without one.
type Pids struct{ Current, Limit uint64 }

// BlockDevice is the I/O of one device.
type BlockDevice struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// Hugetlb is the use of one huge page size, "2MB" or "1GB", in bytes.
type Hugetlb struct {
	PageSize        string
	Usage, MaxUsage uint64
}

// Pressure is PSI; nil where the kernel or the cgroup version has none. On hybrid hosts it is read for metrics only: CRI's
// statistics have it of cgroup v2 alone.
type Pressure struct{ CPU, Memory, IO *PSI }

// PSI is one resource's pressure.
type PSI struct{ Some, Full PSIData }

// PSIData has the total in nanoseconds and averages in percent.
type PSIData struct {
	Total                uint64
	Avg10, Avg60, Avg300 float64
}

// NetInterface is one line of /proc/PID/net/dev.
type NetInterface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Processes is what the processes of a cgroup hold.
type Processes struct {
	Processes, Threads uint64
	FDs, Sockets       uint64
	// Ulimits are the soft limits of the first process by name as in cAdvisor ("max_open_files"); -1 is unlimited.
	Ulimits map[string]int64
}
