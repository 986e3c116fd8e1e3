package translator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// UpdateResources applies an UpdateContainerResources request to the current resources. What the request leaves at zero
// stays as it is ("not specified": the kubelet's CPU manager sends nothing but cpuset_cpus), with two exceptions. Period
// and quota are one limit, so a request that names either sets both: the kubelet takes a CPU limit away by a period
// without a quota. And -1 in cpu_quota or memory_limit_in_bytes takes the limit away. A container that had no swap goes
// on having none when its memory limit changes. In the result a zero is no limit, as engine.Resources has it.
func UpdateResources(current engine.Resources, update *runtimeapi.LinuxContainerResources) (engine.Resources, error) {
	var p problems
	in := eachResource(&p, "linux", update)
	if err := p.err("update of resources"); err != nil {
		return current, err
	}
	out := current
	if update.GetCpuPeriod() != 0 || update.GetCpuQuota() != 0 {
		out.CPUQuota = in.CPUQuota
		out.CPUPeriod = cmp.Or(in.CPUPeriod, current.CPUPeriod)
	}
	out.CPUShares = cmp.Or(in.CPUShares, current.CPUShares)
	out.CpusetCPUs = cmp.Or(in.CpusetCPUs, current.CpusetCPUs)
	out.CpusetMems = cmp.Or(in.CpusetMems, current.CpusetMems)
	out.OOMScoreAdj = cmp.Or(in.OOMScoreAdj, current.OOMScoreAdj)
	if update.GetMemoryLimitInBytes() != 0 {
		out.MemoryLimit = in.MemoryLimit
		out.MemorySwap = swapAfter(current, out.MemoryLimit)
	}
	if in.MemorySwap != 0 {
		out.MemorySwap = in.MemorySwap
	}
	checkSwap(&p, "linux", &out)
	if len(in.Hugepages) > 0 {
		out.Hugepages = mergeHugepages(current.Hugepages, in.Hugepages)
	}
	if len(in.Unified) > 0 {
		out.Unified = maps.Clone(current.Unified)
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		maps.Copy(out.Unified, in.Unified)
	}
	return out, p.err("update of resources")
}

// swapAfter is the memory plus swap that belongs to a new memory limit when the request names none.
func swapAfter(current engine.Resources, limit int64) int64 {
	switch {
	case current.MemorySwap == unlimited:
		return unlimited
	case limit == 0 || current.MemorySwap == 0:
		return 0
	case current.MemorySwap == current.MemoryLimit:
		return limit
	}
	return limit + current.MemorySwap - current.MemoryLimit // the same amount of swap as before
}

func mergeHugepages(current, update []engine.HugepageLimit) []engine.HugepageLimit {
	out := slices.Clone(current)
	for _, h := range update {
		if i := slices.IndexFunc(out, func(o engine.HugepageLimit) bool { return o.PageSize == h.PageSize }); i >= 0 {
			out[i] = h
		} else {
			out = append(out, h)
		}
	}
	return out
}

