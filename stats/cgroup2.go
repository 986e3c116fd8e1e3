package stats

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// v2 reads the single hierarchy of cgroup v2.
type v2 struct{ base string }

func (t v2) version() int { return 2 }

func (t v2) procs(path string) string { return t.base + path }

func (t v2) has(controller string) bool {
	if controller == "pressure" {
		_, err := os.Stat(strings.TrimSuffix(t.base, "/sys/fs/cgroup") + "/proc/pressure")
		return err == nil
	}
	data, err := os.ReadFile(t.base + "/cgroup.controllers")
	if err != nil {
		return false
	}
	for _, name := range strings.Fields(string(data)) {
		if name == controller {
			return true
		}
	}
	return false
}

func (t v2) read(path string, extent extent, kept *keptFiles) (Sample, error) {
	var s Sample
	f := openFiles(path, kept)
	defer f.close()
	usage, ok := f.number(t.base, "/memory.current")
	if !ok {
		if f.err != nil {
			return s, f.err
		}
		return s, errdefs.ErrNotFound
	}
	s.Memory.Usage = usage
	t.memory(f, &s.Memory)
	t.cpu(f, &s.CPU)
	if extent >= ofPod {
		s.Pids.Current, _ = f.number(t.base, "/pids.current")
	}
	s.Pressure = pressure(f, t.base)
	if extent == everything {
		f.keep = false
		t.memoryEvents(f, &s.Memory)
		limit, _ := f.number(t.base, "/pids.max")
		s.Pids.Limit = unlimited(limit)
		s.Block = t.block(f)
		s.Hugetlb = hugetlb(f, t.base, ".current", "")
	}
	return s, f.err
}

func (t v2) cpu(f *files, c *CPU) {
	f.pairs(t.base, "/cpu.stat", func(key []byte) *uint64 {
		switch string(key) {
		case "usage_usec":
			return &c.Usage
		case "user_usec":
			return &c.User
		case "system_usec":
			return &c.System
		case "nr_periods":
			return &c.Periods
		case "nr_throttled":
			return &c.ThrottledPeriods
		case "throttled_usec":
			return &c.ThrottledTime
		}
		return nil
	})
	for _, usec := range []*uint64{&c.Usage, &c.User, &c.System, &c.ThrottledTime} {
		*usec *= 1000
	}
}

func (t v2) memory(f *files, m *Memory) {
	var inactive uint64
	f.pairs(t.base, "/memory.stat", func(key []byte) *uint64 {
		switch string(key) {
		case "anon":
			return &m.RSS
		case "file":
			return &m.Cache
		case "file_mapped":
			return &m.MappedFile
		case "kernel":
			return &m.Kernel
		case "pgfault":
			return &m.PageFaults
		case "pgmajfault":
			return &m.MajorPageFaults
		case "inactive_file":
			return &inactive
		}
		return nil
	})
	limit, _ := f.number(t.base, "/memory.max")
	m.Limit = unlimited(limit)
	if m.Swap, m.HasSwap = f.number(t.base, "/memory.swap.current"); m.HasSwap {
		if limit, ok := f.number(t.base, "/memory.swap.max"); ok && limit < 1<<62 {
			m.SwapLimit, m.HasSwapLimit = limit, true
		}
	}
	m.finish(inactive)
}

func (t v2) memoryEvents(f *files, m *Memory) {
	m.MaxUsage, _ = f.number(t.base, "/memory.peak") // since Linux 5.19
	m.MaxUsage = max(m.MaxUsage, m.Usage)
	f.pairs(t.base, "/memory.events", func(key []byte) *uint64 {
		switch string(key) {
		case "max":
			return &m.FailCount
		case "oom":
			return &m.OOMEvents
		case "oom_kill":
			return &m.OOMKills
		}
		return nil
	})
}

// block reads lines as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func (t v2) block(f *files) []BlockDevice {
	data, ok := f.bytes(t.base, "/io.stat")
	if !ok {
		return nil
	}
	var devices []BlockDevice
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue
		}
		d := device(&devices, fields[0])
		if d == nil {
			continue
		}
		for _, field := range fields[1:] {
			key, text, _ := strings.Cut(field, "=")
			value, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				d.ReadBytes = value
			case "wbytes":
				d.WriteBytes = value
			case "rios":
				d.ReadOps = value
			case "wios":
				d.WriteOps = value
			}
		}
	}
	return devices
}
