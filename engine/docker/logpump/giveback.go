package logpump

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"crishim/crilog"
	"crishim/internal/failpoint"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// keptName is a CRI log's name while an old shim's link has its place: none that a kubelet or an agent takes for a log.
func keptName(name string) string { return "." + name + ".kept" }

// GiveBack puts dockershim's link in the place of a CRI log that is not being written, for the day when an old shim serves
// the container again. The log waits beside it, so that TakeOver can go on in it where it ended. linked says that there was
// a log; OK where there is none, or a link. What is no file is left and ErrFailedPrecondition.
func GiveBack(logPath, logRoot, jsonPath string) (linked bool, err error) {
	if !filepath.IsAbs(jsonPath) || filepath.Clean(jsonPath) != jsonPath {
		return false, fmt.Errorf("link log %s: Docker's log path %q is not absolute and clean: %w", logPath, jsonPath, errdefs.ErrInvalidArgument)
	}
	dir, name, err := crilog.OpenParent(logRoot, logPath)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = dir.Close() }()
	fd := int(dir.Fd())
	there, _, err := regular(fd, name)
	switch {
	case err != nil:
		return false, fmt.Errorf("link log %s: %w", logPath, err)
	case there:
		err = failpoint.Around("log.keep", func() error { return unix.Renameat2(fd, name, fd, keptName(name), unix.RENAME_NOREPLACE) })
		if errors.Is(err, unix.EEXIST) {
			return false, fmt.Errorf("link log %s: its older part %s is in the way, move it away: %w", logPath, keptName(name), errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return false, fmt.Errorf("link log %s: %w", logPath, err)
		}
	default:
		// Cut off here before, or nothing to do.
		if kept, _, err := regular(fd, keptName(name)); err != nil || !kept {
			return false, err
		}
	}
	switch err := failpoint.Around("log.link", func() error { return unix.Symlinkat(jsonPath, fd, name) }); {
	case errors.Is(err, unix.EEXIST):
		return false, nil // it is linked
	case err != nil:
		return false, fmt.Errorf("link log %s: %w", logPath, err)
	}
	return true, nil
}

// regular says whether the name is a regular file, and how long; ErrFailedPrecondition where it is neither that nor a link nor absent.
func regular(dir int, name string) (is bool, size int64, err error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT):
		return false, 0, nil
	case err != nil:
		return false, 0, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return true, st.Size, nil
	case unix.S_IFLNK:
		return false, 0, nil
	}
	return false, 0, fmt.Errorf("%s is no file: %w", name, errdefs.ErrFailedPrecondition)
}

// goOn puts a log that GiveBack has kept in its place again, instead of the link or of nothing. It returns false where there
// is none. Of a container without a position only an empty one counts, which is as good as a new one: such a container had said nothing,
// and what stays beside the log is in the way of the next GiveBack.
func goOn(dir int, name string, known bool) (bool, error) {
	kept, size, err := regular(dir, keptName(name))
	if err != nil || !kept || !known && size > 0 {
		return false, err
	}
	return true, unix.Renameat(dir, keptName(name), dir, name)
}
