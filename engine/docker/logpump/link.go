package logpump

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"crishim/crilog"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Link makes dockershim's log: a symlink at the log path to Docker's json-file, for log collectors that follow it. A link
// that points elsewhere is replaced; anything else at the path is left and ErrFailedPrecondition. OK when it is there.
func Link(logPath, logRoot, jsonPath string) error {
	if !filepath.IsAbs(jsonPath) || filepath.Clean(jsonPath) != jsonPath {
		return fmt.Errorf("link log %s: Docker's log path %q is not absolute and clean: %w", logPath, jsonPath, errdefs.ErrInvalidArgument)
	}
	dir, name, err := crilog.MakeParent(logRoot, logPath)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	fd := int(dir.Fd())
	switch err := unix.Symlinkat(jsonPath, fd, name); {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("link log %s: %w", logPath, err)
	}
	linked, target, err := readLink(fd, name)
	switch {
	case err != nil:
		return fmt.Errorf("link log %s: %w", logPath, err)
	case !linked:
		return fmt.Errorf("link log %s: something else is there: %w", logPath, errdefs.ErrFailedPrecondition)
	case target == jsonPath:
		return nil
	}
	return replaceLink(fd, name, jsonPath)
}

func replaceLink(dir int, name, target string) error {
	temp := ".link-" + name
	if err := unix.Unlinkat(dir, temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("replace link %s: %w", name, err)
	}
	if err := unix.Symlinkat(target, dir, temp); err != nil {
		return fmt.Errorf("replace link %s: %w", name, err)
	}
	if err := unix.Renameat(dir, temp, dir, name); err != nil {
		_ = unix.Unlinkat(dir, temp, 0)
		return fmt.Errorf("replace link %s: %w", name, err)
	}
	return nil
}

// TakeOver puts an empty log in the place of another shim's symlink to Docker's json-file, in one step, so that readers find
// one or the other; Start then carries over all that Docker has. Where GiveBack has kept its log, and known says that the
// container has a position, that is put there, and Start goes on. OK where there is no such link.
func TakeOver(logPath, logRoot, jsonPath string, known bool) error {
	dir, name, err := crilog.OpenParent(logRoot, logPath)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	fd := int(dir.Fd())
	linked, target, err := readLink(fd, name)
	if err != nil {
		return err
	}
	ours := linked && target == jsonPath
	if ours || absent(fd, name) {
		if kept, err := goOn(fd, name, known); err != nil || kept {
			return err
		}
	}
	if !ours {
		return nil
	}
	temp := ".log-" + name
	if err := unix.Unlinkat(fd, temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("replace link %s: %w", logPath, err)
	}
	file, err := crilog.OpenFile(logRoot, filepath.Join(filepath.Dir(logPath), temp))
	if err != nil {
		return err
	}
	_ = file.Close()
	if err := unix.Renameat(fd, temp, fd, name); err != nil {
		_ = unix.Unlinkat(fd, temp, 0)
		return fmt.Errorf("replace link %s: %w", logPath, err)
	}
	return nil
}

// Unlink removes the symlink at the log path, also dockershim's own. OK when it is absent; a log that is a file stays.
func Unlink(logPath, logRoot string) error {
	dir, name, err := crilog.OpenParent(logRoot, logPath)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	fd := int(dir.Fd())
	linked, _, err := readLink(fd, name)
	if err != nil || !linked {
		return err
	}
	if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unlink log %s: %w", logPath, err)
	}
	return nil
}

func absent(dir int, name string) bool {
	var st unix.Stat_t
	return errors.Is(unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT)
}

// readLink says whether the name is a symlink, and its target; an absent name is none.
func readLink(dir int, name string) (linked bool, target string, err error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return false, "", nil
	case err != nil:
		return false, "", err
	}
	return true, string(buf[:n]), nil
}
