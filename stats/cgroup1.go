package stats

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// v1 reads cgroup v1, one hierarchy per controller, and the pressure files of the v2 hierarchy that hybrid hosts have beside.
type v1 struct {
	dirs    map[string]string // controller → mount point
	unified string            // "" where there is none
}

// userHz is the unit of cpuacct.stat: USER_HZ, 100 on every architecture that Kubernetes runs on.
const userHz = 100

func newV1(base string) (v1, error) {
	t := v1{dirs: map[string]string{}}
	entries, err := os.ReadDir(base)
	if err != nil {
		return t, fmt.Errorf("no cgroups: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	for _, entry := range entries {
		// Joined controllers ("cpu,cpuacct") are one folder, their single names links to it; some hosts lack the links.
		for controller := range strings.SplitSeq(entry.Name(), ",") {
			if _, ok := t.dirs[controller]; !ok || controller == entry.Name() {
				t.dirs[controller] = filepath.Join(base, entry.Name())
			}
		}
	}
	if t.dirs["memory"] == "" || t.dirs["cpuacct"] == "" {
		return t, fmt.Errorf("no memory and cpuacct cgroups at %s: %w", base, errdefs.ErrFailedPrecondition)
	}
	if _, err := os.Stat(filepath.Join(base, "unified", "cgroup.controllers")); err == nil {
		t.unified = filepath.Join(base, "unified")
	}
	return t, nil
}

func (t v1) version() int { return 1 }

func (t v1) procs(path string) string { return t.dirs["memory"] + path }

func (t v1) has(controller string) bool {
	if controller == "pressure" {
		_, err := os.Stat(t.unified + "/cpu.pressure")
		return t.unified != "" && err == nil
	}
	return t.dirs[controller] != ""
}

func (t v1) read(path string, extent extent, kept *keptFiles) (Sample, error) {
	var s Sample
	f := openFiles(path, kept)
	defer f.close()
	usage, ok := f.number(t.dirs["memory"], "/memory.usage_in_bytes")
	if !ok {
		if f.err != nil {
			return s, f.err
		}
		return s, errdefs.ErrNotFound
	}
	s.Memory.Usage = usage
	t.memory(f, &s.Memory)
	s.CPU.Usage, _ = f.number(t.dirs["cpuacct"], "/cpuacct.usage")
	if dir := t.dirs["pids"]; dir != "" && extent >= ofPod {
		s.Pids.Current, _ = f.number(dir, "/pids.current")
	}
	if extent == everything {
		f.keep = false
		t.rest(f, &s)
	}
	return s, f.err
}

// rest reads what only metrics show.
func (t v1) rest(f *files, s *Sample) {
	t.memoryEvents(f, &s.Memory)
	t.cpu(f, &s.CPU)
	if dir := t.dirs["pids"]; dir != "" {
		limit, _ := f.number(dir, "/pids.max")
		s.Pids.Limit = unlimited(limit)
	}
	if dir := t.dirs["hugetlb"]; dir != "" {
		s.Hugetlb = hugetlb(f, dir, ".usage_in_bytes", ".max_usage_in_bytes")
	}
	if dir := t.dirs["blkio"]; dir != "" {
		s.Block = t.block(f, dir)
	}
	if t.unified != "" {
		s.Pressure = pressure(f, t.unified)
	}
}

func (t v1) memory(f *files, m *Memory) {
	var inactive, limit, withSwap uint64
	f.pairs(t.dirs["memory"], "/memory.stat", func(key []byte) *uint64 {
		switch string(key) { // total_ is with the cgroups below, which count in usage_in_bytes too
		case "total_rss":
			return &m.RSS
		case "total_cache":
			return &m.Cache
		case "total_mapped_file":
			return &m.MappedFile
		case "total_swap":
			return &m.Swap
		case "total_pgfault":
			return &m.PageFaults
		case "total_pgmajfault":
			return &m.MajorPageFaults
		case "total_inactive_file":
			return &inactive
		case "hierarchical_memory_limit":
			return &limit
		case "hierarchical_memsw_limit": // there only where swap is accounted
			m.HasSwap = true
			return &withSwap
		}
		return nil
	})
	m.Limit = unlimited(limit)
	if with := unlimited(withSwap); with > 0 && m.Limit > 0 {
		m.SwapLimit, m.HasSwapLimit = with-min(with, m.Limit), true
	}
	m.finish(inactive)
}

func (t v1) memoryEvents(f *files, m *Memory) {
	dir := t.dirs["memory"]
	m.MaxUsage, _ = f.number(dir, "/memory.max_usage_in_bytes")
	m.FailCount, _ = f.number(dir, "/memory.failcnt")
	m.Kernel, _ = f.number(dir, "/memory.kmem.usage_in_bytes")
	f.pairs(dir, "/memory.oom_control", func(key []byte) *uint64 {
		if string(key) == "oom_kill" {
			return &m.OOMKills
		}
		return nil
	})
	m.OOMEvents = m.OOMKills
}

func (t v1) cpu(f *files, c *CPU) {
	dir := t.dirs["cpuacct"]
	var ok bool
	if c.User, ok = f.number(dir, "/cpuacct.usage_user"); ok {
		c.System, _ = f.number(dir, "/cpuacct.usage_sys")
	} else {
		f.pairs(dir, "/cpuacct.stat", func(key []byte) *uint64 {
			switch string(key) {
			case "user":
				return &c.User
			case "system":
				return &c.System
			}
			return nil
		})
		c.User *= 1e9 / userHz
		c.System *= 1e9 / userHz
	}
	if dir := t.dirs["cpu"]; dir != "" {
		f.pairs(dir, "/cpu.stat", func(key []byte) *uint64 {
			switch string(key) {
			case "nr_periods":
				return &c.Periods
			case "nr_throttled":
				return &c.ThrottledPeriods
			case "throttled_time":
				return &c.ThrottledTime
			}
			return nil
		})
	}
}

func (t v1) block(f *files, dir string) []BlockDevice {
	var devices []BlockDevice
	add := func(file string, set func(d *BlockDevice, operation string, value uint64)) {
		data, ok := f.bytes(dir, file)
		if !ok {
			return
		}
		for line := range bytes.Lines(data) { // "8:0 Read 4096"; the last is "Total 4096"
			fields := strings.Fields(string(line))
			if len(fields) != 3 {
				continue
			}
			if value, err := strconv.ParseUint(fields[2], 10, 64); err == nil {
				if d := device(&devices, fields[0]); d != nil {
					set(d, fields[1], value)
				}
			}
		}
	}
	add("/blkio.throttle.io_service_bytes_recursive", func(d *BlockDevice, operation string, value uint64) {
		switch operation {
		case "Read":
			d.ReadBytes = value
		case "Write":
			d.WriteBytes = value
		}
	})
	add("/blkio.throttle.io_serviced_recursive", func(d *BlockDevice, operation string, value uint64) {
		switch operation {
		case "Read":
			d.ReadOps = value
		case "Write":
			d.WriteOps = value
		}
	})
	return devices
}

// device finds or adds "8:0"; nil for what is no device number.
func device(devices *[]BlockDevice, name string) *BlockDevice {
	major, minor, _ := strings.Cut(name, ":")
	a, err1 := strconv.ParseUint(major, 10, 64)
	b, err2 := strconv.ParseUint(minor, 10, 64)
	if err1 != nil || err2 != nil {
		return nil
	}
	for i := range *devices {
		if d := &(*devices)[i]; d.Major == a && d.Minor == b {
			return d
		}
	}
	*devices = append(*devices, BlockDevice{Major: a, Minor: b})
	return &(*devices)[len(*devices)-1]
}

// hugetlb reads "hugetlb.2MB.usage_in_bytes" and the like; peak "" where the version has none.
func hugetlb(f *files, mount, usage, peak string) []Hugetlb {
	entries, err := os.ReadDir(mount + f.path)
	if err != nil {
		return nil
	}
	var pages []Hugetlb
	for _, entry := range entries {
		size, ok := strings.CutPrefix(entry.Name(), "hugetlb.")
		if !ok {
			continue
		}
		size, ok = strings.CutSuffix(size, usage)
		// "hugetlb.2MB.rsvd.…" counts reservations, "hugetlb.2MB.max_…" ends like the usage file.
		if !ok || strings.Contains(size, ".") {
			continue
		}
		h := Hugetlb{PageSize: size}
		h.Usage, _ = f.number(mount, "/"+entry.Name())
		if peak != "" {
			h.MaxUsage, _ = f.number(mount, "/hugetlb."+size+peak)
		}
		pages = append(pages, h)
	}
	return pages
}
