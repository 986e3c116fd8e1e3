package serve

import (
	"errors"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reaper reaps the orphans that a subreaper inherits, and only those: the processes of containers are waited for by who
// started them, and while one is being started its short-lived helpers are.
type Reaper struct {
	starting sync.RWMutex

	mu  sync.Mutex
	own map[int]struct{}
}

// start runs what forks; the process it returns is left alone until done is called after its Wait.
func (r *Reaper) start(fork func() (Process, error)) (p Process, done func(), err error) {
	r.starting.RLock()
	defer r.starting.RUnlock()
	p, err = fork()
	if err != nil {
		return nil, nil, err
	}
	pid := p.PID()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.own == nil {
		r.own = map[int]struct{}{}
	}
	r.own[pid] = struct{}{}
	return p, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.own, pid)
	}, nil
}

// Guard runs what has helpers of its own (hooks, CRIU, readers of user namespaces).
func (r *Reaper) Guard(do func() error) error {
	r.starting.RLock()
	defer r.starting.RUnlock()
	return do()
}

// retry is the pause before a look that something was in the way of.
const retry = 50 * time.Millisecond

// Run reaps after each signal of sigchld, for ever.
func (r *Reaper) Run(sigchld <-chan struct{}) {
	for range sigchld {
		for !r.reap() {
			time.Sleep(retry)
		}
	}
}

// reap says whether no zombie is left that may be an orphan.
func (r *Reaper) reap() bool {
	if !r.starting.TryLock() {
		return false
	}
	defer r.starting.Unlock()
	for {
		pid, err := zombie()
		if err != nil || pid == 0 {
			return true
		}
		r.mu.Lock()
		_, own := r.own[pid]
		r.mu.Unlock()
		if own {
			return false // its owner is at it
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

// zombie is a child that has exited, 0 where there is none. It stays one.
func zombie() (int, error) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return siginfoPID(&info), err
	}
}

// siginfoPID reads si_pid, for which the package has no name: it is first in the union, which is aligned to 8 bytes on
// 64-bit machines, after the header of 12.
func siginfoPID(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}
