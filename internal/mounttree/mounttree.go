// Package mounttree makes folders for mounts that nobody else gets copies of, and takes away whatever is mounted in them.
package mounttree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Private makes dir, with that mode, a mount of its own that shares nothing with other mount namespaces: what is mounted in
// it appears in no other, and so cannot be kept busy there. It is made once. Missing parents get mode 0711.
func Private(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	mounted, err := mountinfo.Mounted(dir)
	if err != nil {
		return fmt.Errorf("is %s mounted: %w", dir, err)
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

// Unmount takes away everything that is mounted at dir and below, deepest first; lazily where something uses it. OK when
// there is nothing. Links in what is mounted are not followed: the paths are the kernel's.
func Unmount(dir string) error {
	real, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir = filepath.Join(real, filepath.Base(dir))
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list the mounts in %s: %w", dir, err)
	}
	var errs []error
	// The list has them in the order they were made in; the later ones are on top.
	for _, m := range slices.Backward(mounts) {
		errs = append(errs, unmount(strings.TrimSuffix(m.Mountpoint, "//deleted")))
	}
	return errors.Join(errs...)
}

// RemoveAll removes dir, a folder of ours in which programs that were killed may have left mounts, and nothing of what those show. OK
// when there is nothing.
func RemoveAll(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil // the list of mounts is as long as the node is full
	}
	if err := Unmount(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// closing bounds the threads that wait for a disk in the background.
var closing = make(chan struct{}, 16)

// UnmountOne takes away the uppermost mount at path, a folder that only we can change; lazily where something uses it. OK when
// there is none. It does not read the list of mounts, which is as long as the node is full, nor wait until the file system has
// written what it has: for an overlay that is everything unwritten on the one that it lies on, of whomever.
func UnmountOne(path string) error {
	// Held while it is taken out of the tree, the file system ends, and writes, when it is let go of.
	held, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return unmount(path)
	}
	err = unmount(path) // lazily
	select {
	case closing <- struct{}{}:
		go func() { _ = unix.Close(held); <-closing }()
	default: // the disk does not keep up: who removes waits for it
		_ = unix.Close(held)
	}
	return err
}

func unmount(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	// Gone with the one it was in, or with another call.
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}

// At says whether the open file is what is at path, as a namespace that is pinned there; a link at path is not followed.
func At(path string, fd int) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Lstat(path, &a); err != nil {
		return false, err
	}
	if err := unix.Fstat(fd, &b); err != nil {
		return false, err
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}
