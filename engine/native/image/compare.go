package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// difference is what the tree at have is not as the one at want, as one line about the first that is found, "" where they are
// the same: names, kinds, owners, modes, links, devices, extended attributes, and of files the times and the content. Times
// of folders do not count, nor labels that the host gives by itself.
func difference(ctx context.Context, want, have string) (string, error) {
	c := comparison{ctx: ctx, linked: map[uint64]uint64{}}
	for i, dir := range []string{want, have} {
		root, err := os.Open(dir)
		if err != nil {
			return "", err
		}
		defer func() { _ = root.Close() }()
		c.roots[i] = int(root.Fd())
	}
	err := c.trees()
	var found foundDifference
	if errors.As(err, &found) {
		return string(found), nil
	}
	return "", err
}

// foundDifference ends a comparison.
type foundDifference string

func (f foundDifference) Error() string { return string(f) }

// comparison is of two trees, the wanted one first. Folders are opened one at a time, by their names below the roots: however
// deep they lie, no path is too long and no more than a few descriptors are open.
type comparison struct {
	ctx   context.Context
	roots [2]int
	// linked is which file of the second tree is what that of the first is, of files with several names.
	linked map[uint64]uint64
}

func differs(name, format string, args ...any) error {
	return foundDifference(fmt.Sprintf("%.300q ", name) + fmt.Sprintf(format, args...))
}

// unreadable is the error of one tree: in the wanted one it ends the comparison without a result.
func unreadable(which int, name string, err error) error {
	if which == 1 {
		return differs(name, "cannot be read: %v", err)
	}
	return fmt.Errorf("read %.300q of the tree to compare with: %w", name, err)
}

func (c *comparison) trees() error {
	if err := c.attributes([2]string{procPath(c.roots[0]), procPath(c.roots[1])}, "."); err != nil {
		return err
	}
	if _, err := c.stat(c.roots, "", "."); err != nil {
		return err
	}
	folders := []string{"."}
	for len(folders) > 0 {
		name := folders[len(folders)-1]
		more, err := c.folder(name)
		if err != nil {
			return err
		}
		folders = append(folders[:len(folders)-1], more...)
	}
	return nil
}

// folder compares what two folders hold and returns the folders in them.
func (c *comparison) folder(name string) (folders []string, err error) {
	if err := c.ctx.Err(); err != nil {
		return nil, err
	}
	var fds [2]int
	var names [2][]string
	for i, root := range c.roots {
		how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
		fd, err := unix.Openat2(root, name, &how)
		if err != nil {
			return nil, unreadable(i, name, err)
		}
		dir := os.NewFile(uintptr(fd), name)
		defer func() { _ = dir.Close() }()
		if names[i], err = dir.Readdirnames(-1); err != nil {
			return nil, unreadable(i, name, err)
		}
		slices.Sort(names[i])
		fds[i] = fd
	}
	for _, base := range names[1] {
		if _, found := slices.BinarySearch(names[0], base); !found {
			return nil, differs(path.Join(name, base), "is none of the image's")
		}
	}
	for _, base := range names[0] {
		full := path.Join(name, base)
		if _, found := slices.BinarySearch(names[1], base); !found {
			return nil, differs(full, "is absent")
		}
		isFolder, err := c.entry(fds, base, full)
		if err != nil {
			return nil, err
		}
		if isFolder {
			folders = append(folders, full)
		}
	}
	return folders, nil
}

