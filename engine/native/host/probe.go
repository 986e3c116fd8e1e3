package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	"github.com/moby/sys/mountinfo"

	"crishim/engine"
)

// Probe asks the host. An error means that no container can run here, and says what to do (ErrFailedPrecondition).
func Probe(opts Options) (*Host, error) {
	if opts.Root == "" {
		opts.Root = "/"
	}
	p := probe{root: opts.Root}
	h := &Host{}
	for _, step := range []func(*Host, *Options) error{p.cgroups, p.driver, p.rights, p.limits, p.security} {
		if err := step(h, &opts); err != nil {
			return nil, fmt.Errorf("this host cannot run containers: %w", err)
		}
	}
	if opts.Root == "/" {
		h.Kernel = tryKernel(opts.StateDir)
	}
	h.warn()
	return h, nil
}

// probe reads below root.
type probe struct{ root string }

func (p probe) path(name string) string { return filepath.Join(p.root, name) }

func (p probe) read(name string) (string, error) {
	data, err := os.ReadFile(p.path(name))
	return strings.TrimSpace(string(data)), err
}

func (p probe) exists(pattern string) bool {
	found, _ := filepath.Glob(p.path(pattern))
	return len(found) > 0
}

func unfit(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}

// needed controllers: without them a pod's limits would be silently ignored.
var needed = []string{"cpu", "memory"}

func (p probe) cgroups(h *Host, _ *Options) error {
	mounts, err := p.mounts(func(m *mountinfo.Info) bool { return m.Mountpoint == "/sys/fs/cgroup" })
	if err != nil {
		return err
	}
	own, err := p.read("/proc/self/cgroup")
	if err != nil {
		return unfit("read the own cgroup: %w", err)
	}
	h.CgroupV2 = slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.FSType == "cgroup2" })
	if h.CgroupV2 {
		controllers, err := p.read("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			return unfit("read the cgroup controllers: %w", err)
		}
		h.Controllers = strings.Fields(controllers)
	} else {
		h.Controllers = v1Controllers(own)
	}
	slices.Sort(h.Controllers)
	for _, controller := range needed {
		if !h.Has(controller) {
			return unfit("cgroup controller %q is not there (mount cgroups at /sys/fs/cgroup; it may be off on the kernel's command line)", controller)
		}
	}
	if h.CgroupV2 {
		// The root has no such file; each cgroup below it has.
		h.Swap = p.exists("/sys/fs/cgroup/*/memory.swap.max")
	} else {
		h.Swap = p.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	}
	// Absent where the kernel is built for one processor or one node.
	h.CPUs, h.MemoryNodes = "0", "0"
	if online, err := p.read("/sys/devices/system/cpu/online"); err == nil {
		h.CPUs = online
	}
	if online, err := p.read("/sys/devices/system/node/has_memory"); err == nil {
		h.MemoryNodes = online
	}
	if h.Has("hugetlb") {
		return p.hugePages(h)
	}
	return nil
}

// mounts are those that pass keep.
func (p probe) mounts(keep func(*mountinfo.Info) bool) ([]*mountinfo.Info, error) {
	data, err := os.ReadFile(p.path("/proc/self/mountinfo"))
	if err != nil {
		return nil, unfit("read the mounts: %w", err)
	}
	all, err := mountinfo.GetMountsFromReader(bytes.NewReader(data), func(m *mountinfo.Info) (skip, stop bool) { return !keep(m), false })
	if err != nil {
		return nil, unfit("read the mounts: %w", err)
	}
	return all, nil
}

// v1Controllers are those of the mounted hierarchies, from lines "9:cpu,cpuacct:/path" of /proc/self/cgroup.
func v1Controllers(own string) []string {
	var out []string
	for line := range strings.Lines(own) {
		hierarchy, rest, _ := strings.Cut(line, ":")
		names, _, _ := strings.Cut(rest, ":")
		if hierarchy == "0" || names == "" || strings.HasPrefix(names, "name=") {
			continue
		}
		out = append(out, strings.Split(names, ",")...)
	}
	return out
}

