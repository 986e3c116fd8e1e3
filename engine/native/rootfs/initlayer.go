package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// initLayer lies on top of every image's layers: real folders and files where the runtime mounts something, in place of
// whatever the image has there. An image whose /dev, /proc, /sys, /etc or /etc/resolv.conf is a link leads nobody anywhere
// (docs/reliability.md S02, S03, S04), whatever the version of libcontainer.
func (s *Store) initLayer() string { return filepath.Join(s.state, "init") }

func makeInitLayer(dir string) error {
	for _, d := range []string{"", "dev", "dev/pts", "dev/shm", "proc", "sys", "etc"} {
		if err := makeDir(filepath.Join(dir, d), 0o755, 0, 0); err != nil {
			return fmt.Errorf("make the layer of mount points: %w", err)
		}
	}
	for _, f := range []string{"dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf"} {
		if err := makeFile(filepath.Join(dir, f), nil, 0o644, 0, 0); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make the layer of mount points: %w", err)
		}
	}
	if err := os.Symlink("/proc/mounts", filepath.Join(dir, "etc/mtab")); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the layer of mount points: %w", err)
	}
	return nil
}

// makeEtc gives the image's /etc, where that is a folder, its own mode and owner back: the writable layer, which is above the
// initLayer, has one with them.
func makeEtc(upper string, l *Layers) error {
	for _, dir := range slices.Backward(l.Dirs) {
		info, err := os.Lstat(filepath.Join(dir, "etc"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at the image's /etc: %w", err)
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !info.IsDir() {
			return nil // a link leads nobody anywhere, and a whiteout is no folder
		}
		uid, gid, err := l.Idmap.host(stat.Uid, stat.Gid)
		if err != nil {
			return nil // nobody's in the pod's user namespace: it is root's there
		}
		return makeDir(filepath.Join(upper, "etc"), info.Mode()&(os.ModePerm|os.ModeSetuid|os.ModeSetgid|os.ModeSticky), uid, gid)
	}
	return nil
}

// makeFile makes a new file with that mode and owner, whatever the umask.
func makeFile(path string, data []byte, mode os.FileMode, uid, gid int) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Chmod(mode)
	}
	if err == nil {
		err = file.Chown(uid, gid)
	}
	return errors.Join(err, file.Close())
}
