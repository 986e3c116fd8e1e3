package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"crishim/engine/native/space"
)

const (
	whiteoutPrefix = ".wh."
	// whiteoutMeta begins names that AUFS kept for itself. One of them means something.
	whiteoutMeta = whiteoutPrefix + whiteoutPrefix
	opaqueMarker = whiteoutMeta + ".opq"

	opaqueXattr = "trusted.overlay.opaque"
)

// whiteout acts on an entry that is a message and no file; done when it was one.
func (t *tree) whiteout(folder, base string) (done bool, err error) {
	for part := range strings.SplitSeq(folder, "/") {
		if strings.HasPrefix(part, whiteoutMeta) {
			return true, nil // AUFS's own
		}
		if strings.HasPrefix(part, whiteoutPrefix) {
			return true, refused("a whiteout is no folder")
		}
	}
	hidden, ok := strings.CutPrefix(base, whiteoutPrefix)
	if !ok {
		return false, nil
	}
	if base == opaqueMarker {
		if err := t.enter(folder); err != nil {
			return true, err
		}
		return true, setOpaque(t.parent.fd)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return true, nil
	}
	if hidden == "" || hidden == "." || hidden == ".." {
		return true, refused("a whiteout of %q", hidden)
	}
	if err := t.enter(folder); err != nil {
		return true, err
	}
	return true, t.hide(hidden)
}

// hide makes a whiteout. What this layer itself has of that name stays: whiteouts are about the layers below.
func (t *tree) hide(name string) error {
	err := unix.Mknodat(t.parent.fd, name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		if err != nil {
			return fmt.Errorf("make the whiteout: %w", err)
		}
		return nil
	}
	fd, err := unix.Openat(t.parent.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // a file, a link, or a whiteout already: it hides what is below
	}
	if err != nil {
		return fmt.Errorf("open the folder to hide what is below: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := t.noteEntry(fd); err != nil { // it is a new one of the same name
		return err
	}
	return setOpaque(fd)
}

// WhiteOut takes names away in dir, an unpacked layer: what it has of them itself, and what lower layers have. They are as hostile
// as an archive's, and limits.Entries is for both them and the folders that are made for them, which are as Layer.Implied. What
// lies in something that is no folder is not there, and is left alone.
func WhiteOut(ctx context.Context, dir *os.File, names []string, limits Limits) (implied []string, err error) {
	t, err := newTree(dir, &limits, space.On(dir, limits.Reserve))
	if err != nil {
		return nil, archiveError(err)
	}
	defer func() {
		if cerr := t.leave(); err == nil && cerr != nil {
			err = archiveError(cerr)
		}
	}()
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, archiveError(err)
		}
		if err := t.whiteOut(name); err != nil {
			return nil, archiveError(fmt.Errorf("removed name %.300q: %w", name, err))
		}
	}
	if implied, err = t.impliedFolders(); err != nil {
		return nil, archiveError(err)
	}
	return implied, nil
}

func (t *tree) whiteOut(name string) error {
	name, err := inside(name)
	if err != nil {
		return err
	}
	if name == "." {
		return refused("the root cannot be removed")
	}
	folder, base := path.Split(name)
	folder = path.Clean(folder)
	fd, err := openFolder(t.root, folder)
	if errors.Is(err, unix.ENOTDIR) {
		return nil // a whiteout mostly: it goes with a folder that was named before
	}
	if err == nil {
		_ = unix.Close(fd)
	}
	if err := t.enter(folder); err != nil {
		return err
	}
	if err := t.take(0); err != nil {
		return err
	}
	if err := t.create(base, func() error { return unix.Mknodat(t.parent.fd, base, unix.S_IFCHR, 0) }); err != nil {
		return fmt.Errorf("make the whiteout: %w", err)
	}
	return nil
}

func setOpaque(fd int) error {
	if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("make the folder opaque: %w", err)
	}
	return nil
}

func isOpaque(fd int) (bool, error) {
	value := make([]byte, 1)
	n, err := unix.Fgetxattr(fd, opaqueXattr, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ERANGE) {
		return false, nil
	}
	return n == 1 && value[0] == 'y', err
}

func isWhiteout(stat *unix.Stat_t) bool {
	return stat.Mode&unix.S_IFMT == unix.S_IFCHR && stat.Rdev == 0
}

// maxXattr is the largest value that the kernel takes (XATTR_SIZE_MAX).
const maxXattr = 64 << 10

// paxXattr begins the PAX records of extended attributes.
const paxXattr = "SCHILY.xattr."

// setXattrs sets the attributes that are an image's to say: capabilities, access lists, the user's. Others are left out:
// trusted.* and user.overlay.* are overlay's language, security.* the node's policy.
func setXattrs(fd int, header *tar.Header) error {
	for key, value := range header.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !allowedXattr(name) {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		if errors.Is(err, unix.ENOTSUP) && name != "security.capability" {
			continue // the file system has none
		}
		if err != nil {
			return fmt.Errorf("set the attribute %.100q: %w", name, err)
		}
	}
	return nil
}

// maxXattrs is how many bytes of attributes one entry of an archive has: readers take a header of 1 MiB, not more.
const maxXattrs = 512 << 10

// Xattrs are an open file's or folder's attributes that are an image's to say, in the form in which Unpack finds them in a tar's header.
// Those whose names have a "=" are left out: the form has no place for them.
func Xattrs(fd int) (map[string]string, error) {
	records, size := map[string]string{}, 0
	err := eachXattr(fd, func(name string, value []byte) error {
		if strings.ContainsRune(name, '=') {
			return nil
		}
		if size += len(name) + len(value); size > maxXattrs {
			return fmt.Errorf("its attributes have more than %d bytes", maxXattrs)
		}
		records[paxXattr+name] = string(value)
		return nil
	})
	return records, err
}

// copyXattrs gives an open folder those of another one that are an image's.
func copyXattrs(from, to int) error {
	return eachXattr(from, func(name string, value []byte) error { return unix.Fsetxattr(to, name, value, 0) })
}

// eachXattr goes through those attributes of an open file or folder that are an image's.
func eachXattr(fd int, do func(name string, value []byte) error) error {
	size, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil
	}
	names := make([]byte, size)
	if err == nil {
		size, err = unix.Flistxattr(fd, names)
	}
	if err != nil {
		return fmt.Errorf("list the attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:size]), "\x00"), "\x00") {
		if !allowedXattr(name) {
			continue
		}
		value := make([]byte, maxXattr)
		n, err := unix.Fgetxattr(fd, name, value)
		if err == nil {
			err = do(name, value[:n])
		}
		if err != nil {
			return fmt.Errorf("copy the attribute %.100q: %w", name, err)
		}
	}
	return nil
}

func allowedXattr(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}
