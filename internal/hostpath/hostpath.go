// Package hostpath makes the folders of the host that pods name.
package hostpath

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// maxLinks is the kernel's own bound on links in one path.
const maxLinks = 40

// mode is that of new folders.
const mode = 0o755

// Make makes the missing end of an absolute path. An existing path is left alone, whatever leads to it. Where
// something has to be made, links on the way are followed only where root put them into a folder that only root writes
// (/var/run): a pod must not get folders made wherever a link in its own volume points (docs/reliability.md S09).
func Make(name string) error {
	if _, err := os.Stat(name); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return walk(strings.Split(path.Clean(name), "/"), maxLinks)
}

func walk(parts []string, links int) error {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	at := "/"
	for i, part := range parts {
		if part == "" {
			continue
		}
		var st unix.Stat_t
		made := false
		err := unix.Fstatat(dir, part, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			err = unix.Mkdirat(dir, part, mode)
			made = err == nil
			if err == nil || errors.Is(err, unix.EEXIST) {
				err = unix.Fstatat(dir, part, &st, unix.AT_SYMLINK_NOFOLLOW)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path.Join(at, part), err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return follow(dir, at, part, &st, parts[i+1:], links)
		}
		next, err := unix.Openat(dir, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return invalid("%s is not a folder", path.Join(at, part))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path.Join(at, part), err)
		}
		_ = unix.Close(dir)
		dir, at = next, path.Join(at, part)
		if !made {
			continue
		}
		// The umask does not count: a container's user who is not root gets in.
		if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", dir), mode); err != nil {
			return err
		}
	}
	return nil
}

// follow goes on behind a link that only root can have made.
func follow(dir int, at, part string, link *unix.Stat_t, rest []string, links int) error {
	var parent unix.Stat_t
	if err := unix.Fstat(dir, &parent); err != nil {
		return err
	}
	if links == 0 || link.Uid != 0 || parent.Uid != 0 || parent.Mode&0o022 != 0 {
		return invalid("%s is a link, nothing is made behind it", path.Join(at, part))
	}
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, part, buffer)
	if err != nil {
		return err
	}
	target := string(buffer[:n])
	if !path.IsAbs(target) {
		target = path.Join(at, target)
	}
	return walk(append(strings.Split(path.Clean(target), "/"), rest...), links-1)
}
