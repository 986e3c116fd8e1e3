// Package engine is the seam between CRI and whatever runs containers: neutral, fully resolved domain types and the
// small interfaces that a container engine fulfils.
//
// A caller (package server) decides a PodSpec or ContainerSpec through package translator, checks it against the
// engine's Features, and hands it over; the engine lowers it and acts. An engine holds no CRI semantics: idempotency,
// records, networking, streaming and CRI codes are the server's. What differs between engines is data (Features, Info),
// never a check of the engine's name.
//
// Errors carry a class of github.com/containerd/errdefs (ErrNotFound, ErrUnavailable, ErrInvalidArgument,
// ErrFailedPrecondition, ErrResourceExhausted, …). Every method honours its context; where a context ends halfway the
// engine leaves an object that Remove* removes.
package engine

import (
	"context"
	"time"
)

// Engine is one container engine. Its methods may be called at once from many goroutines; calls on one id are ordered
// by the caller.
type Engine interface {
	// Name is "docker" or "native": it is written into records and routes later calls. It never changes.
	Name() string
	// Info is what was learnt at the last connect. No I/O; the zero Info before the first connect.
	Info() Info
	// Watch keeps the sink true until ctx ends: connects, delivers a full Snapshot, then every change, and after each gap
	// (reconnect, lost event) a full Snapshot again. It returns only when ctx ends, or with the reason why this engine can
	// never be used on this host (remote engine, rootless, swarm, …; class ErrFailedPrecondition).
	Watch(ctx context.Context, sink Sink) error

	Pods
	Containers
	Execs
	Images
}

// Sink receives what an engine sees. Calls come from one goroutine, in order; they do not block for long.
type Sink interface {
	// Health reports a change: connected, or away with the reason. The engine answers nothing while it is not ready.
	Health(Health)
	// Resync replaces everything that is known of this engine's pods and containers.
	Resync(Snapshot)
	// PodChanged and ContainerChanged carry the whole new status of one object, new objects included.
	PodChanged(PodStatus)
	ContainerChanged(ContainerStatus)
	// PodRemoved and ContainerRemoved say that the object is gone from the engine.
	PodRemoved(PodID)
	ContainerRemoved(ContainerID)
	// ImagesChanged says that some image was added, tagged or removed.
	ImagesChanged()
}

// Snapshot is every pod and container of ours that the engine holds.
type Snapshot struct {
	// Taken is when the engine began to list: an object that was made later may be missing. Zero: at the delivery.
	Taken      time.Time
	Pods       []PodStatus
	Containers []ContainerStatus
}

// Health is an engine's connection state.
type Health struct {
	Ready bool
	// Reason is a CamelCase word ("EngineUnavailable"), Message a sentence; both empty when Ready.
	Reason  string
	Message string
}

// Pods makes and ends pod sandboxes.
type Pods interface {
	// CreatePod makes the pod without starting anything in it. Where an object of the same key is left over from a crash
	// (the caller has no record of it) it is removed first. An id beside an error is that of what could not be taken back.
	CreatePod(ctx context.Context, spec *PodSpec) (PodID, error)
	// StartPod starts it and returns its status: PID and a pinned NetNSPath (empty with the host's network). The network
	// namespace has no interfaces but a down loopback; the caller attaches networks to it.
	StartPod(ctx context.Context, id PodID, spec *PodSpec) (PodStatus, error)
	// StopPod ends the pod's own process (containers were stopped by the caller) and leaves NetNSPath pinned.
	// OK when it is stopped or absent.
	StopPod(ctx context.Context, id PodID) error
	// ReleaseNetNS drops the pin after the networks were detached. OK when there is none.
	ReleaseNetNS(ctx context.Context, id PodID) error
	// RemovePod removes everything of a stopped pod. OK when absent.
	RemovePod(ctx context.Context, id PodID) error
	// UpdatePod applies the pod-level resources of UpdatePodSandboxResources where the engine owns the pod's cgroup.
	UpdatePod(ctx context.Context, id PodID, overhead, resources *Resources) error
	// PodStatus asks the engine itself. ErrNotFound when absent.
	PodStatus(ctx context.Context, id PodID) (PodStatus, error)
}

