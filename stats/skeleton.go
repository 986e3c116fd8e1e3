package stats

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Reader reads cgroups and network counters. Its methods may be called from many goroutines.
type Reader struct{}

// NewReader reads below the file system root ("/" but for tests) and finds out which cgroup version is mounted there.
func NewReader(root string) (*Reader, error) { return &Reader{}, nil }

// CgroupVersion is 1 (also hybrid) or 2.
func (r *Reader) CgroupVersion() int { return 0 }

// Container reads the cgroup of a container or pod: path as in /proc/PID/cgroup. ErrNotFound when it is gone. A sample
// younger than MaxAge is returned again.
func (r *Reader) Container(cgroupPath string) (Sample, error) { return Sample{}, errdefs.ErrNotFound }

// Network reads the interfaces of the network namespace of a process, without lo. ErrNotFound when it is gone.
func (r *Reader) Network(pid int) ([]NetInterface, time.Time, error) {
	return nil, time.Time{}, errdefs.ErrNotFound
}

// Processes counts what the processes of a cgroup hold. It opens a few files per process: for metrics, not for lists.
func (r *Reader) Processes(cgroupPath string) (Processes, error) {
	return Processes{}, errdefs.ErrNotFound
}

// Forget drops what is kept of a cgroup; call it when the container is removed.
func (r *Reader) Forget(cgroupPath string) {}

// ParentCgroup is the cgroup above, "" at the root.
func ParentCgroup(cgroupPath string) string { return "" }

// Disk measures directories in the background.
type Disk struct{}

// NewDisk makes a sampler that does nothing until Run.
func NewDisk() *Disk { return &Disk{} }

// Run walks the watched directories until ctx ends: each once at once, then again at a pace that follows how long a walk
// takes. One walk at a time.
func (d *Disk) Run(ctx context.Context) { <-ctx.Done() }

// Watch begins to measure dir for id (a container id; UpperDir of engine.ContainerStatus). Again with the same dir: nothing.
func (d *Disk) Watch(id, dir string) {}

// Forget ends it.
func (d *Disk) Forget(id string) {}

// Usage is the last measurement and when it was taken; ok is false before the first one.
func (d *Disk) Usage(id string) (bytes, inodes uint64, at time.Time, ok bool) { return }

// Collector builds CRI answers.
type Collector struct{}

// NewCollector joins the two sources.
func NewCollector(r *Reader, d *Disk) *Collector { return &Collector{} }

// ContainerStats is CRI ContainerStats of a running container; one whose cgroup is gone has attributes and the writable
// layer only. ErrNotFound never: an exited container still has its layer.
func (c *Collector) ContainerStats(t Target) (*runtimeapi.ContainerStats, error) {
	return nil, errdefs.ErrNotFound
}

// PodSandboxStats is CRI PodSandboxStats with its containers.
func (c *Collector) PodSandboxStats(p PodTarget) (*runtimeapi.PodSandboxStats, error) {
	return nil, errdefs.ErrNotFound
}

// PodMetrics is CRI PodSandboxMetrics: only metrics that MetricDescriptors declares.
func (c *Collector) PodMetrics(p PodTarget) (*runtimeapi.PodSandboxMetrics, error) {
	return nil, errdefs.ErrNotFound
}

// MetricDescriptors are the metrics that this host's kernel can give, sorted by name.
func (c *Collector) MetricDescriptors() []*runtimeapi.MetricDescriptor { return nil }
