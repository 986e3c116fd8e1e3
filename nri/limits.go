package nri

import (
	"fmt"
	"reflect"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// resourcesToNRI is what CRI asks for a pod.
func resourcesToNRI(r *engine.Resources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems}, Unified: r.Unified}
	if r.CPUShares != 0 {
		out.Cpu.Shares = api.UInt64(uint64(r.CPUShares))
	}
	if r.CPUQuota != 0 {
		out.Cpu.Quota = api.Int64(r.CPUQuota)
	}
	if r.CPUPeriod != 0 {
		out.Cpu.Period = api.UInt64(uint64(r.CPUPeriod))
	}
	if r.MemoryLimit != 0 {
		out.Memory.Limit = api.Int64(r.MemoryLimit)
	}
	if r.MemorySwap != 0 {
		out.Memory.Swap = api.Int64(r.MemorySwap)
	}
	for _, l := range r.Hugepages {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: l.PageSize, Limit: l.Limit})
	}
	return out
}

// limitsToNRI takes no blkio limits, which NRI has no words for.
func limitsToNRI(r *specs.LinuxResources) *api.LinuxResources {
	return api.FromOCILinuxResources(r, nil)
}

// limitsFromNRI is nil where nothing is set. Devices are no limits, and left out.
func limitsFromNRI(r *api.LinuxResources) (*specs.LinuxResources, error) {
	if r == nil {
		return nil, nil
	}
	if err := checkLimits(r); err != nil {
		return nil, err
	}
	out := r.ToOCI()
	out.Devices = nil
	if out.Memory != nil && reflect.ValueOf(*out.Memory).IsZero() {
		out.Memory = nil
	}
	if out.CPU != nil && reflect.ValueOf(*out.CPU).IsZero() {
		out.CPU = nil
	}
	if reflect.ValueOf(*out).IsZero() {
		return nil, nil
	}
	return out, nil
}

func checkLimits(r *api.LinuxResources) error {
	switch {
	case r.GetBlockioClass() != nil:
		return unsupported("block I/O class %.80q", r.GetBlockioClass().GetValue())
	case r.GetRdtClass() != nil:
		return unsupported("RDT class %.80q", r.GetRdtClass().GetValue())
	}
	return nil
}

// unsupported refuses what other runtimes pass over in silence: the plugin would believe that it is in effect.
func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+" is not supported by the native engine: %w", append(args, errdefs.ErrNotImplemented)...)
}
