package spec

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/host"
)

// Pause is the process that is pid 1 of a pod's shared PID namespace.
type Pause struct {
	// Rootfs holds the program, folders to mount on, and nothing else (rootfs.Store.PauseRoot).
	Rootfs string
	// Namespaces are the pod's, Pins those to join.
	Namespaces  engine.Namespaces
	Pins        Pins
	CgroupsPath string
	Labels      host.Labels
	// Security is the pod's.
	Security *engine.Security
}

const (
	// pauseUser is the one of the upstream pause image; a pod's security context overrides it.
	pauseUser = 65535
	// pauseOOMScoreAdj and pauseCPUShares are the kubelet's for its sandboxes.
	pauseOOMScoreAdj = -998
	pauseCPUShares   = 2
)

// What every container runtime masks and makes read-only in a container's /proc where nobody says otherwise.
var (
	pauseMaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats",
	}
	pauseReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// BuildPause is the OCI spec of the pod's pause process. Containers of the pod reach its root by /proc/1/root: it has a root
// of its own with nothing in it, and no rights. Root in a container, where the pod's user is root too or with SYS_PTRACE, reaches
// its /proc as well, where a writable /proc/sys would be the host's.
func BuildPause(h *host.Host, p *Pause) (*specs.Spec, error) {
	security := *p.Security
	if security.Seccomp.Type == engine.ProfileUnset || security.Privileged {
		security.Seccomp = engine.Profile{Type: engine.ProfileRuntimeDefault}
	}
	if security.AppArmor.Type == engine.ProfileUnconfined {
		security.AppArmor = engine.Profile{}
	}
	if !h.Seccomp {
		security.Seccomp = engine.Profile{Type: engine.ProfileUnconfined}
	}
	security.Privileged, security.NoNewPrivs, security.ReadonlyRootfs = false, true, true
	security.CapAdd, security.CapAmbient, security.CapDrop = nil, nil, []string{"ALL"}
	security.MaskedPaths, security.ReadonlyPaths = pauseMaskedPaths, pauseReadonlyPaths
	user := engine.User{UID: pauseUser, GID: pauseUser}
	if security.UID != nil {
		user = engine.User{UID: *security.UID}
		if security.GID != nil {
			user.GID = *security.GID
		}
	}
	user.Groups = security.SupplementalGroups
	namespaces := p.Namespaces
	namespaces.PID = engine.NamespaceContainer
	// Its warnings would repeat the host's own.
	s, _, err := Build(h, &Container{
		Spec: &engine.ContainerSpec{
			Command: []string{"/pause"}, Namespaces: namespaces, Security: security,
			Resources: engine.Resources{OOMScoreAdj: pauseOOMScoreAdj, CPUShares: pauseCPUShares},
		},
		User: user, Rootfs: p.Rootfs, Pins: p.Pins, CgroupsPath: p.CgroupsPath, Labels: p.Labels,
	})
	if err != nil {
		return nil, fmt.Errorf("the pod's pause process: %w", err)
	}
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
	}
	return s, nil
}
