// Package spec lowers an engine's ContainerSpec to an OCI runtime spec: pure functions of the spec, the image's config and
// the host (package host), held by golden files. Everything that needs the file system was looked up before: users, device
// nodes, labels, the paths of namespaces and mounts.
//
// Build makes the spec of a container, BuildPause that of the process which is pid 1 of a pod's shared PID namespace,
// BuildExec a further process of a container, Resources what an update sets.
package spec

import (
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
	// Rootfs is the mounted root.
	Rootfs string
	// Pins are the pod's namespaces to join by path; "" is the host's, or for PID a new one unless CRI's mode says NODE.
	Pins Pins
	// Hostname is set in the spec's environment only: the pod's UTS namespace has it already.
	Hostname string
	// Files of the pod to show in /etc unless CRI mounts its own; "" shows none.
	Files Files
	// Shm is the pod's /dev/shm, or the host's with IPC mode NODE.
	Shm string
	// CgroupsPath is for specs.Linux.CgroupsPath (package cgroup).
	CgroupsPath string
	// Devices are resolved (host.Devices, host.AllDevices).
	Devices []host.Device
	// Labels are SELinux's.
	Labels host.Labels
	// ImageVolumes are the prepared paths of those spec.Mounts that are images, by index.
	ImageVolumes map[int]string
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

// AppArmorDefault is the profile of containers that ask for none; it is loaded by the engine where the host has AppArmor.
const AppArmorDefault = "crishim-default"
