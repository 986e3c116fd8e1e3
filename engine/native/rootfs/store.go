// Package rootfs owns what containers see as files: the overlay of an image's layers with a writable layer, image volumes,
// the pod's files for /etc and its /dev/shm, and their removal.
//
//	STATE/containers/ID/{upper,work,volumes}    the writable layer, volumes of the image; survive a reboot
//	STATE/init, STATE/empty, STATE/none, STATE/pause
//	                                            shared: see initLayer, noLayer, PauseRoot
//	RUN/containers/ID/{rootfs,volume-N}         mounts of a container
//	RUN/pods/ID/{shm,hosts,hostname,resolv.conf}
//	RUN/pause
//
// RUN is a private mount: what is mounted there is copied into no other mount namespace. An image decides neither where on
// the host something is written nor what is read: every path in it is resolved inside of it by openat2(2). What is above a
// root file system is closed to all but the root of its user namespace: its set-uid programs are nobody else's
// (moby CVE-2021-41091).
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/mounttree"
	"crishim/internal/rmtree"
)

// Store makes root file systems. Its methods may be called at once for different ids; calls for one are ordered by the
// caller.
type Store struct {
	state, run string
	// pausing orders the making of what PauseRoot shares.
	pausing sync.Mutex
	// copies are those of volumes that are being made.
	copying sync.Mutex
	copies  []*volumeCopy
}

// Open prepares both folders; run becomes a private mount. For pods with user namespaces everybody has to be able to pass
// the parents of run (mode 0711).
func Open(state, run string) (*Store, error) {
	s := &Store{state: state, run: run}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("prepare the folders of root file systems: %w", err)
	}
	return s, nil
}

func (s *Store) open() error {
	for _, dir := range []string{s.state, filepath.Join(s.state, "containers"), filepath.Join(s.state, "empty")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o700); err != nil && !errors.Is(err, unix.EROFS) { // what runs is served from a read-only disk too
			return err
		}
	}
	if err := mounttree.Private(s.run, 0o711); err != nil {
		return err
	}
	for _, dir := range []string{"containers", "pods"} {
		dir = filepath.Join(s.run, dir)
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	err := makeDir(s.noLayer(), 0o755, 0, 0)
	if err == nil {
		err = makeInitLayer(s.initLayer())
	}
	if errors.Is(err, unix.EROFS) {
		return nil // they were made when the disk could be written, or nothing can be made here anyway
	}
	return err
}

// noLayer is the layer of an image without any, as it is seen in a volume.
func (s *Store) noLayer() string { return filepath.Join(s.state, "none") }

func (s *Store) layer(id engine.ContainerID) string {
	return filepath.Join(s.state, "containers", string(id))
}

func (s *Store) container(id engine.ContainerID) string {
	return filepath.Join(s.run, "containers", string(id))
}

func (s *Store) pod(id engine.PodID) string { return filepath.Join(s.run, "pods", string(id)) }

// checkID keeps ids from being paths.
func checkID(id string) error {
	ok := id != "" && len(id) <= 128 && id[0] != '.'
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return fmt.Errorf("%.80q is no id: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// Rootfs is a container's mounted root.
type Rootfs struct {
	// Path is the mount, Upper the folder of the writable layer.
	Path, Upper string
}

// Layers are the layers of an image, and how a container is to see them.
type Layers struct {
	// Dirs are the unpacked layers, lowest first.
	Dirs []string
	// Idmap is nil in the host's user namespace.
	Idmap *Idmap
	// Label is the SELinux label of all files, "" without.
	Label string
	// Fill, where it is set, fills the new writable layer of a container as an image's layer is unpacked.
	Fill func(upper *os.File) error
}

// Idmap is a user namespace: its mapping and a path of it (a pin of package ns).
type Idmap struct {
	Namespace *engine.UserNamespace
	Path      string
}

// root is the owner of what the root of the container owns. A nil m is the host's user namespace.
func (m *Idmap) root() (uid, gid int, err error) { return m.host(0, 0) }

// host is the owner on the host of what a uid and gid of the container own.
func (m *Idmap) host(insideUID, insideGID uint32) (uid, gid int, err error) {
	if m == nil {
		return int(insideUID), int(insideGID), nil
	}
	if uid, err = outside(m.Namespace.UIDs, insideUID); err != nil {
		return 0, 0, err
	}
	gid, err = outside(m.Namespace.GIDs, insideGID)
	return uid, gid, err
}

func outside(maps []engine.IDMapping, inside uint32) (int, error) {
	for _, m := range maps {
		if inside >= m.ContainerID && inside-m.ContainerID < m.Length {
			return int(m.HostID + inside - m.ContainerID), nil
		}
	}
	return 0, invalid("the user namespace does not map id %d", inside)
}

// Mount makes the root of a container. The writable layer is new at the first call and kept by later ones; a mount that is
// there already stays.
func (s *Store) Mount(ctx context.Context, id engine.ContainerID, l *Layers) (Rootfs, error) {
	root, err := s.mount(ctx, id, l)
	if err != nil {
		return Rootfs{}, fmt.Errorf("mount the root file system of container %s: %w", id, err)
	}
	return root, nil
}

func (s *Store) mount(ctx context.Context, id engine.ContainerID, l *Layers) (Rootfs, error) {
	if err := checkID(string(id)); err != nil {
		return Rootfs{}, err
	}
	if err := ctx.Err(); err != nil {
		return Rootfs{}, err
	}
	root := s.rootfs(id)
	if mounted, err := mountinfo.Mounted(root.Path); err == nil && mounted {
		return root, nil
	}
	uid, gid, err := l.Idmap.root()
	if err != nil {
		return root, err
	}
	work := filepath.Join(s.layer(id), "work")
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{s.layer(id), 0o700}, {root.Upper, 0o755}, {work, 0o700}, {s.container(id), 0o700}, {root.Path, 0o700}} {
		if err := makeDir(d.path, d.mode, uid, gid); err != nil {
			return root, err
		}
	}
	if l.Fill != nil {
		if err := fill(root.Upper, l.Fill); err != nil {
			return root, err
		}
	}
	if err := makeEtc(root.Upper, l); err != nil {
		return root, err
	}
	lowers, err := openLowers(append(l.Dirs[:len(l.Dirs):len(l.Dirs)], s.initLayer()), l.Idmap)
	if err != nil {
		return root, err
	}
	defer lowers.close()
	o := overlay{lowers: lowers, upper: root.Upper, work: work, label: l.Label, scratch: filepath.Join(s.container(id), "lower")}
	return root, o.mount(root.Path)
}

// fill has the writable layer filled.
func fill(upper string, do func(*os.File) error) error {
	dir, err := os.Open(upper)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return do(dir)
}

func (s *Store) rootfs(id engine.ContainerID) Rootfs {
	return Rootfs{Path: filepath.Join(s.container(id), "rootfs"), Upper: filepath.Join(s.layer(id), "upper")}
}

// makeDir makes a folder of ours with that mode and owner, whatever the umask; the one that it is in is ours alone.
func makeDir(path string, mode os.FileMode, uid, gid int) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err == nil {
		err = os.Lchown(path, uid, gid)
	}
	return err
}

