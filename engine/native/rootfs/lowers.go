package rootfs

import (
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lower is one layer: a folder, or where mapped a detached mount of it in which owners are those of a user namespace.
type lower struct {
	dir    string
	mapped bool
	tree   int
}

// lowers are layers, lowest first.
type lowers []lower

// openLowers maps the layers into the user namespace of m: nothing in them is changed or copied.
func openLowers(dirs []string, m *Idmap) (lowers, error) {
	dirs = uppermost(dirs)
	var all lowers
	if m == nil {
		for _, dir := range dirs {
			all = append(all, lower{dir: dir})
		}
		return all, nil
	}
	user, err := os.OpenFile(m.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("the pod's user namespace: %w", err)
	}
	defer func() { _ = user.Close() }()
	for _, dir := range dirs {
		tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			all.close()
			return nil, fmt.Errorf("layer %s: %w", dir, err)
		}
		all = append(all, lower{dir: dir, mapped: true, tree: tree})
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user.Fd())}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
			all.close()
			return nil, fmt.Errorf("map the owners of layer %s (its file system must know id-mapped mounts): %w: %w", dir, err, errdefs.ErrFailedPrecondition)
		}
	}
	return all, nil
}

// uppermost leaves of a folder that is there several times the uppermost only: an image may have a layer again, most of all the
// empty one of a step that changed no file, and overlay takes no folder twice (ELOOP).
//
// What is seen stays as it is. Wherever the kernel looks into the lower one of two equal layers, it has looked into the upper one
// before, at the same path. A file, a link, a whiteout or an opaque folder there ended the look-up, whatever lies between the two.
// In a plain folder each name of the lower one was found in the upper one already, and attributes are those of the uppermost folder.
func uppermost(dirs []string) []string {
	var kept []string
	for i, dir := range dirs {
		if !slices.Contains(dirs[i+1:], dir) {
			kept = append(kept, dir)
		}
	}
	return kept
}

func (l lowers) close() {
	for _, one := range l {
		if one.mapped {
			_ = unix.Close(one.tree)
		}
	}
}
