package docker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/internal/flight"
	"crishim/internal/keymutex"
)

// hostMounts are mounts that the Engine API has no words for. Each is made on the host before the container is created,
// with its flags, and Docker is told to bind it read-write: then the OCI runtime does not remount it, and the flags stay.
//
//	dir/KEY      a tmpfs for one container; KEY is in the container's label
//	dir/KEY/N    the prepared mount number N of its spec
//
// A prepared mount is needed until the container has started and has its own copy. It is unmounted then, not when the
// container is removed: it would keep a volume busy that the kubelet unmounts as soon as the container has exited. That of a
// container which was never started goes with the end of its pod's process.
//
// The tmpfs makes a wrong place visible: where dockerd has another mount namespace after all, it does not see what is in
// it and refuses the container, instead of giving it an empty folder. It is private: what is mounted in it is nobody
// else's, and Docker's own check of a source's propagation sees that of the host path.
type hostMounts struct {
	dir string

	// owed says that something prepared could not be taken back, which nothing but a sweep finds.
	owed atomic.Bool
	// dropping is held by key while what has it is taken away.
	dropping keymutex.Mutex[string]
	// unmounting is held by key during the system calls of that, which may hang with a volume's server: the mount may be its last one.
	unmounting keymutex.Mutex[string]

	mu sync.Mutex
	// making are the keys of containers that are not known to exist yet.
	making map[string]bool
	keys   map[engine.ContainerID]preparedMounts
	// hanging are the keys of unmounts that go on although nobody waits for them any more.
	hanging map[string]bool
}

// preparedMounts are those of a container.
type preparedMounts struct {
	key string
	pod engine.PodID
}

func (h *hostMounts) path(key string) string { return filepath.Join(h.dir, key) }

// validKey says whether key is one of rand.Text: keys come back in labels, and become parts of paths.
func validKey(key string) bool {
	if len(key) != 26 {
		return false
	}
	for _, c := range []byte(key) {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// reserve returns a new key, which is kept from a sweep until unreserve.
func (h *hostMounts) reserve() string {
	key := rand.Text()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.making == nil {
		h.making = map[string]bool{}
	}
	h.making[key] = true
	return key
}

func (h *hostMounts) unreserve(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.making, key)
}

// belong notes whose mounts those of key are; without it they are swept.
func (h *hostMounts) belong(id engine.ContainerID, mounts preparedMounts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys == nil {
		h.keys = map[engine.ContainerID]preparedMounts{}
	}
	h.keys[id] = mounts
}

// known replaces what is known of containers, but for those in the making.
func (h *hostMounts) known(keys map[engine.ContainerID]preparedMounts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, mounts := range h.keys {
		if h.making[mounts.key] {
			keys[id] = mounts
		}
	}
	h.keys = keys
}

// keyOf is "" for a container without prepared mounts.
func (h *hostMounts) keyOf(id engine.ContainerID) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.keys[id].key
}

func (h *hostMounts) forget(id engine.ContainerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, id)
}

// unused says whether neither a container nor the making of one needs what has the key. Ask only after it was seen:
// a key is reserved before anything is made.
func (h *hostMounts) unused(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.making[key] {
		return false
	}
	for _, used := range h.keys {
		if used.key == key {
			return false
		}
	}
	return true
}

// open makes the place of a container's mounts.
func (h *hostMounts) open(key string) error {
	dir := h.path(key)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := failpoint.Hit("mounts.open.folder"); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=64k"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

// attach puts a detached mount at number n of key.
func (h *hostMounts) attach(key string, n, tree int) error {
	target := filepath.Join(h.path(key), strconv.Itoa(n))
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(target, 0o700); err != nil {
			return err
		}
	} else {
		file, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_ = file.Close()
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach a mount at %s: %w", target, err)
	}
	return nil
}

// unmountLimit is how long anybody waits for an unmount: what is unmounted may be a volume's last mount, whose server the kernel then
// asks, and which may answer no more.
const unmountLimit = 5 * time.Second

