package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"

	"crishim/engine"
)

// manage is the library's manager of the cgroup at p. Devices are not its: a pod's cgroup allows all, its containers'
// own ones do not.
func (d *Driver) manage(p string, r *cgroups.Resources) (cgroups.Manager, error) {
	r.SkipDevices = true
	config := &cgroups.Cgroup{Path: p, Resources: r}
	if d.systemd() {
		config = &cgroups.Cgroup{Systemd: true, Parent: path.Base(path.Dir(p)), Name: path.Base(p), Resources: r}
		if name, ok := strings.CutPrefix(strings.TrimSuffix(config.Name, scope), ours+"-"); ok && strings.HasSuffix(config.Name, scope) {
			config.Name, config.ScopePrefix = name, ours
		}
	}
	m, err := manager.New(config)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", p, err)
	}
	return m, nil
}

// CreatePod makes the pod's own cgroup with its limits, nil for none; one of the kubelet's is left alone.
func (d *Driver) CreatePod(ctx context.Context, p Pod, limits *engine.Resources) error {
	if !p.Own {
		return nil
	}
	if err := errors.Join(checkPath(p.Path), ctx.Err()); err != nil {
		return err
	}
	m, err := d.manage(p.Path, &cgroups.Resources{})
	if err != nil {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make cgroup %s: %w", p.Path, err)
	}
	if err := d.open(p.Path); err != nil {
		return fmt.Errorf("open cgroup %s to be read: %w", p.Path, err)
	}
	return d.UpdatePod(ctx, p, limits, nil)
}

// open lets everybody read our cgroups down to the one at p, as the kernel's own are, whatever the umask was when they were
// made: root of a pod's user namespace goes through them to mount its own.
func (d *Driver) open(p string) error {
	hierarchies, err := d.hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		for dir := p; dir != "/"; dir = path.Dir(dir) {
			if err := os.Chmod(filepath.Join(h, dir), 0o755); err != nil && !gone(err) { // not every hierarchy has it
				return err
			}
		}
	}
	return nil
}

// UpdatePod sets the limits of the pod's own cgroup, all of them: one that is unset and was set before, in previous, is lifted.
// Files of cgroup v2 alone stay as they are, for not of all is known what lifts them. Those of the kubelet's cgroup are its.
func (d *Driver) UpdatePod(ctx context.Context, p Pod, limits, previous *engine.Resources) error {
	if !p.Own || limits == nil {
		return nil
	}
	if err := errors.Join(checkPath(p.Path), ctx.Err()); err != nil {
		return err
	}
	if err := d.FitsUsage(p.Path, limits.MemoryLimit); err != nil {
		return fmt.Errorf("set the limits of cgroup %s: %w", p.Path, err)
	}
	r := d.lower(limits, previous)
	m, err := d.manage(p.Path, r)
	if err != nil {
		return err
	}
	if err := d.Refused(p.Path, limits.MemoryLimit, m.Set(r)); err != nil {
		return fmt.Errorf("set the limits of cgroup %s: %w", p.Path, err)
	}
	return nil
}

// FitsUsage refuses to lower the memory limit of the cgroup at p below what is in use: version 2 would kill for it, where 1 refuses
// by itself (Refused). 0 and -1 are none. OK when it is absent.
func (d *Driver) FitsUsage(p string, limit int64) error {
	if limit <= 0 || !d.host.CgroupV2 {
		return nil
	}
	// What is in effect is not lowered, though the kernel itself may use more for a moment.
	if now, err := d.bytes(p, "memory.max"); err == nil && limit >= now {
		return nil
	}
	return d.exceeded(p, "memory.current", limit)
}

// Refused is err, why limits of the cgroup at p were refused, if that is so. Version 1, which makes room first, says in its own words,
// and by no class of error, that the memory limit is below what is in use.
func (d *Driver) Refused(p string, limit int64, err error) error {
	if err == nil || limit <= 0 || d.host.CgroupV2 {
		return err
	}
	if exceeded := d.exceeded(p, "memory.usage_in_bytes", limit); exceeded != nil {
		return fmt.Errorf("%w: %w", exceeded, err)
	}
	return err
}

