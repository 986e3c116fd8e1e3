// Package hook is what the native engine tells plugins of its pods and containers, and what they may change: the types, and
// the interface that package nri fulfils. The engine so needs to know nothing of how plugins are spoken to.
package hook

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// Pod is a pod as plugins see it.
type Pod struct {
	// PodStatus with its Spec and, once the networks are attached, its IPs.
	engine.PodStatus
	// CgroupPath is the pod's cgroup, below the mount point of each hierarchy.
	CgroupPath string
	// Namespaces are the pinned ones, by the paths at which processes of the host can join them.
	Namespaces []specs.LinuxNamespace
}

// Container is a container as plugins see it.
type Container struct {
	// ContainerStatus with its Spec.
	engine.ContainerStatus
	// OCI is what it runs by; nil for one of which a reboot left nothing but the record.
	OCI *specs.Spec
}

// Host is what adjusting a spec needs of the engine.
type Host struct {
	// InjectCDI edits the spec for fully qualified names of CDI devices.
	InjectCDI func(*specs.Spec, []string) error
	// CheckResources refuses what this host cannot limit, and makes the rest fit.
	CheckResources func(*specs.LinuxResources) error
	// Relabel gives a path of the host the container's SELinux label.
	Relabel func(path string) error
}

// Runtime is what plugins may ask of the engine. Its methods may be called at any time once Plugins.Start was.
type Runtime interface {
	// State is every pod and container that plugins have been told of, but for those whose removal they have.
	State() ([]*Pod, []*Container)
	// UpdateLimits sets those limits of a container that r names, over what CRI says of them. ErrNotFound for a container
	// that is gone, ErrFailedPrecondition for one that has ended.
	UpdateLimits(ctx context.Context, id engine.ContainerID, r *specs.LinuxResources) error
}

// Plugins are told, in this order, of what happens to a pod and to a container. The methods that return an error are asked
// before, and by an error forbid; the others only tell. None blocks longer than all plugins' time-outs together.
type Plugins interface {
	// Start lets plugins connect, once it is known what there is.
	Start(Runtime) error
	// Stop ends the plugins that were started by Start, and disconnects the others.
	Stop()
	// Block keeps plugins that connect from being told what there is until unblock is called: what happens in between they
	// learn either from State or from a call, never from neither. Blocks do not nest.
	Block() (unblock func())

	// RunPod comes when the pod's networks are attached, before any of its containers.
	RunPod(context.Context, *Pod) error
	UpdatePod(ctx context.Context, p *Pod, overhead, resources *engine.Resources) error
	PodUpdated(context.Context, *Pod)
	StopPod(context.Context, *Pod)
	RemovePod(context.Context, *Pod)

	// CreateContainer edits c.OCI; limits are what plugins set of c.OCI's resources, nil for none.
	CreateContainer(ctx context.Context, p *Pod, c *Container, h *Host) (limits *specs.LinuxResources, err error)
	ContainerCreated(context.Context, *Pod, *Container)
	StartContainer(context.Context, *Pod, *Container) error
	ContainerStarted(context.Context, *Pod, *Container)
	// UpdateContainer is told what CRI sets and returns what plugins set instead, nil for nothing.
	UpdateContainer(ctx context.Context, p *Pod, c *Container, asked *specs.LinuxResources) (limits *specs.LinuxResources, err error)
	ContainerUpdated(context.Context, *Pod, *Container)
	StopContainer(context.Context, *Pod, *Container)
	RemoveContainer(context.Context, *Pod, *Container)
}