// Get is the root of a container that was mounted; ErrNotFound when it is not.
func (s *Store) Get(id engine.ContainerID) (Rootfs, error) {
	if err := checkID(string(id)); err != nil {
		return Rootfs{}, err
	}
	root := s.rootfs(id)
	if mounted, err := mountinfo.Mounted(root.Path); err != nil || !mounted {
		return Rootfs{}, fmt.Errorf("the root file system of container %s is not mounted: %w", id, errdefs.ErrNotFound)
	}
	return root, nil
}

// Present says whether a container may have mounts.
func (s *Store) Present(id engine.ContainerID) bool {
	_, err := os.Lstat(s.container(id))
	return checkID(string(id)) == nil && err == nil
}

// Unmount takes a container's mounts away, its writable layer stays. OK when there are none.
func (s *Store) Unmount(ctx context.Context, id engine.ContainerID) error {
	if err := checkID(string(id)); err != nil {
		return err
	}
	if err := removeMounts(ctx, s.container(id), s.rootfs(id).Path); err != nil {
		return fmt.Errorf("unmount the file systems of container %s: %w", id, err)
	}
	return nil
}

// removeMounts unmounts everything in a folder of RUN, of which the usual mount mostly is all, and removes it with the mount
// points.
func removeMounts(ctx context.Context, dir, usual string) error {
	if err := mounttree.UnmountOne(usual); err != nil {
		return err
	}
	return removeUnmounted(ctx, dir)
}

// removeUnmounted removes a folder of ours, and unmounts what is mounted in it: the list of all mounts is long, and not read
// where there is no need.
func removeUnmounted(ctx context.Context, dir string) error {
	err := rmtree.Remove(ctx, dir)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EBUSY) {
		if err = mounttree.Unmount(dir); err == nil {
			err = rmtree.Remove(ctx, dir)
		}
	}
	return err
}

// Remove takes a container's mounts and its writable layer away: neither links nor mounts in the layer lead it out, and the
// tree may be of any depth. OK when there is nothing. When ctx ends the next call goes on.
func (s *Store) Remove(ctx context.Context, id engine.ContainerID) error {
	if err := s.Unmount(ctx, id); err != nil {
		return err
	}
	if err := removeUnmounted(ctx, s.layer(id)); err != nil {
		return fmt.Errorf("remove the writable layer of container %s: %w", id, err)
	}
	return nil
}

// Names are the ids that have anything here, containers' and pods': what no record owns is to be removed.
func (s *Store) Names() (containers []engine.ContainerID, pods []engine.PodID, err error) {
	seen := map[string]bool{}
	for _, dir := range []string{filepath.Join(s.state, "containers"), filepath.Join(s.run, "containers")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, nil, fmt.Errorf("list the root file systems: %w", err)
		}
		for _, entry := range entries {
			if !seen[entry.Name()] {
				seen[entry.Name()] = true
				containers = append(containers, engine.ContainerID(entry.Name()))
			}
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.run, "pods"))
	if err != nil {
		return nil, nil, fmt.Errorf("list the files of pods: %w", err)
	}
	for _, entry := range entries {
		pods = append(pods, engine.PodID(entry.Name()))
	}
	return containers, pods, nil
}

// Close unmounts RUN where nothing is mounted in it.
func (s *Store) Close() error { return unix.Unmount(s.run, unix.UMOUNT_NOFOLLOW) }
