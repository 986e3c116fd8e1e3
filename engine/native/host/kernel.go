package host

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crishim/internal/userns"
)

// tryKernel tries what no file tells. dir is where writable layers will be.
func tryKernel(dir string) Kernel {
	var k Kernel
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		k.Release = unix.ByteSliceToString(name.Release[:])
	}
	if dir == "" {
		dir = "/"
	}
	k.X32 = tryX32()
	k.RecursiveReadonly = tryAttributes(dir, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	maps := []userns.Mapping{{Inside: 0, Outside: 1 << 16, Length: 1 << 16}}
	holder, err := userns.Start(maps, maps, unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS)
	if err != nil {
		return k
	}
	defer func() { _ = holder.Close() }()
	k.UserNamespaces = true
	file, err := holder.Open("user")
	if err != nil {
		return k
	}
	defer func() { _ = file.Close() }()
	k.IDMappedMounts = overlayTakesIDMapped(k.Release) &&
		tryAttributes(dir, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(file.Fd())})
	return k
}

// tryAttributes changes a detached copy of the mount of dir, which nobody sees.
func tryAttributes(dir string, attr *unix.MountAttr) bool {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(tree) }()
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr) == nil
}

// overlayTakesIDMapped: overlayfs has id-mapped layers since Linux 5.19; trying it would mean to mount one.
func overlayTakesIDMapped(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 19
}