// hugePages reads the sizes: folders like hugepages-2048kB.
func (p probe) hugePages(h *Host) error {
	entries, err := os.ReadDir(p.path("/sys/kernel/mm/hugepages"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return unfit("read the sizes of huge pages: %w", err)
	}
	for _, entry := range entries {
		name, ok := strings.CutPrefix(entry.Name(), "hugepages-")
		kib, err := strconv.ParseUint(strings.TrimSuffix(name, "kB"), 10, 64)
		if !ok || err != nil {
			continue
		}
		switch {
		case kib >= 1<<20:
			h.HugePageSizes = append(h.HugePageSizes, strconv.FormatUint(kib>>20, 10)+"GB")
		case kib >= 1<<10:
			h.HugePageSizes = append(h.HugePageSizes, strconv.FormatUint(kib>>10, 10)+"MB")
		default:
			h.HugePageSizes = append(h.HugePageSizes, strconv.FormatUint(kib, 10)+"KB")
		}
	}
	slices.Sort(h.HugePageSizes)
	return nil
}

func (p probe) driver(h *Host, opts *Options) error {
	systemd := p.exists("/run/systemd/system")
	switch opts.CgroupDriver {
	case "":
		h.CgroupDriver = engine.CgroupfsDriver
		if systemd {
			h.CgroupDriver = engine.SystemdDriver
		}
	case engine.SystemdDriver:
		if !systemd {
			return unfit("the systemd cgroup driver is configured, and systemd does not run here: use cgroupfs, for the kubelet too")
		}
		h.CgroupDriver = opts.CgroupDriver
	case engine.CgroupfsDriver:
		h.CgroupDriver = opts.CgroupDriver
	default:
		return unfit("cgroup driver %q is neither cgroupfs nor systemd", opts.CgroupDriver)
	}
	return nil
}

const capSysResource = "CAP_SYS_RESOURCE"

func (p probe) rights(h *Host, _ *Options) error {
	status, err := p.read("/proc/self/status")
	if err != nil {
		return unfit("read the own status: %w", err)
	}
	bounding, err := strconv.ParseUint(field(status, "CapBnd:"), 16, 64)
	if err != nil {
		return unfit("read the own capabilities: %w", err)
	}
	for _, c := range capability.ListKnown() {
		if bounding&(1<<uint(c)) != 0 {
			h.Capabilities = append(h.Capabilities, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	slices.Sort(h.Capabilities)
	for _, c := range []string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"} {
		if !h.Can(c) {
			return unfit("this process lacks %s; it has to run as root of the host", c)
		}
	}
	h.Seccomp = p.exists("/proc/sys/kernel/seccomp/actions_avail")
	return nil
}

// field is the word after name at the start of a line.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// oomScoreAdjLowest is the kernel's own lower bound.
const oomScoreAdjLowest = -1000

// rlimitNames are the lines of /proc/self/limits in OCI's words.
var rlimitNames = map[string]string{
	"Max cpu time": "RLIMIT_CPU", "Max file size": "RLIMIT_FSIZE", "Max data size": "RLIMIT_DATA", "Max stack size": "RLIMIT_STACK",
	"Max core file size": "RLIMIT_CORE", "Max resident set": "RLIMIT_RSS", "Max processes": "RLIMIT_NPROC", "Max open files": "RLIMIT_NOFILE",
	"Max locked memory": "RLIMIT_MEMLOCK", "Max address space": "RLIMIT_AS", "Max file locks": "RLIMIT_LOCKS",
	"Max pending signals": "RLIMIT_SIGPENDING", "Max msgqueue size": "RLIMIT_MSGQUEUE", "Max nice priority": "RLIMIT_NICE",
	"Max realtime priority": "RLIMIT_RTPRIO", "Max realtime timeout": "RLIMIT_RTTIME",
}

// limits are what this process can give away: with CAP_SYS_RESOURCE everything, without it no more than it has.
func (p probe) limits(h *Host, _ *Options) error {
	h.OOMScoreAdjMin = oomScoreAdjLowest
	if h.Can(capSysResource) {
		return nil
	}
	own, err := p.read("/proc/self/oom_score_adj")
	if err == nil {
		h.OOMScoreAdjMin, err = strconv.Atoi(own)
	}
	if err != nil {
		return unfit("read the own oom_score_adj: %w", err)
	}
	limits, err := p.read("/proc/self/limits")
	if err != nil {
		return unfit("read the own limits: %w", err)
	}
	h.HardLimits = map[string]uint64{}
	for line := range strings.Lines(limits) {
		for name, oci := range rlimitNames {
			// Soft limit, hard limit, units.
			values := strings.Fields(strings.TrimPrefix(line, name))
			if !strings.HasPrefix(line, name+" ") || len(values) < 2 || values[1] == "unlimited" {
				continue
			}
			if h.HardLimits[oci], err = strconv.ParseUint(values[1], 10, 64); err != nil {
				return unfit("read the own limits: %w", err)
			}
		}
	}
	return nil
}

func (p probe) security(h *Host, _ *Options) error {
	enabled, _ := p.read("/sys/module/apparmor/parameters/enabled")
	h.AppArmor = enabled == "Y" && p.exists("/sys/kernel/security/apparmor/profiles")
	mounts, err := p.mounts(func(m *mountinfo.Info) bool { return m.FSType == "selinuxfs" })
	if err != nil {
		return err
	}
	queues, err := p.mounts(func(m *mountinfo.Info) bool { return m.FSType == "mqueue" && m.Mountpoint == "/dev/mqueue" })
	if err != nil {
		return err
	}
	h.Mqueue = len(queues) > 0
	// Without a policy the kernel labels everything so.
	current, err := p.read("/proc/self/attr/current")
	h.SELinux = len(mounts) > 0 && err == nil && strings.TrimRight(current, "\x00") != "kernel"
	return nil
}

func (h *Host) warn() {
	add := func(format string, args ...any) { h.Warnings = append(h.Warnings, fmt.Sprintf(format, args...)) }
	if !h.Can(capSysResource) {
		add("this process lacks CAP_SYS_RESOURCE: pods get no oom_score_adj below %d, no limit above its own, and not that capability", h.OOMScoreAdjMin)
	}
	if !h.Seccomp {
		add("this kernel has no seccomp: containers that ask for a profile are refused")
	}
	if !h.Swap {
		add("limits of swap cannot be set here (swapaccount=1 on the kernel's command line)")
	}
	if h.Kernel.Release != "" && !h.Kernel.RecursiveReadonly {
		add("recursive read-only mounts need Linux 5.12, this is %s", h.Kernel.Release)
	}
	if h.Kernel.Release != "" && !h.userNamespaces() {
		add("pods with user namespaces need Linux 5.19, a file system of the state folder that can be id-mapped, and user.max_user_namespaces above 0")
	}
}