// stat compares what stat says of an entry; base "" is the folder itself.
func (c *comparison) stat(dirs [2]int, base, name string) (stats [2]unix.Stat_t, err error) {
	for i, dir := range dirs {
		if err := unix.Fstatat(dir, base, &stats[i], unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH); err != nil {
			return stats, unreadable(i, name, err)
		}
	}
	want, have := &stats[0], &stats[1]
	switch {
	case want.Mode != have.Mode:
		return stats, differs(name, "has mode %o in place of %o", have.Mode, want.Mode)
	case want.Uid != have.Uid || want.Gid != have.Gid:
		return stats, differs(name, "is of user %d and group %d in place of %d and %d", have.Uid, have.Gid, want.Uid, want.Gid)
	case want.Rdev != have.Rdev:
		return stats, differs(name, "is another device")
	case want.Mode&unix.S_IFMT == unix.S_IFDIR:
	case want.Size != have.Size:
		return stats, differs(name, "has %d bytes in place of %d", have.Size, want.Size)
	case want.Nlink != have.Nlink:
		return stats, differs(name, "has %d names in place of %d", have.Nlink, want.Nlink)
	case want.Mode&unix.S_IFMT == unix.S_IFCHR: // a whiteout has the time at which it was made
	case want.Mtim != have.Mtim:
		return stats, differs(name, "has another modification time")
	}
	return stats, nil
}

// entry compares what is under one name, but not what a folder holds.
func (c *comparison) entry(dirs [2]int, base, name string) (isFolder bool, err error) {
	stats, err := c.stat(dirs, base, name)
	if err != nil {
		return false, err
	}
	if err := c.attributes([2]string{procPath(dirs[0]) + "/" + base, procPath(dirs[1]) + "/" + base}, name); err != nil {
		return false, err
	}
	want := &stats[0]
	switch want.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true, nil
	case unix.S_IFLNK:
		return false, c.target(dirs, base, name)
	case unix.S_IFREG:
		if want.Nlink > 1 {
			if known, seen := c.linked[want.Ino]; seen {
				if known != stats[1].Ino {
					return false, differs(name, "is not the file that it is under its other names")
				}
				return false, nil
			}
			c.linked[want.Ino] = stats[1].Ino
		}
		return false, c.content(dirs, base, name)
	}
	return false, nil
}

func (c *comparison) target(dirs [2]int, base, name string) error {
	var targets [2]string
	for i, dir := range dirs {
		target, err := os.Readlink(procPath(dir) + "/" + base)
		if err != nil {
			return unreadable(i, name, err)
		}
		targets[i] = target
	}
	if targets[0] != targets[1] {
		return differs(name, "leads to %.300q in place of %.300q", targets[1], targets[0])
	}
	return nil
}

// content compares two files of one size.
func (c *comparison) content(dirs [2]int, base, name string) error {
	var files [2]*os.File
	for i, dir := range dirs {
		fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return unreadable(i, name, err)
		}
		files[i] = os.NewFile(uintptr(fd), name)
		defer func() { _ = files[i].Close() }()
	}
	const block = 256 << 10
	var buffers [2][block]byte
	for {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(files[0], buffers[0][:])
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return unreadable(0, name, err)
		}
		if _, rerr := io.ReadFull(files[1], buffers[1][:n]); rerr != nil {
			return unreadable(1, name, rerr)
		}
		if !bytes.Equal(buffers[0][:n], buffers[1][:n]) {
			return differs(name, "has another content")
		}
		if err != nil {
			return nil // the end of it
		}
	}
}

// procPath leads to an open folder; what is appended to it is not followed by calls that follow no link.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// attributes compares extended attributes. The roots' paths are links themselves.
func (c *comparison) attributes(paths [2]string, name string) error {
	var all [2]map[string]string
	for i, p := range paths {
		if name == "." {
			p += "/."
		}
		var err error
		if all[i], err = xattrs(p); err != nil {
			return unreadable(i, name, err)
		}
	}
	for attr, want := range all[0] {
		if have, ok := all[1][attr]; !ok || have != want {
			return differs(name, "has another attribute %s", attr)
		}
	}
	for attr := range all[1] {
		if _, ok := all[0][attr]; !ok {
			return differs(name, "has an attribute %s more", attr)
		}
	}
	return nil
}

// xattrs are the attributes that come from the image.
func xattrs(path string) (map[string]string, error) {
	size, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(path, list); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for attr := range strings.SplitSeq(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		switch attr {
		case "security.selinux", "security.ima", "security.evm":
			continue
		}
		value := make([]byte, 64<<10) // the largest that the kernel takes
		n, err := unix.Lgetxattr(path, attr, value)
		if err != nil {
			return nil, err
		}
		out[attr] = string(value[:n])
	}
	return out, nil
}
