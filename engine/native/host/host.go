// Package host owns what this machine and this process can do: it is asked once, at the start, and handed on as a plain
// value, so that what is decided from it (package spec, cgroup) stays free of I/O and can be shown in golden files.
//
// Probe reads the running host, or a recorded tree in tests. What has to be looked at for each container (devices, CDI
// files, SELinux labels) is here too: Devices, Labels, Injector.
package host

import (
	"slices"

	"crishim/engine"
)

// Host is immutable after Probe. The zero value is a host that can do nothing.
type Host struct {
	// CgroupV2: /sys/fs/cgroup is the unified hierarchy. A hybrid host is v1.
	CgroupV2 bool
	// CgroupDriver is what containers' cgroups are made by: systemd where it was asked for or runs as init.
	CgroupDriver engine.CgroupDriver
	// Controllers that limits can be set by: v1 hierarchies, or the v2 root's controllers. Sorted.
	Controllers []string
	// Swap: limits of swap can be set.
	Swap bool
	// HugePageSizes are those that limits can be set for, in CRI's words ("2MB"). Sorted.
	HugePageSizes []string

	// Capabilities is this process's bounding set, with CAP_, sorted: nobody below us can have more.
	Capabilities []string
	// OOMScoreAdjMin is the lowest oom_score_adj that may be set: -1000, or our own without CAP_SYS_RESOURCE.
	OOMScoreAdjMin int
	// HardLimits are those of this process by OCI name ("RLIMIT_NOFILE") that can not be exceeded; empty with
	// CAP_SYS_RESOURCE.
	HardLimits map[string]uint64

	// Mqueue: the host's message queues are mounted at /dev/mqueue, for containers of user namespaces that use them.
	Mqueue bool
	// CPUs and MemoryNodes are all that are online ("0-3"), for what had been limited to some.
	CPUs, MemoryNodes string

	AppArmor bool
	// AppArmorDefault is the profile of containers that name none: LoadAppArmorDefault. "" without.
	AppArmorDefault string
	SELinux         bool
	Seccomp         bool

	Kernel Kernel
	// Warnings say what pods will not get here, for the operator.
	Warnings []string
}

// Kernel is what was tried on the running kernel; all false in a recorded tree.
type Kernel struct {
	Release string
	// X32: programs of the x32 ABI run.
	X32 bool
	// RecursiveReadonly: mount_setattr(2) with AT_RECURSIVE.
	RecursiveReadonly bool
	// IDMappedMounts: the file system of the root folder can be id-mapped.
	IDMappedMounts bool
	// UserNamespaces may be made.
	UserNamespaces bool
}

// Has says whether the controller can be used.
func (h *Host) Has(controller string) bool { return slices.Contains(h.Controllers, controller) }

// Can says whether a capability ("CAP_SYS_ADMIN") can be given.
func (h *Host) Can(capability string) bool { return slices.Contains(h.Capabilities, capability) }

// Features is what an engine on this host can express.
func (h *Host) Features() engine.Features {
	return engine.Features{
		SupplementalGroupsPolicy: true,
		UserNamespaces:           h.userNamespaces(),
		RecursiveReadonlyMounts:  h.Kernel.RecursiveReadonly,
		MountOptions:             true,
		IDMappedMounts:           h.userNamespaces(),
		ImageVolumes:             true,
		AmbientCapabilities:      true,
		Unified:                  h.CgroupV2,
		Hugepages:                len(h.HugePageSizes) > 0,
		CDI:                      true,
		Swap:                     h.Swap,
	}
}

// userNamespaces: a pod's user namespace needs its image id-mapped too.
func (h *Host) userNamespaces() bool { return h.Kernel.UserNamespaces && h.Kernel.IDMappedMounts }

// Options say where and for what to look.
type Options struct {
	// Root is "/" or a recorded tree; only in "/" the kernel is tried.
	Root string
	// CgroupDriver is the operator's choice, "" to detect.
	CgroupDriver engine.CgroupDriver
	// StateDir is where writable layers will be, for what depends on its file system.
	StateDir string
}
