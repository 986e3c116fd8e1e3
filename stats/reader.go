package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

	budget *atomic.Int64 // of descriptors

	mu    sync.Mutex
	known map[string]*history
	swept time.Time
}

// extent is how much of a cgroup is read: each file costs a list of hundreds of pods its share, and the kubelet waits for that
// every few seconds. Each has what those before it have.
type extent int

const (
	ofContainer extent = iota // what the CRI's statistics show of a container
	ofPod                     // … of a pod, which is the number of its tasks too
	everything                // what metrics show, of one pod at a time
)

// tree is one version's way to read a cgroup.
type tree interface {
	version() int
	read(path string, extent extent, kept *keptFiles) (Sample, error)
	procs(path string) string // the directory whose cgroup.procs lists the processes
	has(controller string) bool
}

// history is the newest sample of a cgroup and an older one to take the CPU rate from.
type history struct {
	owner     string // id of the container or pod it was read for; guarded by Reader.mu
	mu        sync.Mutex
	kept      keptFiles
	newest    Sample
	older     Sample
	hasNewest bool
	hasOlder  bool
	extent    extent // of newest
}

// NewReader reads below the file system root ("/" but for tests) and finds out which cgroup version is mounted there.
// ErrFailedPrecondition when none is.
func NewReader(root string) (*Reader, error) {
	r := &Reader{root: strings.TrimRight(root, "/"), clock: time.Now, budget: openBudget(), known: map[string]*history{}}
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
func (r *Reader) Container(cgroupPath string) (Sample, error) {
	return r.sample(cgroupPath, "", everything)
}

// sample reads a cgroup. What lists of statistics read stays open until Forget of the owner, the id of a container or pod.
func (r *Reader) sample(cgroupPath, owner string, extent extent) (Sample, error) {
	if cgroupPath == "" {
		return Sample{}, fmt.Errorf("no cgroup: %w", errdefs.ErrNotFound)
	}
	path := absolute(cgroupPath)
	h := r.history(path, owner)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := r.clock()
	// The clock's monotonic part decides: a step of the wall clock neither ages nor freshens a sample.
	age := now.Sub(h.newest.Time)
	if h.hasNewest && age < MaxAge && age >= 0 && h.extent >= extent {
		return h.newest, nil
	}
	sample, err := r.tree.read(path, extent, &h.kept)
	if err != nil {
		r.forget(path, h)
		h.end()
		return Sample{}, fmt.Errorf("cgroup %s: %w", path, err)
	}
	sample.Time = now
	h.push(sample, extent)
	return h.newest, nil
}

// push takes a new sample and gives it its rate.
func (h *history) push(s Sample, extent extent) {
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
	h.newest, h.hasNewest, h.extent = s, true, extent
}

// end closes what is open, for good: who still waits for h reads without keeping. It requires mu.
func (h *history) end() {
	h.kept.ended = true
	h.kept.close()
}

func (r *Reader) history(path, owner string) *history {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.clock(); now.Sub(r.swept) >= closeAfter {
		r.sweep(now)
	}
	h := r.known[path]
	if h == nil {
		h = &history{kept: keptFiles{budget: r.budget}}
		r.known[path] = h
	}
	if owner != "" {
		h.owner = owner
	}
	return h
}

// Run closes what nobody reads any more until ctx ends, and then everything.
func (r *Reader) Run(ctx context.Context) {
	ticks := time.NewTicker(closeAfter)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
			r.mu.Lock()
			r.sweep(r.clock())
			r.mu.Unlock()
		case <-ctx.Done():
			r.forgetAll(func(*history) bool { return true })
			return
		}
	}
}

// sweep closes the files of what was not read for a while and drops the samples of what was not read for long; called with
// mu held.
func (r *Reader) sweep(now time.Time) {
	r.swept = now
	for path, h := range r.known {
		if !h.mu.TryLock() {
			continue // being read
		}
		if age := now.Sub(h.newest.Time); h.hasNewest && age > forgetAfter {
			delete(r.known, path)
			h.end()
		} else if age >= closeAfter {
			h.kept.close()
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

// Forget closes and drops what is kept for a container or pod; call it when it has ended.
func (r *Reader) Forget(id string) {
	r.forgetAll(func(h *history) bool { return h.owner == id })
}

func (r *Reader) forgetAll(which func(h *history) bool) {
	var ended []*history
	r.mu.Lock()
	for path, h := range r.known {
		if which(h) {
			ended = append(ended, h)
			delete(r.known, path)
		}
	}
	r.mu.Unlock()
	for _, h := range ended { // not with mu held: h may be being read
		h.mu.Lock()
		h.end()
		h.mu.Unlock()
	}
}

// absolute is cgroupPath itself where it is a clean path already, as those of /proc/PID/cgroup are: filepath.Clean would look at each
// byte of it, several times for each pod of a list.
func absolute(cgroupPath string) string {
	if strings.HasPrefix(cgroupPath, "/") && !strings.HasSuffix(cgroupPath, "/") && !strings.Contains(cgroupPath, "//") && !strings.Contains(cgroupPath, "/.") {
		return cgroupPath
	}
	return filepath.Clean("/" + cgroupPath)
}

// ParentCgroup is the cgroup above, "" where that would be the root.
func ParentCgroup(cgroupPath string) string {
	path := absolute(cgroupPath)
	return path[:max(0, strings.LastIndexByte(path, '/'))]
}

func gone(path string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("read %s: %w", path, errdefs.ErrNotFound)
	}
	return fmt.Errorf("read %s: %w", path, err)
}
