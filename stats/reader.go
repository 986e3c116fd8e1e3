package stats

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// forgetAfter is how long the last samples of a cgroup that nobody reads any more are kept.
const forgetAfter = 10 * time.Minute

// Reader reads cgroups and network counters. Its methods may be called from many goroutines.
type Reader struct {
	root  string // of the file system, without a trailing slash
	tree  tree
	clock func() time.Time

	mu     sync.Mutex
	known  map[string]*history
	sweept time.Time
}

// tree is one version's way to read a cgroup.
type tree interface {
	version() int
	read(path string, all bool) (Sample, error)
	procs(path string) string // the directory whose cgroup.procs lists the processes
	has(controller string) bool
}

// history is the newest sample of a cgroup and an older one to take the CPU rate from.
type history struct {
	mu        sync.Mutex
	newest    Sample
	older     Sample
	hasNewest bool
	hasOlder  bool
	all       bool // newest is of every file
}

// NewReader reads below the file system root ("/" but for tests) and finds out which cgroup version is mounted there.
// ErrFailedPrecondition when none is.
func NewReader(root string) (*Reader, error) {
	r := &Reader{root: strings.TrimRight(root, "/"), clock: time.Now, known: map[string]*history{}}
	base := r.root + "/sys/fs/cgroup"
	if _, err := os.Stat(base + "/cgroup.controllers"); err == nil {
		r.tree = v2{base}
		return r, nil
	}
	v1, err := newV1(base)
	if err != nil {
		return nil, err
	}
	r.tree = v1
	return r, nil
}

// CgroupVersion is 1 (also hybrid) or 2.
func (r *Reader) CgroupVersion() int { return r.tree.version() }

// Container reads the cgroup of a container or pod: path as in /proc/PID/cgroup. ErrNotFound when it is gone. A sample
// younger than MaxAge is returned again.
func (r *Reader) Container(cgroupPath string) (Sample, error) { return r.sample(cgroupPath, true) }

// sample reads all of a cgroup, or only what the CRI's statistics show (a third of the files: lists of hundreds of pods are
// asked for every few seconds, metrics of one pod at a time).
func (r *Reader) sample(cgroupPath string, all bool) (Sample, error) {
	if cgroupPath == "" {
		return Sample{}, fmt.Errorf("no cgroup: %w", errdefs.ErrNotFound)
	}
	path := filepath.Clean("/" + cgroupPath)
	h := r.history(path)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := r.clock()
	// The clock's monotonic part decides: a step of the wall clock neither ages nor freshens a sample.
	age := now.Sub(h.newest.Time)
	if h.hasNewest && age < MaxAge && age >= 0 && (h.all || !all) {
		return h.newest, nil
	}
	sample, err := r.tree.read(path, all)
	if err != nil {
		r.forget(path, h)
		return Sample{}, fmt.Errorf("cgroup %s: %w", path, err)
	}
	sample.Time = now
	h.push(sample, all)
	return h.newest, nil
}

// push takes a new sample and gives it its rate.
func (h *history) push(s Sample, all bool) {
	if h.hasNewest && s.Time.Sub(h.newest.Time) >= MaxAge {
		h.older, h.hasOlder = h.newest, true
	}
	if h.hasOlder {
		elapsed := s.Time.Sub(h.older.Time)
		// A counter that went back is another cgroup of the same name: no rate until it has two samples of its own.
		if elapsed > 0 && s.CPU.Usage >= h.older.CPU.Usage {
			s.CPU.NanoCores = uint64(float64(s.CPU.Usage-h.older.CPU.Usage) / elapsed.Seconds())
			s.CPU.HasRate = true
		}
	}
	h.newest, h.hasNewest, h.all = s, true, all
}

func (r *Reader) history(path string) *history {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep()
	h := r.known[path]
	if h == nil {
		h = &history{}
		r.known[path] = h
	}
	return h
}

// sweep drops what was not read for long; called with mu held.
func (r *Reader) sweep() {
	now := r.clock()
	if now.Sub(r.sweept) < time.Minute {
		return
	}
	r.sweept = now
	for path, h := range r.known {
		if !h.mu.TryLock() {
			continue // being read
		}
		if h.hasNewest && now.Sub(h.newest.Time) > forgetAfter {
			delete(r.known, path)
		}
		h.mu.Unlock()
	}
}

func (r *Reader) forget(path string, h *history) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[path] == h {
		delete(r.known, path)
	}
}

// Forget drops what is kept of a cgroup; call it when the container is removed.
func (r *Reader) Forget(cgroupPath string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, filepath.Clean("/"+cgroupPath))
}

// ParentCgroup is the cgroup above, "" where that would be the root.
func ParentCgroup(cgroupPath string) string {
	parent := filepath.Dir(filepath.Clean("/" + cgroupPath))
	if parent == "/" {
		return ""
	}
	return parent
}

// readFile reads a small kernel file into buf with three system calls: os.ReadFile makes twice as many, and a list reads
// a thousand files. A file that is absent, or whose cgroup went between open and read, is ErrNotFound.
func readFile(path string, buf []byte) ([]byte, error) {
	var fd int
	var err error
	for {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, gone(path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	n := 0
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, gone(path, err)
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
}

func gone(path string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("read %s: %w", path, errdefs.ErrNotFound)
	}
	return fmt.Errorf("read %s: %w", path, err)
}
