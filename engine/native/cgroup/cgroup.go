// Package cgroup owns the names and the lives of cgroups: which one a pod and its containers are in, in the words of either
// driver, their limits, who is in them, and their end. Statistics are read by package stats.
//
// A pod whose cgroup_parent is given lives in that cgroup, which is the kubelet's: it is made if absent, and never limited
// or removed by us. Without one the pod gets a cgroup of our own. Containers are below: PARENT/ID with cgroupfs,
// PARENT.slice/crishim-ID.scope with systemd.
package cgroup

import (
	"context"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/native/host"
)

// Driver makes cgroups on a host.
type Driver struct {
	host *host.Host
}

// New is the driver of a host.
func New(h *host.Host) *Driver { return &Driver{host: h} }

// Pod is a pod's cgroup.
type Pod struct {
	// Path is below every hierarchy's root, as in /proc/PID/cgroup.
	Path string `json:"path"`
	// Own says that we made it for this pod: limits and removal are ours.
	Own bool `json:"own,omitempty"`
}

// Pod names the pod's cgroup; no I/O. ErrInvalidArgument when parent climbs, is the root, or is no slice with systemd.
func (d *Driver) Pod(id engine.PodID, parent string) (Pod, error) {
	return Pod{}, errdefs.ErrNotImplemented
}

// Container is a container's cgroup: what OCI's linux.cgroupsPath says and what /proc/PID/cgroup will.
type Container struct {
	CgroupsPath string `json:"cgroupsPath"`
	Path        string `json:"path"`
}

// Container names a container's cgroup; no I/O.
func (d *Driver) Container(p Pod, id engine.ContainerID) Container { return Container{} }

// CreatePod makes it, with limits where it is our own.
func (d *Driver) CreatePod(ctx context.Context, p Pod, limits *engine.Resources) error {
	return errdefs.ErrNotImplemented
}

// UpdatePod sets the limits of our own; others are left to who made them.
func (d *Driver) UpdatePod(ctx context.Context, p Pod, limits *engine.Resources) error {
	return errdefs.ErrNotImplemented
}

// RemovePod kills what is left in our own and removes it. OK when absent, or not our own.
func (d *Driver) RemovePod(ctx context.Context, p Pod) error { return errdefs.ErrNotImplemented }

// Processes are the pids in the cgroup at path and below.
func (d *Driver) Processes(path string) ([]int, error) { return nil, errdefs.ErrNotImplemented }

// Kill ends every process in the cgroup at path and below, and waits until it is empty or ctx ends. Frozen ones are thawed.
// OK when absent.
func (d *Driver) Kill(ctx context.Context, path string) error { return errdefs.ErrNotImplemented }

// Remove kills what is in the cgroup at path and removes it, with what is below, in every hierarchy. OK when absent.
func (d *Driver) Remove(ctx context.Context, path string) error { return errdefs.ErrNotImplemented }

// Join moves a process into the cgroup at path, which is made if absent, in every hierarchy: for the monitors, which live
// outside of their pods' limits.
func (d *Driver) Join(path string, pid int) error { return errdefs.ErrNotImplemented }

// Monitors is the cgroup of monitors.
func (d *Driver) Monitors() string { return "" }

// OOMKills counts the processes that the kernel killed in the cgroup at path for its memory limit. ErrNotFound when absent.
func (d *Driver) OOMKills(path string) (uint64, error) { return 0, errdefs.ErrNotImplemented }

// List are the containers' and pods' own cgroups of ours that exist: names that recovery finds no owner for are removed.
func (d *Driver) List() (pods []engine.PodID, err error) { return nil, errdefs.ErrNotImplemented }
