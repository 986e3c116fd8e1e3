package rootfs

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/mounttree"
)

// mountAttributes are CRI's mount_options.
var mountAttributes = map[string]uint64{
	"noexec": unix.MOUNT_ATTR_NOEXEC, "nodev": unix.MOUNT_ATTR_NODEV, "nosuid": unix.MOUNT_ATTR_NOSUID,
}

// ImageVolume is an image that a container mounts.
type ImageVolume struct {
	Layers
	// SubPath is a folder in it, "" for its root. Links in it lead to places in it, whatever they name.
	SubPath string
	// Options are of noexec, nodev, nosuid.
	Options []string
}

// MountImage mounts the image volume n of a container, read-only, and returns the path to bind. ErrInvalidArgument when the
// image has no such folder.
func (s *Store) MountImage(ctx context.Context, id engine.ContainerID, n int, v *ImageVolume) (string, error) {
	path, err := s.mountImage(ctx, id, n, v)
	if err != nil {
		return "", fmt.Errorf("mount image volume %d of container %s: %w", n, id, err)
	}
	return path, nil
}

func (s *Store) mountImage(ctx context.Context, id engine.ContainerID, n int, v *ImageVolume) (string, error) {
	if err := checkID(string(id)); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	attributes := uint64(unix.MOUNT_ATTR_RDONLY)
	for _, option := range v.Options {
		if mountAttributes[option] == 0 {
			return "", invalid("mount option %.80q", option)
		}
		attributes |= mountAttributes[option]
	}
	uid, gid, err := v.Idmap.root()
	if err != nil {
		return "", err
	}
	whole := filepath.Join(s.container(id), "image-"+strconv.Itoa(n))
	target := filepath.Join(s.container(id), "volume-"+strconv.Itoa(n))
	// What an earlier try left.
	for _, dir := range []string{whole, target} {
		if err := mounttree.Unmount(dir); err != nil {
			return "", err
		}
	}
	for _, dir := range []string{s.container(id), whole, target} {
		if err := makeDir(dir, 0o700, uid, gid); err != nil {
			return "", err
		}
	}
	// An overlay without a writable layer has two layers at least, and an image may have none.
	dirs := append([]string{filepath.Join(s.state, "empty")}, v.Dirs...)
	if len(v.Dirs) == 0 {
		dirs = append(dirs, s.noLayer())
	}
	lowers, err := openLowers(dirs, v.Idmap)
	if err != nil {
		return "", err
	}
	defer lowers.close()
	o := overlay{lowers: lowers, label: v.Label, scratch: filepath.Join(s.container(id), "lower")}
	if err := o.mount(whole); err != nil {
		return "", err
	}
	// What stays mounted when something fails goes with the container's mounts.
	tree, err := copyFolder(whole, v.SubPath)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attributes}); err != nil {
		return "", fmt.Errorf("set mount attributes: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("attach it at %s: %w", target, err)
	}
	return target, mounttree.Unmount(whole)
}

// copyFolder is a detached copy of the mount at root, at a folder in it.
func copyFolder(root, folder string) (int, error) {
	fd, err := openIn(root, folder, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, invalid("the image has no folder %.200q: %w", folder, err)
	}
	defer func() { _ = unix.Close(fd) }()
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("copy the mount of an image: %w", err)
	}
	return tree, nil
}
