// Package spec lowers an engine's ContainerSpec to an OCI runtime spec: pure functions of the spec, the image's config and
// the host (package host), held by golden files. Everything that needs the file system was looked up before: users, device
// nodes, labels, the paths of namespaces and mounts.
//
// Build makes the spec of a container, BuildPause that of the process which is pid 1 of a pod's shared PID namespace,
// BuildExec a further process of a container, Resources what an update sets.
//
// Annotations and labels, the image's too, go into no spec (docs/reliability.md S25), nor do hooks but those of CDI files.
package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/host"
)

// Container is everything that the spec of a container depends on, besides the host.
type Container struct {
	Spec *engine.ContainerSpec
	// Image is the config of the image.
	Image imagespec.ImageConfig
	// User is the resolved user; Groups include GID.
	User engine.User
	// Home is HOME where neither the image nor CRI sets it. Left out, libcontainer reads the container's own /etc/passwd for
	// it, which blocks where that is a FIFO: only where the container mounts another one there.
	Home string
	// Rootfs is the mounted root.
	Rootfs string
	// Pins are the namespaces to join. Net, UTS and IPC are the pod's where it does not use the host's; PID is the pod's or
	// the target's where CRI's mode says so; User is the pod's where it has one.
	Pins Pins
	// Hostname is the pod's, or the host's in its network, for the environment: the UTS namespace has it already.
	Hostname string
	// Files of the pod are shown in /etc, those that are "" and those that CRI mounts itself are not.
	Files Files
	// Shm is the pod's /dev/shm; not looked at with the host's IPC namespace.
	Shm string
	// CgroupsPath is for specs.Linux.CgroupsPath (package cgroup).
	CgroupsPath string
	// Devices are resolved (host.Devices; host.AllDevices too for a privileged container).
	Devices []host.Device
	// Labels are SELinux's.
	Labels host.Labels
	// Volumes are those of the image (VOLUME): folders by the paths that Volumes gives.
	Volumes map[string]string
	// ImageVolumes are the prepared paths of those Spec.Mounts that are images, by index.
	ImageVolumes map[int]string
	// OCIRuntime says that another program than libcontainer makes the container.
	OCIRuntime bool
	// Rlimits are the operator's defaults; they are lowered to what the host allows.
	Rlimits []specs.POSIXRlimit
}

// Pins are paths of namespaces.
type Pins struct {
	User, Net, IPC, UTS, PID string
}

// Files are paths of the pod's own files.
type Files struct {
	Hosts, Hostname, ResolvConf string
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// builder collects one spec.
type builder struct {
	h        *host.Host
	c        *Container
	s        *specs.Spec
	warnings []string
}

func (b *builder) warn(format string, args ...any) {
	b.warnings = append(b.warnings, fmt.Sprintf(format, args...))
}

// Build is the OCI spec of a container. Warnings say what it gets less of than was asked for, because the host cannot give
// it (capabilities, oom_score_adj, limits). ErrInvalidArgument for what cannot be expressed at all, ErrFailedPrecondition
// for what this host lacks.
func Build(h *host.Host, c *Container) (*specs.Spec, []string, error) {
	b := &builder{h: h, c: c, s: &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{},
		Root:    &specs.Root{Path: c.Rootfs, Readonly: c.Spec.Security.ReadonlyRootfs},
		Linux:   &specs.Linux{CgroupsPath: c.CgroupsPath, MountLabel: c.Labels.Mount},
	}}
	// Seccomp comes last: what the default profile allows depends on the capabilities.
	for _, step := range []func() error{b.process, b.namespaces, b.mounts, b.devices, b.resources, b.security, b.seccomp} {
		if err := step(); err != nil {
			return nil, nil, fmt.Errorf("make the OCI spec: %w", err)
		}
	}
	return b.s, b.warnings, nil
}