// ResourcesToCRI is the inverse of resources, but for a limit of memory alone: it is one of swap too, which is told.
func ResourcesToCRI(r engine.Resources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{
		CpuPeriod:              r.CPUPeriod,
		CpuQuota:               r.CPUQuota,
		CpuShares:              r.CPUShares,
		MemoryLimitInBytes:     r.MemoryLimit,
		OomScoreAdj:            r.OOMScoreAdj,
		CpusetCpus:             r.CpusetCPUs,
		CpusetMems:             r.CpusetMems,
		Unified:                r.Unified,
		MemorySwapLimitInBytes: r.MemorySwap,
	}
	if r.MemorySwap == 0 {
		out.MemorySwapLimitInBytes = r.MemoryLimit
	}
	for _, h := range r.Hugepages {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}

// The kernel's bounds.
const (
	unlimited      = -1
	minCFSMicros   = 1000
	maxCFSMicros   = 1000000
	minCPUShares   = 2
	maxCPUShares   = 262144
	maxOOMScoreAdj = 1000
)

func resources(p *problems, field string, in *runtimeapi.LinuxContainerResources) engine.Resources {
	r := eachResource(p, field, in)
	checkSwap(p, field, &r)
	return r
}

// eachResource is resources without what depends on several of them: an update may name one and leave the other as it is.
func eachResource(p *problems, field string, in *runtimeapi.LinuxContainerResources) engine.Resources {
	r := engine.Resources{
		CPUPeriod:   in.GetCpuPeriod(),
		CPUQuota:    in.GetCpuQuota(),
		CPUShares:   in.GetCpuShares(),
		CpusetCPUs:  in.GetCpusetCpus(),
		CpusetMems:  in.GetCpusetMems(),
		MemoryLimit: in.GetMemoryLimitInBytes(),
		MemorySwap:  in.GetMemorySwapLimitInBytes(),
		OOMScoreAdj: in.GetOomScoreAdj(),
		Unified:     in.GetUnified(),
	}
	checkCPU(p, field, &r)
	if r.MemoryLimit == unlimited {
		r.MemoryLimit = 0
	}
	if r.MemoryLimit < 0 {
		p.add(field+".memory_limit_in_bytes", "%d is negative; 0 or -1 is no limit", r.MemoryLimit)
	}
	if r.MemorySwap < unlimited {
		p.add(field+".memory_swap_limit_in_bytes", "%d is negative; -1 is no limit", r.MemorySwap)
	}
	if r.OOMScoreAdj < -maxOOMScoreAdj || r.OOMScoreAdj > maxOOMScoreAdj {
		p.add(field+".oom_score_adj", "%d is not within -1000 to 1000", r.OOMScoreAdj)
	}
	for i, h := range in.GetHugepageLimits() {
		at := fmt.Sprintf("%s.hugepage_limits[%d].page_size", field, i)
		switch {
		case !engine.ValidPageSize(h.GetPageSize()):
			p.add(at, "%.80q is no page size such as \"2MB\"", h.GetPageSize())
		case slices.ContainsFunc(r.Hugepages, func(o engine.HugepageLimit) bool { return o.PageSize == h.GetPageSize() }):
			p.add(at, "%q is given twice", h.GetPageSize())
		default:
			r.Hugepages = append(r.Hugepages, engine.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.Unified)) {
		checkUnified(p, field+".unified", key, r.Unified[key])
	}
	return r
}

// checkCPU also turns a quota of -1 (the kubelet's "no quota") into 0.
func checkCPU(p *problems, field string, r *engine.Resources) {
	if r.CPUQuota == unlimited {
		r.CPUQuota = 0
	}
	if r.CPUPeriod != 0 && (r.CPUPeriod < minCFSMicros || r.CPUPeriod > maxCFSMicros) {
		p.add(field+".cpu_period", "%d µs is not within 1000 to 1000000", r.CPUPeriod)
	}
	if r.CPUQuota != 0 && r.CPUQuota < minCFSMicros {
		p.add(field+".cpu_quota", "%d µs is less than 1000; 0 or -1 is no limit", r.CPUQuota)
	}
	if r.CPUShares != 0 && (r.CPUShares < minCPUShares || r.CPUShares > maxCPUShares) {
		p.add(field+".cpu_shares", "%d is not within 2 to 262144", r.CPUShares)
	}
	if !validCPUSet(r.CpusetCPUs) {
		p.add(field+".cpuset_cpus", "%.80q is no list such as \"0-3,7\"", r.CpusetCPUs)
	}
	if !validCPUSet(r.CpusetMems) {
		p.add(field+".cpuset_mems", "%.80q is no list such as \"0-1\"", r.CpusetMems)
	}
}

func checkSwap(p *problems, field string, r *engine.Resources) {
	if r.MemorySwap > 0 && (r.MemoryLimit == 0 || r.MemorySwap < r.MemoryLimit) {
		p.add(field+".memory_swap_limit_in_bytes", "%d is memory plus swap and needs a memory limit that is not above it (it is %d)", r.MemorySwap, r.MemoryLimit)
	}
}

// validCPUSet accepts "" and lists of numbers and ascending ranges.
func validCPUSet(list string) bool {
	if list == "" {
		return true
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 16)
		b, errB := strconv.ParseUint(last, 10, 16)
		if errA != nil || errB != nil || a > b {
			return false
		}
	}
	return true
}

// unifiedControllers are the cgroup v2 controllers whose files may be set. "cgroup" is not among them: cgroup.procs and
// its like move and kill processes.
var unifiedControllers = []string{"cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"}

func checkUnified(p *problems, field, key, value string) {
	controller, file, _ := strings.Cut(key, ".")
	if !slices.Contains(unifiedControllers, controller) || file == "" || !onlyRunes(file, isUnifiedRune) {
		p.add(field, "key %.80q is no file of the controllers %s", key, strings.Join(unifiedControllers, ", "))
	}
	if value == "" || hasControl(value) {
		p.add(field+"["+clip(key)+"]", "%.80q is empty or holds control characters", value)
	}
}

func isUnifiedRune(r rune) bool {
	return r == '.' || r == '_' || (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') || (r >= '0' && r <= '9')
}
