package spec

import (
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/host"
)

// CheckOverlay refuses limits of a plugin that this host cannot set, and makes the rest fit: swap where it cannot be
// limited.
func CheckOverlay(h *host.Host, r *specs.LinuxResources) error {
	if err := checkResources(h, &engine.Resources{Unified: r.Unified}); err != nil {
		return err
	}
	if r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != "") && !h.Has("cpuset") {
		return unfit("cpuset_cpus and cpuset_mems need the cgroup controller cpuset, which this host does not have")
	}
	for _, l := range r.HugepageLimits {
		if !slices.Contains(h.HugePageSizes, l.Pagesize) {
			return unfit("a limit of huge pages of %.20q cannot be set on this host", l.Pagesize)
		}
	}
	if m := r.Memory; m != nil {
		switch {
		case !h.Swap:
			m.Swap = nil
		case m.Limit != nil && m.Swap == nil:
			// Memory and swap together cannot be less than memory.
			m.Swap = m.Limit
		}
	}
	return nil
}

// Overlay is base with those limits that over names set as it says; neither is changed, and they share nothing that is.
// Devices are base's. Both may be nil.
func Overlay(base, over *specs.LinuxResources) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	for _, r := range []*specs.LinuxResources{base, over} {
		if r == nil {
			continue
		}
		out.CPU, out.Memory = overlayCPU(out.CPU, r.CPU), overlayMemory(out.Memory, r.Memory)
		out.Pids = first(r.Pids, out.Pids)
		for _, l := range r.HugepageLimits {
			out.HugepageLimits = append(slices.DeleteFunc(out.HugepageLimits, func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == l.Pagesize }), l)
		}
		if len(r.Unified) > 0 && out.Unified == nil {
			out.Unified = map[string]string{}
		}
		maps.Copy(out.Unified, r.Unified)
	}
	if base != nil {
		out.Devices, out.BlockIO, out.Network, out.Rdma = base.Devices, base.BlockIO, base.Network, base.Rdma
	}
	return out
}

// Lift is limits with what lifts those that over names and limits does not: those of an update with over that was refused, which had
// no limit before.
func Lift(h *host.Host, limits, over *specs.LinuxResources) *specs.LinuxResources {
	if over == nil {
		return limits
	}
	set := &engine.Resources{Unified: over.Unified}
	if cpu := over.CPU; cpu != nil {
		set.CPUShares, set.CPUQuota, set.CPUPeriod = int64(value(cpu.Shares)), value(cpu.Quota), int64(value(cpu.Period))
		set.CpusetCPUs, set.CpusetMems = cpu.Cpus, cpu.Mems
	}
	if over.Memory != nil {
		set.MemoryLimit = value(over.Memory.Limit)
	}
	for _, l := range over.HugepageLimits {
		set.Hugepages = append(set.Hugepages, engine.HugepageLimit{PageSize: l.Pagesize})
	}
	lifted := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}
	lift(h, lifted, &engine.Resources{}, set)
	if over.Pids != nil {
		lifted.Pids = &specs.LinuxPids{Limit: ptr(int64(-1))}
	}
	return Overlay(lifted, limits)
}

// value is 0 of nil.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func overlayCPU(base, over *specs.LinuxCPU) *specs.LinuxCPU {
	if over == nil {
		return base
	}
	out := *over
	if base != nil {
		out.Shares, out.Quota, out.Burst = first(over.Shares, base.Shares), first(over.Quota, base.Quota), first(over.Burst, base.Burst)
		out.Period, out.Idle = first(over.Period, base.Period), first(over.Idle, base.Idle)
		out.RealtimeRuntime, out.RealtimePeriod = first(over.RealtimeRuntime, base.RealtimeRuntime), first(over.RealtimePeriod, base.RealtimePeriod)
		if out.Cpus == "" {
			out.Cpus = base.Cpus
		}
		if out.Mems == "" {
			out.Mems = base.Mems
		}
	}
	return &out
}

func overlayMemory(base, over *specs.LinuxMemory) *specs.LinuxMemory {
	if over == nil {
		return base
	}
	out := *over
	if base != nil {
		out.Limit, out.Reservation, out.Swap = first(over.Limit, base.Limit), first(over.Reservation, base.Reservation), first(over.Swap, base.Swap)
		out.KernelTCP = first(over.KernelTCP, base.KernelTCP)
		out.Swappiness, out.DisableOOMKiller = first(over.Swappiness, base.Swappiness), first(over.DisableOOMKiller, base.DisableOOMKiller)
		out.UseHierarchy, out.CheckBeforeUpdate = first(over.UseHierarchy, base.UseHierarchy), first(over.CheckBeforeUpdate, base.CheckBeforeUpdate)
	}
	return &out
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// Yield is a plugin's limits without those that CRI changes: the later word counts.
func Yield(over *specs.LinuxResources, before, after *engine.Resources) *specs.LinuxResources {
	if over == nil {
		return nil
	}
	out := Overlay(over, nil)
	if out.CPU != nil {
		cpu := *out.CPU
		out.CPU = &cpu
		drop(&cpu.Shares, before.CPUShares != after.CPUShares)
		drop(&cpu.Quota, before.CPUQuota != after.CPUQuota)
		drop(&cpu.Period, before.CPUPeriod != after.CPUPeriod)
		if before.CpusetCPUs != after.CpusetCPUs {
			cpu.Cpus = ""
		}
		if before.CpusetMems != after.CpusetMems {
			cpu.Mems = ""
		}
	}
	if out.Memory != nil {
		memory := *out.Memory
		out.Memory = &memory
		changed := before.MemoryLimit != after.MemoryLimit || before.MemorySwap != after.MemorySwap
		drop(&memory.Limit, changed)
		drop(&memory.Swap, changed)
	}
	if !slices.Equal(before.Hugepages, after.Hugepages) {
		out.HugepageLimits = nil
	}
	maps.DeleteFunc(out.Unified, func(file, _ string) bool { return before.Unified[file] != after.Unified[file] })
	return out
}

func drop[T any](p **T, when bool) {
	if when {
		*p = nil
	}
}