// exceeded says that more than limit is in use, as file has it.
func (d *Driver) exceeded(p, file string, limit int64) error {
	if used, err := d.bytes(p, file); err == nil && used > limit {
		return fmt.Errorf("memory limit %d is below the %d bytes in use: %w", limit, used, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// bytes reads a number of the memory controller; no limit of version 2 is an error.
func (d *Driver) bytes(p, file string) (int64, error) {
	data, err := os.ReadFile(filepath.Join(d.controller("memory", p), file))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// The kernel's defaults.
const (
	defaultShares = 1024
	defaultPeriod = 100_000 // µs
	// noHugepageLimit is the highest number that both versions take: whole pages in 63 bits.
	noHugepageLimit = 9223372036854771712
)

// lower is in the library's words, which leaves alone what is zero.
func (d *Driver) lower(r, previous *engine.Resources) *cgroups.Resources {
	if previous == nil {
		previous = &engine.Resources{}
	}
	unlimited := func(n int64) int64 {
		if n == 0 {
			return -1
		}
		return n
	}
	out := &cgroups.Resources{
		Memory: unlimited(r.MemoryLimit), CpuQuota: unlimited(r.CPUQuota), CpuPeriod: uint64(max(r.CPUPeriod, 0)),
		CpuShares: uint64(max(r.CPUShares, 0)), CpusetCpus: r.CpusetCPUs, CpusetMems: r.CpusetMems, SkipDevices: true,
	}
	if out.CpuPeriod == 0 && previous.CPUPeriod != 0 {
		out.CpuPeriod = defaultPeriod
	}
	if out.CpuShares == 0 && previous.CPUShares != 0 {
		out.CpuShares = defaultShares
	}
	if out.CpusetCpus == "" && previous.CpusetCPUs != "" {
		out.CpusetCpus = d.host.CPUs
	}
	if out.CpusetMems == "" && previous.CpusetMems != "" {
		out.CpusetMems = d.host.MemoryNodes
	}
	if d.host.Swap {
		out.MemorySwap = unlimited(r.MemorySwap)
		if r.MemoryLimit > 0 && r.MemorySwap == 0 {
			out.MemorySwap = r.MemoryLimit
		}
	}
	if d.host.CgroupV2 {
		out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares)
		out.Unified = r.Unified
	}
	hugepages := slices.Clone(r.Hugepages)
	for _, old := range previous.Hugepages {
		if !slices.ContainsFunc(r.Hugepages, func(l engine.HugepageLimit) bool { return l.PageSize == old.PageSize }) {
			hugepages = append(hugepages, engine.HugepageLimit{PageSize: old.PageSize, Limit: noHugepageLimit})
		}
	}
	for _, limit := range hugepages {
		if slices.Contains(d.host.HugePageSizes, limit.PageSize) {
			out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: limit.PageSize, Limit: limit.Limit})
		}
	}
	return out
}

// RemovePod kills what is left in the pod's own cgroup and removes it. OK when absent, or not our own.
func (d *Driver) RemovePod(ctx context.Context, p Pod) error {
	if !p.Own {
		return nil
	}
	return d.Remove(ctx, p.Path)
}

// Join moves a process into the cgroup at p, which is made if absent, in every hierarchy.
func (d *Driver) Join(p string, pid int) error {
	if err := checkPath(p); err != nil {
		return err
	}
	if pid <= 0 {
		return invalid("%d is no process", pid)
	}
	d.joining.Lock()
	defer d.joining.Unlock()
	m, err := d.manage(p, &cgroups.Resources{})
	if err != nil {
		return err
	}
	if d.systemd() && m.Exists() {
		// A unit is given its processes when it starts; the empty one may end at any time, and then starts again below.
		if err = m.AddPid("", pid); err == nil {
			return nil
		}
	}
	if err = m.Apply(pid); err != nil {
		return fmt.Errorf("move process %d to cgroup %s: %w", pid, p, err)
	}
	if d.systemd() {
		unlimited := int64(-1) // else a new unit has systemd's DefaultTasksMax, which the monitors of a full node may reach
		if err = m.Set(&cgroups.Resources{PidsLimit: &unlimited, SkipDevices: true}); err != nil {
			return fmt.Errorf("allow any number of tasks in cgroup %s: %w", p, err)
		}
	}
	return nil
}
