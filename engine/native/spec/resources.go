package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/host"
)

// swapMax is the cgroup v2 file of the swap limit.
const swapMax = "memory.swap.max"

// resources of a new container: what is not asked for stays the kernel's default.
func (b *builder) resources() error {
	limits, err := lowerResources(b.h, &b.c.Spec.Resources)
	if err != nil {
		return err
	}
	limits.Devices = b.s.Linux.Resources.Devices
	b.s.Linux.Resources = limits
	return nil
}

// Resources are the limits that an update sets: all of r, and for what r leaves open and previous had, what lifts it.
// oom_score_adj is not among them, OCI has it in the process.
func Resources(h *host.Host, r, previous *engine.Resources) (*specs.LinuxResources, error) {
	out, err := lowerResources(h, r)
	if err != nil {
		return nil, fmt.Errorf("resources: %w", err)
	}
	if previous != nil {
		lift(h, out, r, previous)
	}
	return out, nil
}

// lift adds to out, which is r, what lifts those limits of previous that r does not have.
func lift(h *host.Host, out *specs.LinuxResources, r, previous *engine.Resources) {
	liftCPU(h, out.CPU, r, previous)
	liftMemory(h, out.Memory, r, previous)
	for _, old := range previous.Hugepages {
		if !slices.ContainsFunc(r.Hugepages, func(l engine.HugepageLimit) bool { return l.PageSize == old.PageSize }) && slices.Contains(h.HugePageSizes, old.PageSize) {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: old.PageSize, Limit: noLimit})
		}
	}
	for _, file := range slices.Sorted(maps.Keys(previous.Unified)) {
		if value, known := unifiedDefault(file); known && h.CgroupV2 {
			if _, kept := out.Unified[file]; !kept {
				setUnified(out, file, value)
			}
		}
	}
}

// The kernel's defaults, in OCI's words.
const (
	defaultShares = 1024
	defaultPeriod = 100000
	// noLimit is the highest number that cgroup v1 takes for "no limit" and v2 takes at all: whole pages in 63 bits.
	noLimit = 9223372036854771712
)

func liftCPU(h *host.Host, cpu *specs.LinuxCPU, r, previous *engine.Resources) {
	if r.CPUShares == 0 && previous.CPUShares != 0 {
		cpu.Shares = ptr(uint64(defaultShares))
	}
	if r.CPUPeriod == 0 && previous.CPUPeriod != 0 {
		cpu.Period = ptr(uint64(defaultPeriod))
	}
	if r.CPUQuota == 0 && previous.CPUQuota != 0 {
		cpu.Quota = ptr(int64(-1))
	}
	if r.CpusetCPUs == "" && previous.CpusetCPUs != "" {
		cpu.Cpus = h.CPUs
	}
	if r.CpusetMems == "" && previous.CpusetMems != "" {
		cpu.Mems = h.MemoryNodes
	}
}

func liftMemory(h *host.Host, memory *specs.LinuxMemory, r, previous *engine.Resources) {
	if r.MemoryLimit == 0 && previous.MemoryLimit != 0 {
		memory.Limit = ptr(int64(-1))
		if h.Swap {
			memory.Swap = ptr(int64(-1))
		}
	}
}

func lowerResources(h *host.Host, r *engine.Resources) (*specs.LinuxResources, error) {
	if err := checkResources(h, r); err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems}, Memory: &specs.LinuxMemory{}}
	if r.CPUShares != 0 {
		out.CPU.Shares = ptr(uint64(r.CPUShares))
	}
	if r.CPUPeriod != 0 {
		out.CPU.Period = ptr(uint64(r.CPUPeriod))
	}
	if r.CPUQuota != 0 {
		out.CPU.Quota = ptr(max(r.CPUQuota, -1))
	}
	for _, limit := range r.Hugepages {
		// The kubelet names every page size that a node could have, with limit 0.
		if slices.Contains(h.HugePageSizes, limit.PageSize) {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: limit.PageSize, Limit: limit.Limit})
		}
	}
	for file, value := range r.Unified {
		setUnified(out, file, value)
	}
	lowerMemory(h, r, out)
	return out, nil
}

// lowerMemory: without a limit of memory there is none of swap to be set with it, and CRI's 0 means no swap.
func lowerMemory(h *host.Host, r *engine.Resources, out *specs.LinuxResources) {
	if r.MemoryLimit != 0 {
		out.Memory.Limit = ptr(r.MemoryLimit)
	}
	if !h.Swap {
		return
	}
	switch {
	case r.MemoryLimit != 0 && r.MemorySwap == 0:
		out.Memory.Swap = ptr(r.MemoryLimit)
	case r.MemorySwap != 0:
		out.Memory.Swap = ptr(r.MemorySwap)
	case !h.CgroupV2:
		// On v1 a swappiness of 0 keeps a container without limit out of swap.
		out.Memory.Swappiness = ptr(uint64(0))
	}
	// Said in the words of v2 too: of a difference of 0 the library tells systemd nothing, which would then give the unit
	// its former swap, or all, when it sets its units' values again (daemon-reload).
	if none := out.Memory.Swap == nil || *out.Memory.Swap == r.MemoryLimit; none && h.CgroupV2 {
		if _, given := r.Unified[swapMax]; !given {
			setUnified(out, swapMax, "0")
		}
	}
}

func checkResources(h *host.Host, r *engine.Resources) error {
	switch {
	case r.MemorySwap > 0 && r.MemoryLimit == 0:
		return invalid("memory_swap_limit %d without a memory limit", r.MemorySwap)
	case r.MemorySwap > 0 && r.MemorySwap != r.MemoryLimit && !h.Swap:
		return unfit("memory_swap_limit %d: limits of swap cannot be set on this host", r.MemorySwap)
	case (r.CpusetCPUs != "" || r.CpusetMems != "") && !h.Has("cpuset"):
		return unfit("cpuset_cpus and cpuset_mems need the cgroup controller cpuset, which this host does not have")
	case len(r.Unified) > 0 && !h.CgroupV2:
		return invalid("unified resources need cgroup v2, this host has v1")
	}
	if err := r.Check(); err != nil {
		return err
	}
	for _, limit := range r.Hugepages {
		if limit.Limit > 0 && !slices.Contains(h.HugePageSizes, limit.PageSize) {
			return unfit("a limit of huge pages of %s cannot be set on this host", limit.PageSize)
		}
	}
	return nil
}

func unfit(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}

// unifiedDefault is what a cgroup v2 file holds before anybody writes it, for the files whose names tell.
func unifiedDefault(file string) (value string, known bool) {
	switch {
	case file == "cpu.max":
		return "max 100000", true
	case strings.HasSuffix(file, ".max"), strings.HasSuffix(file, ".high"):
		return "max", true
	case strings.HasSuffix(file, ".min"), strings.HasSuffix(file, ".low"), file == "memory.oom.group":
		return "0", true
	case file == "cpu.weight":
		return "100", true
	}
	return "", false
}

func setUnified(r *specs.LinuxResources, file, value string) {
	if r.Unified == nil {
		r.Unified = map[string]string{}
	}
	r.Unified[file] = value
}

func ptr[T any](v T) *T { return &v }
