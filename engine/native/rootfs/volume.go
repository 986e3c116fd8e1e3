package rootfs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/continuity/fs"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/space"
)

// MakeVolume makes the folder that is the n-th volume of a container by its image (VOLUME), and returns it. It has what the
// mounted root has at path, and goes with the writable layer, beside which it lies. Path leads nowhere out of the root.
// ErrInvalidArgument where there is something else than a folder.
//
// The container must not run: nothing may change in the root meanwhile.
func (s *Store) MakeVolume(ctx context.Context, id engine.ContainerID, n int, path string, l *Layers) (string, error) {
	volume, err := s.makeVolume(ctx, id, n, path, l)
	if err != nil {
		return "", fmt.Errorf("make the volume %.200s of the image for container %s: %w", path, id, err)
	}
	return volume, nil
}

func (s *Store) makeVolume(ctx context.Context, id engine.ContainerID, n int, path string, l *Layers) (string, error) {
	if err := errors.Join(checkID(string(id)), ctx.Err()); err != nil {
		return "", err
	}
	uid, gid, err := l.Idmap.root()
	if err != nil {
		return "", err
	}
	all := filepath.Join(s.layer(id), "volumes")
	volume := filepath.Join(all, strconv.Itoa(n))
	if err := makeDir(all, 0o700, uid, gid); err != nil {
		return "", err
	}
	if err := os.Mkdir(volume, 0o755); err != nil {
		return "", err
	}
	if err := errors.Join(os.Chmod(volume, 0o755), os.Lchown(volume, uid, gid)); err != nil {
		return "", err
	}
	if err := fillVolume(ctx, s.rootfs(id).Path, path, volume); err != nil {
		return "", err
	}
	if l.Label == "" {
		return volume, nil
	}
	if err := label.Relabel(volume, l.Label, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return "", fmt.Errorf("relabel: %w", err)
	}
	return volume, nil
}

// fillVolume copies what root has at path, with owners, modes and attributes, where the disk has room for it. A copy that has begun
// is not cut short by the context: who asks again waits for it.
func fillVolume(ctx context.Context, root, path, volume string) error {
	fd, err := openIn(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return invalid("it is no folder of the image: %w", err)
	case err != nil:
		return err
	}
	dir := os.NewFile(uintptr(fd), path)
	defer func() { _ = dir.Close() }()
	// By its descriptor: what was looked up is what is copied.
	from := "/proc/self/fd/" + strconv.Itoa(fd) + "/."
	if err := checkRoom(ctx, from, volume); err != nil {
		return fmt.Errorf("copy what the image has there: %w", err)
	}
	if err := fs.CopyDir(volume, from); err != nil {
		return fmt.Errorf("copy what the image has there: %w", err)
	}
	return nil
}

// checkRoom fails where a copy of a folder would leave too little of volume's disk.
func checkRoom(ctx context.Context, from, volume string) error {
	to, err := os.Open(volume)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	var blocks, files int64
	err = filepath.WalkDir(from, func(_ string, d iofs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		blocks += info.Sys().(*syscall.Stat_t).Blocks
		files++
		return nil
	})
	if err != nil {
		return err
	}
	return space.On(to, 0).Fits(blocks*512, files)
}

// Disk is the folder with all that the container has written: its writable layer and its volumes.
func (r Rootfs) Disk() string { return filepath.Dir(r.Upper) }
