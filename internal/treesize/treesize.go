// Package treesize sums up what a tree of files takes on its file system, however deep, wide and hostile the tree is.
package treesize

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// With Options.Gently the walk rests after so many entries as long as they took.
	batch = 1024
	// Hard links are counted once; of more than this many, the later ones are counted each.
	maxHardLinks = 100_000
)

// Size is what a tree takes.
type Size struct {
	Bytes   uint64 // of the blocks, not of the contents
	Inodes  uint64
	Content uint64 // bytes of the regular files, as long as they say that they are
}

// listings are what the kernel tells of folders in.
var listings = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// Add adds another tree's.
func (s *Size) Add(o Size) {
	s.Bytes += o.Bytes
	s.Inodes += o.Inodes
	s.Content += o.Content
}

// Options of Of.
type Options struct {
	// Gently takes half of the disk's time at most.
	Gently bool
	// Skip are folders, on the tree's file system, that are left out with what is in them.
	Skip []string
}

// Of adds up what a directory takes on its file system. The tree may belong to a container that changes it at any moment:
// no symbolic link is followed, no other file system entered, and what cannot be opened any more is left out. Hard links
// count once. The error is os.ErrNotExist where the directory itself is absent, or ctx's.
func Of(ctx context.Context, dir string, options Options) (Size, error) {
	w := walker{Options: options}
	return w.walk(ctx, dir)
}

func (w *walker) walk(ctx context.Context, dir string) (Size, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Size{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return Size{}, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	w.root, w.device, w.listing, w.batchBegan = root, st.Dev, listings.Get().(*[32 << 10]byte), time.Now()
	defer listings.Put(w.listing)
	defer w.close()
	for _, path := range w.Skip {
		var at unix.Stat_t
		if unix.Lstat(path, &at) == nil && at.Dev == st.Dev {
			if w.skip == nil {
				w.skip = map[uint64]bool{}
			}
			w.skip[at.Ino] = true
		}
	}
	w.count(&st)
	w.pending = []*folder{{name: ".", inode: st.Ino}}
	for len(w.pending) > 0 {
		next := w.pending[len(w.pending)-1]
		w.pending = w.pending[:len(w.pending)-1]
		if err := w.directory(ctx, next); err != nil {
			return Size{}, err
		}
	}
	return w.sum, nil
}

// folder is a directory below the root, still to be read. Its path would not do: the kernel takes 4 KiB of one, below which
// a pod could hide what it writes, and a million of them would take gigabytes of ours.
type folder struct {
	parent *folder // nil for the root
	name   string
	inode  uint64
}

type walker struct {
	Options
	root       int
	device     uint64
	skip       map[uint64]bool // by inode
	sum        Size
	pending    []*folder
	last       *folder // still open: what is read next most often lies in it
	lastFD     int
	listing    *[32 << 10]byte
	names      []string
	links      map[uint64]struct{}
	entries    int
	batchBegan time.Time
	steps      int // names that the kernel was asked to follow, for a test
}

func (w *walker) close() {
	if w.last != nil {
		_ = unix.Close(w.lastFD)
		w.last = nil
	}
}

// open opens a folder that is where it was seen, by no link and on the root's file system.
func (w *walker) open(f *folder) (int, error) {
	if f.parent != nil && w.last != nil && w.climb(f.parent) {
		w.steps++
		return openBelow(w.lastFD, f.name)
	}
	var names []string
	for at := f; at != nil; at = at.parent {
		names = append(names, at.name)
	}
	w.steps += len(names)
	at, owned := w.root, false
	for i := len(names) - 1; ; {
		part := names[i]
		for i--; i >= 0 && len(part)+1+len(names[i]) < unix.PathMax; i-- {
			part += "/" + names[i]
		}
		next, err := openBelow(at, part)
		if owned {
			_ = unix.Close(at)
		}
		if err != nil || i < 0 {
			return next, err
		}
		at, owned = next, true
	}
}

// climb makes a folder the one that is open, which the open one lies in: what is read next lies in a folder on the way to what
// was read last, and by its whole path each folder of a deep tree would take as long as the tree is deep. It says false where
// the way up is not the one down any more; what is open is anywhere on it then.
func (w *walker) climb(to *folder) bool {
	for w.last != to {
		up := w.last.parent
		if up == nil {
			return false
		}
		w.steps++
		fd, err := unix.Openat(w.lastFD, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return false
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Dev != w.device || st.Ino != up.inode {
			_ = unix.Close(fd)
			return false // it was moved meanwhile, perhaps out of the tree
		}
		w.close()
		w.last, w.lastFD = up, fd
	}
	return true
}

func openBelow(dir int, name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOATIME,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(dir, name, &how)
	if errors.Is(err, unix.EPERM) { // O_NOATIME is for the owner and root
		how.Flags &^= unix.O_NOATIME
		fd, err = unix.Openat2(dir, name, &how)
	}
	return fd, err
}

// starved: this process is at a limit of the node, which makes nothing on the disk less.
func starved(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

func (w *walker) directory(ctx context.Context, in *folder) error {
	fd, err := w.open(in)
	if starved(err) {
		return fmt.Errorf("open folder %s: %w", in.name, err)
	}
	if err != nil {
		return nil // it went meanwhile
	}
	w.close()
	w.last, w.lastFD = in, fd
	for {
		n, err := unix.ReadDirent(fd, w.listing[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 { // its end, or it went meanwhile
			if err != nil {
				klog.V(4).InfoS("Directory left out of a measurement", "name", in.name, "err", err)
			}
			return nil
		}
		_, _, w.names = unix.ParseDirent(w.listing[:n], -1, w.names[:0])
		for _, entry := range w.names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, entry, &st, unix.AT_SYMLINK_NOFOLLOW); starved(err) {
				return fmt.Errorf("look at %s: %w", entry, err)
			} else if err != nil {
				continue
			}
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			if st.Dev != w.device || isDir && w.skip[st.Ino] {
				continue
			}
			w.count(&st)
			if isDir {
				w.pending = append(w.pending, &folder{parent: in, name: entry, inode: st.Ino})
			}
		}
		if w.entries += len(w.names); w.entries >= batch {
			if err := w.rest(ctx); err != nil {
				return err
			}
		}
	}
}

func (w *walker) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, seen := w.links[st.Ino]; seen {
			return
		}
		if w.links == nil {
			w.links = map[uint64]struct{}{}
		}
		if len(w.links) < maxHardLinks {
			w.links[st.Ino] = struct{}{}
		}
	}
	w.sum.Bytes += uint64(st.Blocks) * 512
	w.sum.Inodes++
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		w.sum.Content += uint64(st.Size)
	}
}

func (w *walker) rest(ctx context.Context) error {
	if !w.Gently {
		w.entries = 0
		return ctx.Err()
	}
	timer := time.NewTimer(time.Since(w.batchBegan))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	w.entries, w.batchBegan = 0, time.Now()
	return nil
}