// unmount removes the mounts of key and their place. OK when there are none. One that hangs goes on by itself, and whoever comes
// for the same key meanwhile waits as long, or not at all where it is known to hang.
func (h *hostMounts) unmount(key string) error {
	if !validKey(key) {
		return nil
	}
	if h.hangs(key) {
		return fmt.Errorf("unmount %s, which hangs in an earlier unmount: %w", h.path(key), context.DeadlineExceeded)
	}
	// Not the caller's: one that has left would leave the mount, and with it the volume busy.
	ctx, cancel := context.WithTimeout(context.Background(), unmountLimit)
	defer cancel()
	unlock, err := h.unmounting.Lock(ctx, key)
	if err != nil {
		return fmt.Errorf("unmount %s, which hangs in an earlier unmount: %w", h.path(key), err)
	}
	done := make(chan error, 1)
	go func() {
		defer unlock()
		err := h.unmountNow(key)
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.hanging[key] {
			delete(h.hanging, key)
			if err != nil {
				h.owed.Store(true) // nobody else learns of it
			}
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case err := <-done:
		return err
	default:
	}
	if h.hanging == nil {
		h.hanging = map[string]bool{}
	}
	h.hanging[key] = true
	return fmt.Errorf("unmount %s, which goes on: %w", h.path(key), ctx.Err())
}

func (h *hostMounts) unmountNow(key string) error {
	dir := h.path(key)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return failpoint.Around("mounts.unmount", func() error { return unmountPrepared(dir) })
}

func (h *hostMounts) hangs(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hanging[key]
}

func unmountPrepared(dir string) error {
	for range 16 {
		// A copy of a shared mount must leave its peers first: unmounting what is mounted inside it would unmount that in
		// the host path too.
		err := unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if errors.Is(err, unix.EINVAL) {
			break // not a mount point, or not any more
		}
		if err == nil {
			err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	// Never more than an empty folder: below a mount that stayed there would be a volume.
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sweep unmounts what is unused, all of it at once, so that those that hang are waited for once. Of those that are known to hang
// there is nothing to do, and they are no error: who sweeps is mostly another pod's end.
func (h *hostMounts) sweep() error {
	entries, err := os.ReadDir(h.dir)
	errs := make([]error, len(entries))
	var all sync.WaitGroup
	for i, entry := range entries {
		if h.unused(entry.Name()) && !h.hangs(entry.Name()) {
			all.Go(func() {
				defer flight.Caught(&errs[i])
				errs[i] = h.unmount(entry.Name())
			})
		}
	}
	all.Wait()
	return errors.Join(append(errs, err)...)
}

// unmountOf unmounts what is prepared for the containers of a pod in which nothing will be started any more.
func (h *hostMounts) unmountOf(pod engine.PodID) error {
	var keys []string
	h.mu.Lock()
	for _, mounts := range h.keys {
		if mounts.pod == pod {
			keys = append(keys, mounts.key)
		}
	}
	h.mu.Unlock()
	errs := make([]error, len(keys))
	var all sync.WaitGroup
	for i, key := range keys {
		all.Go(func() {
			defer flight.Caught(&errs[i])
			errs[i] = h.unmount(key)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// bind prepares the mount n of a host path. The path is resolved once, here; what is done after goes by the descriptor.
func (h *hostMounts) bind(key string, n int, m *engine.Mount) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, m.HostPath, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("host path %.200s: %w: %w", m.HostPath, err, errdefs.ErrInvalidArgument)
	}
	defer func() { _ = unix.Close(tree) }()
	for _, change := range bindChanges(m) {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|change.flags, &change.attr); err != nil {
			return fmt.Errorf("set mount attributes: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return h.attach(key, n, tree)
}

// mountChange is one call of mount_setattr.
type mountChange struct {
	flags uint
	attr  unix.MountAttr
}

// bindChanges are what makes a copy of a host path's mounts the mount that was asked for. Read-only is recursive where
// that was asked for; options are, as the OCI's, of the mount itself. Propagation is what Docker needs to see at the
// source: a read-only tree gets nothing mounted into it any more, others follow the host (and Docker makes them private
// in the container), and a bidirectional one stays a peer of the host path.
func bindChanges(m *engine.Mount) []mountChange {
	var changes []mountChange
	switch {
	case m.RecursiveReadonly:
		changes = append(changes, mountChange{unix.AT_RECURSIVE, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}})
	case m.Propagation != engine.PropagationBidirectional:
		changes = append(changes, mountChange{unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_SLAVE}})
	}
	set := optionAttributes(m.Options)
	if m.Readonly {
		set |= unix.MOUNT_ATTR_RDONLY
	}
	if set != 0 {
		changes = append(changes, mountChange{0, unix.MountAttr{Attr_set: set}})
	}
	return changes
}

// mountAttributes are CRI's mount_options.
var mountAttributes = map[string]uint64{
	"noexec": unix.MOUNT_ATTR_NOEXEC,
	"nodev":  unix.MOUNT_ATTR_NODEV,
	"nosuid": unix.MOUNT_ATTR_NOSUID,
}

func optionAttributes(options []string) uint64 {
	var set uint64
	for _, option := range options {
		set |= mountAttributes[option]
	}
	return set
}

// errUnseen: the engine does not see what is mounted on the host, or may not.
var errUnseen = errors.New("the engine may be in another mount namespace")

// canPrepareMounts says why mounts cannot be prepared on this host for the engine at socket; nil when they can.
func canPrepareMounts(ctx context.Context, socket, dir string) error {
	if err := sharesMounts(ctx, socket); err != nil {
		return fmt.Errorf("%w: %w", errUnseen, err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		_ = unix.Close(tree)
	}
	if err != nil {
		return fmt.Errorf("the kernel has no mount_setattr for us (Linux 5.12 or newer, and CAP_SYS_ADMIN): %w", err)
	}
	return nil
}

func sharesMounts(ctx context.Context, socket string) error {
	pid, err := peerOf(ctx, socket)
	if err != nil {
		return fmt.Errorf("the engine's process: %w", err)
	}
	theirs, err := os.Readlink(procPath(pid, "ns/mnt"))
	if err != nil {
		return fmt.Errorf("the engine's mount namespace: %w", err)
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if theirs != ours {
		return fmt.Errorf("the engine (process %d) has %s, we %s", pid, theirs, ours)
	}
	return nil
}

// peerOf is the process that listens on a unix socket; with socket activation that is the host's init, which has the
// mount namespace that services get.
func peerOf(ctx context.Context, socket string) (int, error) {
	d := net.Dialer{Timeout: connectLimit}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var perr error
	if err := raw.Control(func(fd uintptr) { peer, perr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if perr != nil {
		return 0, perr
	}
	return int(peer.Pid), nil
}
