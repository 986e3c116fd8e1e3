// Package rootfs owns what containers see as files: the overlay of an image's layers with a writable layer, image volumes,
// the pod's files for /etc and its /dev/shm, and their removal.
//
//	STATE/containers/ID/{upper,work}   the writable layer, survives a reboot
//	RUN/ID/rootfs, RUN/ID/volume-N     mounts of a container
//	RUN/POD/shm, RUN/POD/etc/…         of a pod
//
// RUN is a private mount: what is mounted there is copied into no other mount namespace. An image decides neither where on
// the host something is written nor what is read: every path in it is resolved inside of it by openat2(2).
package rootfs

import (
	"context"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/native/host"
)

// Store makes root file systems. Its methods may be called at once for different ids.
type Store struct {
	state, run string
	host       *host.Host
}

// Open prepares both folders: run becomes a private mount. Parents of both must let others pass (mode 0711) for pods with
// user namespaces.
func Open(h *host.Host, state, run string) (*Store, error) { return nil, errdefs.ErrNotImplemented }

// Rootfs is a container's mounted root.
type Rootfs struct {
	// Path is the mount, Upper the folder of the writable layer.
	Path, Upper string
}

// Idmap is a user namespace: its mapping and a path of it (a pin of package ns).
type Idmap struct {
	Namespace *engine.UserNamespace
	Path      string
}

// Mount makes the root of a container from layers (folders, lowest first). The writable layer is new at the first call and
// kept by later ones; a mount that is there already stays. m is nil without a user namespace.
func (s *Store) Mount(ctx context.Context, id engine.ContainerID, layers []string, m *Idmap) (Rootfs, error) {
	return Rootfs{}, errdefs.ErrNotImplemented
}

// Get is the root of a container that was mounted; ErrNotFound when there is none.
func (s *Store) Get(id engine.ContainerID) (Rootfs, error) {
	return Rootfs{}, errdefs.ErrNotImplemented
}

// MountImage mounts the image volume n of a container: layers (lowest first), read-only, or the folder subPath of them, with
// options (noexec, nodev, nosuid). ErrInvalidArgument when the image has no such folder. It returns the path to bind.
func (s *Store) MountImage(ctx context.Context, id engine.ContainerID, n int, layers []string, subPath string, options []string, m *Idmap) (string, error) {
	return "", errdefs.ErrNotImplemented
}

// Unmount takes a container's mounts away, its writable layer stays. OK when there are none.
func (s *Store) Unmount(ctx context.Context, id engine.ContainerID) error {
	return errdefs.ErrNotImplemented
}

// Remove takes its mounts and its writable layer away. It goes by descriptors: neither links nor mounts in the layer lead it
// out, and the tree may be of any depth. OK when there is nothing.
func (s *Store) Remove(ctx context.Context, id engine.ContainerID) error {
	return errdefs.ErrNotImplemented
}

// Pod is what a pod's containers share.
type Pod struct {
	Shm                         string
	Hosts, Hostname, ResolvConf string
}

// MakePod writes the pod's files and mounts its /dev/shm. Repeating it makes them anew.
func (s *Store) MakePod(ctx context.Context, id engine.PodID, spec *engine.PodSpec) (Pod, error) {
	return Pod{}, errdefs.ErrNotImplemented
}

// RemovePod takes it away. OK when there is nothing.
func (s *Store) RemovePod(ctx context.Context, id engine.PodID) error {
	return errdefs.ErrNotImplemented
}

// PauseRoot is a root file system with nothing in it but /pause. It is made at the first call, and shared.
func (s *Store) PauseRoot() (string, error) { return "", errdefs.ErrNotImplemented }

// Names are the ids that have anything here: containers' and pods'.
func (s *Store) Names() (containers []engine.ContainerID, pods []engine.PodID, err error) {
	return nil, nil, errdefs.ErrNotImplemented
}

// UserFiles reads /etc/passwd and /etc/group in root. Absent ones are empty. ErrInvalidArgument for what is no regular file
// in root, or too large.
func UserFiles(root string) (passwd, group []byte, err error) {
	return nil, nil, errdefs.ErrNotImplemented
}

// PrepareSources makes the missing host paths of mounts (never behind a link that a pod can have made), checks that their
// propagation is what the mounts ask for, and relabels those that ask for it with mountLabel.
func PrepareSources(mounts []engine.Mount, mountLabel string) error { return errdefs.ErrNotImplemented }
