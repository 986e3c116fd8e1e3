package crilog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	fileMode   = 0o640
	folderMode = 0o755
)

func hasDotDot(path string) bool {
	return slices.Contains(strings.Split(path, "/"), "..")
}

// OpenFile opens the log at the absolute path for reading and appending, and makes it (0640) when it is absent, with
// missing folders between root and path (0755) and root itself. Root is trusted and may be reached through symlinks;
// below it no symlink is followed, and what is not a regular file with one name is refused: ErrInvalidArgument. Nothing
// is opened before it is known to be a regular file, so neither a FIFO blocks nor does a device notice.
func OpenFile(root, path string) (*os.File, error) {
	dir, name, err := MakeParent(root, path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	// The name may come and go between the two attempts; a few rounds meet it in one state.
	for range 16 {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, fileMode)
		if err == nil {
			f := os.NewFile(uintptr(fd), path)
			// Whatever the umask is: log collectors read by group.
			if err := f.Chmod(fileMode); err != nil {
				_ = f.Close()
				return nil, classify("set the mode of log", path, err)
			}
			return f, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return nil, classify("create log", path, err)
		}
		f, err := OpenExisting(dir, name, unix.O_RDWR|unix.O_APPEND)
		if !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
	}
	return nil, fmt.Errorf("open log %s: it changes all the time: %w", path, errdefs.ErrUnavailable)
}

// OpenExisting opens the regular file name in dir with the given access flags, under OpenFile's rules. The error is
// os.ErrNotExist when it is absent.
func OpenExisting(dir *os.File, name string, flags int) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	handle, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, classify("open log", path, err)
	}
	defer func() { _ = unix.Close(handle) }()
	var st unix.Stat_t
	if err := unix.Fstat(handle, &st); err != nil {
		return nil, classify("open log", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("open log %s: it is not a regular file: %w", path, errdefs.ErrInvalidArgument)
	case st.Nlink > 1:
		return nil, fmt.Errorf("open log %s: the file has another name (hard link): %w", path, errdefs.ErrInvalidArgument)
	}
	// Through /proc the very inode that was checked is opened, whatever the name means by now.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", handle), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, classify("open log", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// MakeParent opens the folder of path, following no symlink below root, and makes the folders that are missing. It also
// returns the last element of path. The caller closes the folder.
func MakeParent(root, path string) (dir *os.File, name string, err error) {
	if err := os.MkdirAll(root, folderMode); err != nil {
		return nil, "", classify("make log directory", root, err)
	}
	return walk(root, path, func(parent int, name string) error {
		if err := unix.Mkdirat(parent, name, folderMode); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	})
}

// OpenParent is MakeParent for a folder that exists; the error is os.ErrNotExist when it does not.
func OpenParent(root, path string) (dir *os.File, name string, err error) {
	return walk(root, path, func(int, string) error { return unix.ENOENT })
}

// walk goes down from root one element at a time, each opened with O_NOFOLLOW. That is openat2's RESOLVE_BENEATH and
// RESOLVE_NO_SYMLINKS on every kernel (openat2 needs 5.6), and missing folders are made on the way.
func walk(root, path string, missing func(parent int, name string) error) (*os.File, string, error) {
	rel, err := filepath.Rel(root, path)
	if err != nil || !filepath.IsAbs(root) || !filepath.IsAbs(path) || rel == "." || hasDotDot(path) || hasDotDot(rel) {
		return nil, "", fmt.Errorf("log path %q is not below log directory %q: %w", path, root, errdefs.ErrInvalidArgument)
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, err := unix.Open(root, flags, 0)
	if err != nil {
		return nil, "", classify("open log directory", root, err)
	}
	elements := strings.Split(rel, "/")
	last := len(elements) - 1
	for _, element := range elements[:last] {
		next, err := unix.Openat(fd, element, flags|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOENT) {
			if err = missing(fd, element); err == nil {
				next, err = unix.Openat(fd, element, flags|unix.O_NOFOLLOW, 0)
			}
		}
		_ = unix.Close(fd)
		if err != nil {
			return nil, "", classify("open folder of log", path, err)
		}
		fd = next
	}
	return os.NewFile(uintptr(fd), filepath.Dir(path)), elements[last], nil
}

// classify gives an error of the file system its class; the error itself stays in the chain.
func classify(doing, path string, err error) error {
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EISDIR):
		return fmt.Errorf("%s %s: a symlink or no folder where a folder must be, or a name too long: %w: %w", doing, path, err, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%s %s: %w: %w", doing, path, err, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("%s %s: %w", doing, path, err)
}
