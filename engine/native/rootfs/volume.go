package rootfs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
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
	if err := s.fillVolume(ctx, s.rootfs(id).Path, path, volume); err != nil {
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
func (s *Store) fillVolume(ctx context.Context, root, path, volume string) error {
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
	done, err := s.takeRoom(ctx, from, volume)
	if err != nil {
		return fmt.Errorf("copy what the image has there: %w", err)
	}
	defer done()
	if err := fs.CopyDir(volume, from); err != nil {
		return fmt.Errorf("copy what the image has there: %w", err)
	}
	return nil
}

// volumeCopy is what a copy of a volume takes of the disk, in all.
type volumeCopy struct {
	volume       string
	bytes, files int64
}

// takeRoom fails where a copy of a folder, with those that are being made, would leave too little of volume's disk. The room
// is taken until done is called.
func (s *Store) takeRoom(ctx context.Context, from, volume string) (done func(), err error) {
	to, err := os.Open(volume)
	if err != nil {
		return nil, err
	}
	defer func() { _ = to.Close() }()
	blocks, holes, files, err := weigh(ctx, from)
	if err != nil {
		return nil, err
	}
	c := &volumeCopy{volume, blocks + holes, files}
	s.copying.Lock()
	defer s.copying.Unlock()
	bytes := c.bytes
	for _, other := range s.copies {
		bytes, files = bytes+other.bytes, files+other.files
	}
	if err := space.On(to, 0).Fits(bytes, files); err != nil && len(s.copies) > 0 {
		// Some of it is there already, and gone from what is free.
		bytes, files = c.bytes, c.files
		for _, other := range s.copies {
			has, _, hasFiles, werr := weigh(ctx, other.volume)
			if werr != nil {
				return nil, errors.Join(err, ctx.Err())
			}
			bytes, files = bytes+max(0, other.bytes-has), files+max(0, other.files-hasFiles)
		}
		if err := space.On(to, 0).Fits(bytes, files); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	s.copies = append(s.copies, c)
	return func() {
		s.copying.Lock()
		defer s.copying.Unlock()
		s.copies = slices.DeleteFunc(s.copies, func(other *volumeCopy) bool { return other == c })
	}, nil
}

// weigh is what a folder takes of a disk, and how much more a copy does, in which holes are filled.
func weigh(ctx context.Context, dir string) (blocks, holes, files int64, err error) {
	type inode struct{ dev, ino uint64 }
	linked := map[inode]bool{} // the copy has hard links as well
	err = filepath.WalkDir(dir, func(_ string, d iofs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if id := (inode{st.Dev, st.Ino}); st.Nlink > 1 && !d.IsDir() {
			if linked[id] {
				return nil
			}
			linked[id] = true
		}
		if blocks += st.Blocks * 512; d.Type().IsRegular() {
			holes += max(0, st.Size-st.Blocks*512)
		}
		files++
		return nil
	})
	return blocks, holes, files, err
}

// Disk is the folder with all that the container has written: its writable layer and its volumes.
func (r Rootfs) Disk() string { return filepath.Dir(r.Upper) }
