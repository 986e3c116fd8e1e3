package unpack

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crishim/internal/openat2"
)

// parent is the folder in which entries are being made. Entering keeps the time that it shall have, leaving restores it:
// each entry made in it changes it.
type parent struct {
	name  string // "" when there is none
	fd    int
	times []unix.Timespec
}

// openFolder opens a folder of the layer; links on the way lead inside it only.
func openFolder(root int, name string) (int, error) {
	return openBelow(root, name, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
}

func openBelow(root int, name string, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve}
	return openat2.Open(root, name, &how)
}

// enter makes name the parent, and whatever folders are missing on the way.
func (t *tree) enter(name string) error {
	if t.parent.name == name {
		return nil
	}
	if err := t.leave(); err != nil {
		return err
	}
	fd, err := openFolder(t.root, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		if err := t.imply(name); err != nil {
			return err
		}
		if err := t.leave(); err != nil { // the one above
			return err
		}
		fd, err = openFolder(t.root, name)
	}
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOENT):
		return refused("its folder cannot be one (%v)", err)
	case err != nil:
		return fmt.Errorf("open its folder: %w", err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("stat its folder: %w", err)
	}
	t.parent = parent{name: name, fd: fd, times: []unix.Timespec{{Nsec: unix.UTIME_OMIT}, stat.Mtim}}
	return nil
}

// leave closes the parent.
func (t *tree) leave() error {
	if t.parent.name == "" {
		return nil
	}
	err := unix.UtimesNanoAt(t.parent.fd, ".", t.parent.times, 0)
	_ = unix.Close(t.parent.fd)
	t.parent = parent{}
	if err != nil {
		return fmt.Errorf("set the times of the folder: %w", err)
	}
	return nil
}

// impliedMode is the mode of a folder that the archive has no entry for.
const impliedMode = 0o755

// imply makes a folder that an entry lies in though the archive has none for it.
func (t *tree) imply(name string) error {
	above, base := path.Split(name)
	if err := t.enter(path.Clean(above)); err != nil {
		return err
	}
	if err := t.take(0); err != nil {
		return err
	}
	opaque := false
	err := unix.Mkdirat(t.parent.fd, base, impliedMode)
	if errors.Is(err, unix.EEXIST) {
		var stat unix.Stat_t
		if err := unix.Fstatat(t.parent.fd, base, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("stat %s: %w", name, err)
		}
		if !isWhiteout(&stat) {
			return refused("%.300q is no folder", name)
		}
		// The lower one is gone; this is a new one of the same name.
		opaque = true
		if err := unix.Unlinkat(t.parent.fd, base, 0); err != nil {
			return fmt.Errorf("replace the whiteout of %s: %w", name, err)
		}
		err = unix.Mkdirat(t.parent.fd, base, impliedMode)
	}
	if err != nil {
		return fmt.Errorf("make the folder %s: %w", name, err)
	}
	fd, err := unix.Openat(t.parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the folder %s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if opaque {
		_, err := t.nameOf(fd)
		return errors.Join(err, setOpaque(fd), unix.Fchmod(fd, impliedMode)) // the umask does not count
	}
	if err := unix.Fchmod(fd, impliedMode); err != nil {
		return err
	}
	return t.noteImplied(fd)
}

// nameOf is the name of an open folder that was just made, by way of no link. Links let an archive build on where no path leads any more:
// as deep a tree takes whoever removes it a descriptor for each folder, and nobody can name what is in it.
func (t *tree) nameOf(fd int) (string, error) {
	full, err := os.Readlink(procPath(fd)) // the archive's name may lead through links
	if errors.Is(err, unix.ENAMETOOLONG) {
		return "", refused("the folder lies deeper than a path of %d bytes leads", maxPath)
	}
	if err != nil {
		return "", fmt.Errorf("find the folder's name: %w", err)
	}
	name, _ := strings.CutPrefix(full, t.path+"/")
	return name, nil
}

// noteImplied takes a folder that was just made to those that the archive has had no entry for.
func (t *tree) noteImplied(fd int) error {
	name, err := t.nameOf(fd)
	if err != nil || len(t.implied) >= maxImplied {
		return err
	}
	inode, err := inodeOf(fd)
	if err != nil {
		return err
	}
	if t.impliedBytes+len(name) <= maxImpliedBytes {
		t.impliedBytes += len(name)
		t.implied[inode] = name
	}
	return nil
}

// noteEntry takes an open folder that the archive has something to say of from them.
func (t *tree) noteEntry(fd int) error {
	if len(t.implied) == 0 {
		return nil
	}
	inode, err := inodeOf(fd)
	delete(t.implied, inode)
	return err
}

// impliedFolders are those that are there still, in order.
func (t *tree) impliedFolders() ([]string, error) {
	var names []string
	for inode, name := range t.implied {
		var stat unix.Stat_t
		fd, err := openExact(t.root, name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // something took its place
		}
		if err == nil {
			err = unix.Fstat(fd, &stat)
			_ = unix.Close(fd)
		}
		if err != nil {
			return nil, fmt.Errorf("look at the folder %.300q again: %w", name, err)
		}
		if stat.Ino == inode {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func inodeOf(fd int) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return 0, fmt.Errorf("stat the folder: %w", err)
	}
	return stat.Ino, nil
}

// procPath leads to an open folder.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
