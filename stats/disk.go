package stats

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// A directory is walked again after paceFactor times as long as its walk took, within these bounds.
	paceFactor = 50
	paceLeast  = 10 * time.Second
	paceMost   = 20 * time.Minute
	// The walk rests after each batch of entries as long as the batch took: at most half of the disk's time is ours.
	walkBatch = 1024
	// Hard links are counted once; of more than this many, the later ones are counted each.
	maxHardLinks = 100_000
)

// Disk measures directories in the background. Its methods may be called from many goroutines.
type Disk struct {
	wake chan struct{}

	mu      sync.Mutex
	watched map[string]*measured
}

type measured struct {
	dir    string
	bytes  uint64
	inodes uint64
	at     time.Time
	due    time.Time // zero: at once
	ok     bool
}

// NewDisk makes a sampler that does nothing until Run.
func NewDisk() *Disk {
	return &Disk{wake: make(chan struct{}, 1), watched: map[string]*measured{}}
}

// Watch begins to measure dir for id (a container id; UpperDir of engine.ContainerStatus). Again with the same dir: nothing.
func (d *Disk) Watch(id, dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.watched[id]; dir == "" || m != nil && m.dir == dir {
		return
	}
	d.watched[id] = &measured{dir: dir}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Forget ends it.
func (d *Disk) Forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.watched, id)
}

// Usage is the last measurement and when it was taken; ok is false before the first one.
func (d *Disk) Usage(id string) (bytes, inodes uint64, at time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.watched[id]
	if m == nil || !m.ok {
		return 0, 0, time.Time{}, false
	}
	return m.bytes, m.inodes, m.at, true
}

// Sum is that of the last measurements of all directories below one ("" for all); what was not measured yet counts as
// nothing.
func (d *Disk) Sum(below string) (bytes, inodes uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.watched {
		if below == "" || strings.HasPrefix(m.dir, below+"/") {
			bytes, inodes = bytes+m.bytes, inodes+m.inodes
		}
	}
	return bytes, inodes
}

// dir is the directory watched for id, "" when none is.
func (d *Disk) dir(id string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.watched[id]; m != nil {
		return m.dir
	}
	return ""
}

// Run walks the watched directories until ctx ends: each once at once, then again at a pace that follows how long a walk
// takes. One walk at a time.
func (d *Disk) Run(ctx context.Context) {
	for ctx.Err() == nil {
		id, m, wait := d.next()
		if m != nil {
			d.measure(ctx, id, m)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-d.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// next is what is due longest, or how long nothing is.
func (d *Disk) next() (id string, first *measured, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, m := range d.watched {
		if first == nil || m.due.Before(first.due) {
			id, first = k, m
		}
	}
	if first == nil {
		return "", nil, paceMost
	}
	if wait = time.Until(first.due); wait > 0 {
		return "", nil, min(wait, paceMost)
	}
	return id, first, 0
}

func (d *Disk) measure(ctx context.Context, id string, m *measured) {
	began := time.Now()
	bytes, inodes, err := walk(ctx, m.dir)
	took := time.Since(began)
	if ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m.due = time.Now().Add(min(max(took*paceFactor, paceLeast), paceMost))
	if err == nil {
		m.bytes, m.inodes, m.at, m.ok = bytes, inodes, began, true
	} else if !errors.Is(err, os.ErrNotExist) {
		klog.ErrorS(err, "The writable layer cannot be measured", "container", id, "dir", m.dir)
	}
}

// walk adds up what a directory takes on its file system. The tree belongs to a container that may change it at any moment:
// no symbolic link is followed, no other file system entered, and what cannot be opened any more is left out.
func walk(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	w := walker{root: root, links: map[uint64]struct{}{}, batchBegan: time.Now()}
	defer w.close()
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	w.count(&st)
	w.pending = []*folder{{name: "."}}
	for len(w.pending) > 0 {
		next := w.pending[len(w.pending)-1]
		w.pending = w.pending[:len(w.pending)-1]
		if err := w.directory(ctx, next); err != nil {
			return 0, 0, err
		}
	}
	return w.bytes, w.inodes, nil
}

// folder is a directory below the root, still to be read. Its path would not do: the kernel takes 4 KiB of one, below which
// a pod could hide what it writes, and a million of them would take gigabytes of ours.
type folder struct {
	parent *folder // nil for the root
	name   string
}

type walker struct {
	root          int
	pending       []*folder
	last          *folder // still open: what is read next most often lies in it
	lastFile      *os.File
	links         map[uint64]struct{}
	bytes, inodes uint64
	entries       int
	batchBegan    time.Time
}

func (w *walker) close() {
	if w.lastFile != nil {
		_ = w.lastFile.Close()
		w.last, w.lastFile = nil, nil
	}
}

// open opens a folder that is where it was seen, by no link and on the root's file system.
func (w *walker) open(f *folder) (int, error) {
	if f.parent != nil && f.parent == w.last {
		return openBelow(int(w.lastFile.Fd()), f.name)
	}
	var names []string
	for at := f; at != nil; at = at.parent {
		names = append(names, at.name)
	}
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

func (w *walker) directory(ctx context.Context, in *folder) error {
	fd, err := w.open(in)
	if err != nil {
		return nil
	}
	w.close()
	f := os.NewFile(uintptr(fd), in.name)
	w.last, w.lastFile = in, f
	for {
		names, err := f.Readdirnames(walkBatch)
		for _, entry := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, entry, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			w.count(&st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				w.pending = append(w.pending, &folder{parent: in, name: entry})
			}
		}
		if w.entries += len(names); w.entries >= walkBatch {
			if err := w.rest(ctx); err != nil {
				return err
			}
		}
		if err != nil { // io.EOF, or a directory that went meanwhile
			if !errors.Is(err, io.EOF) {
				klog.V(4).InfoS("Directory left out of a measurement", "err", err)
			}
			return nil
		}
	}
}

func (w *walker) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, seen := w.links[st.Ino]; seen {
			return
		}
		if len(w.links) < maxHardLinks {
			w.links[st.Ino] = struct{}{}
		}
	}
	w.bytes += uint64(st.Blocks) * 512
	w.inodes++
}

func (w *walker) rest(ctx context.Context) error {
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