// Networked is an engine that has a say once a pod's networks are there.
type Networked interface {
	// PodNetworked comes after StartPod and after the networks were attached, if any, before the pod is used; ips are the
	// pod's. The caller takes the pod back where it fails.
	PodNetworked(ctx context.Context, id PodID, ips []string) error
}

// WholePods is an engine whose StopPod also ends what is in the pod, however it hangs.
type WholePods interface {
	StopPodEndsContainers()
}

// Containers makes and ends containers inside a pod.
type Containers interface {
	// CreateContainer makes it without starting it. Everything that can be checked before the start (seccomp and AppArmor
	// profile present, image sub-path present, user known) fails here. A left-over object of the same key is removed first.
	CreateContainer(ctx context.Context, spec *ContainerSpec) (ContainerStatus, error)
	// StartContainer starts it, with its log writer. A process that cannot start (no such file, …) is reported in the error
	// and as an exited status with 127/126/128 and reason StartError.
	StartContainer(ctx context.Context, id ContainerID, spec *ContainerSpec) (ContainerStatus, error)
	// StopContainer sends the container's stop signal, waits for grace, then kills; grace 0 kills at once. It returns when
	// the container has exited. When ctx ends during the grace nothing is killed. OK when exited, never started or absent.
	StopContainer(ctx context.Context, id ContainerID, grace time.Duration) error
	// RemoveContainer removes it by force with its writable layer; its CRI log files stay. OK when absent.
	RemoveContainer(ctx context.Context, id ContainerID) error
	// UpdateContainer sets the resources, all or nothing; a zero field of the new value removes that limit. ErrFailedPrecondition
	// for a container that has exited.
	UpdateContainer(ctx context.Context, id ContainerID, resources *Resources) error
	// ReopenLog makes the log writer go on in a new file at the container's log path; when it returns, the old file gets
	// nothing more. ErrFailedPrecondition when the container does not run.
	ReopenLog(ctx context.Context, id ContainerID) error
	// ContainerStatus asks the engine itself. ErrNotFound when absent.
	ContainerStatus(ctx context.Context, id ContainerID) (ContainerStatus, error)
	// CheckpointContainer writes a checkpoint archive to location. ErrNotImplemented with the reason where it cannot.
	CheckpointContainer(ctx context.Context, id ContainerID, location string) error
}

// Execs runs further processes in a container, or joins its main one.
type Execs interface {
	// Exec runs a process with the container's rights and returns its exit code once it ended and its output was
	// delivered. When ctx ends the process and all its descendants are killed and ctx's error returned. Children that
	// keep the output open are waited for DrainTimeout at most.
	Exec(ctx context.Context, id ContainerID, exec *ExecSpec) (exitCode int, err error)
	// Attach copies between the streams and the container's main process until either ends. The end of Stdin is the streams'
	// but with a StdinOnce that is no terminal's, where it is the end of the container's input and all output comes.
	Attach(ctx context.Context, id ContainerID, streams *Streams) error
}

// Images is the engine's image store.
type Images interface {
	// ListImages answers from the engine.
	ListImages(ctx context.Context) ([]Image, error)
	// Image finds by id, id prefix of 12 digits or more, tag, digest or familiar name. ErrNotFound when absent.
	Image(ctx context.Context, ref string) (*Image, error)
	// PullImage pulls and returns the image. It fails (ErrDeadlineExceeded) after spec.NoProgress without progress; pulls
	// of the same thing at once are joined, each caller may leave.
	PullImage(ctx context.Context, spec *PullSpec) (*Image, error)
	// RemoveImage removes the image and every tag of it. OK when absent; ErrFailedPrecondition when a container uses it.
	RemoveImage(ctx context.Context, id ImageID) error
	// ImageFS names the file systems of images and of containers, from a background sample.
	ImageFS(ctx context.Context) (images, containers []FSUsage, err error)
}
