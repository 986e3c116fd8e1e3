package serve

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/engine/native/oom"
)

// ooms tells apart whose processes the kernel killed for want of memory. A container's cgroup counts its own, but systemd
// removes it once the last process was killed, maybe before it is asked. With version 2 the pod's cgroup counts them too: what
// nobody else accounts for there was of the container that cannot be asked any more.
type ooms struct {
	pod string // the folder of the pod's cgroup of version 2, or ""
	// killed says of a container that has ended whether SIGKILL ended it, as the kernel does for want of memory.
	killed func(*container) bool

	mu   sync.Mutex
	live map[*container]struct{}
	// past are those that the pod's cgroup counts and that were of no live container.
	past uint64
}

// enter begins with a container, before its end can be told.
func (o *ooms) enter(c *container) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.live[c] = struct{}{}
	o.pass()
}

// settle takes what nobody accounts for now for nobody's: of a container that could not be made.
func (o *ooms) settle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pass()
}

// pass takes what nobody accounts for now for nobody's, unless a container's cgroup is gone whose end has not been told yet: it
// may be that one's.
func (o *ooms) pass() {
	for c := range o.live {
		if _, err := c.countedOOMKills(); err != nil {
			return
		}
	}
	o.past += o.unclaimed()
}

// leave is how many there were of a container that has ended.
func (o *ooms) leave(c *container) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	kills, err := c.countedOOMKills()
	if err != nil {
		kills += o.share(c)
	}
	delete(o.live, c)
	o.past += kills
	return kills
}

// share is what a container that cannot be asked any more gets of the kills that nobody accounts for. All of them, but for one for each
// other that cannot be asked either and has nothing else that it ended of: two may be killed in one moment. It is called with mu held.
func (o *ooms) share(c *container) uint64 {
	kills, others := o.unclaimed(), uint64(0)
	for other := range o.live {
		if other != c && o.wants(other) {
			others++
		}
	}
	left := kills - min(kills, others)
	if left == 0 && kills > 0 && o.wants(c) {
		return 1 // one of them was killed by somebody outside, and nothing says which
	}
	return left
}

// wants says whether a container ended as by a kill that its cgroup cannot tell of.
func (o *ooms) wants(c *container) bool {
	kills, err := c.countedOOMKills()
	return err != nil && kills <= c.outlivedOOMKills.Load() && !c.asked.Load() && o.killed(c)
}

// killed asks without reaping.
func (c *container) killed() bool {
	const cldKilled, status = 2, 24 // CLD_KILLED, and where si_status is in siginfo_t
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, c.runtime.PID(), &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			signal := *(*int32)(unsafe.Add(unsafe.Pointer(&info), status))
			return err == nil && info.Code == cldKilled && signal == int32(unix.SIGKILL)
		}
	}
}

// unclaimed are those that the pod's cgroup counts and nobody else; it is called with mu held.
func (o *ooms) unclaimed() uint64 {
	if o.pod == "" {
		return 0
	}
	// First: who is killed meanwhile must not be missed below.
	all, err := oom.Kills(map[string]string{"": o.pod})
	if err != nil {
		return 0 // there is no such cgroup yet, or no more
	}
	claimed := o.past
	for c := range o.live {
		kills, _ := c.countedOOMKills()
		claimed += kills
	}
	return all - min(all, claimed)
}

// countedOOMKills are those that the container's cgroup counts, or that were told of one which is gone.
func (c *container) countedOOMKills() (uint64, error) {
	kills, err := c.runtime.OOMKills()
	return max(kills, c.oomKills.Load()), err
}

// outliveTime is how long after an OOM kill the first process is still taken to end of it: a shell that has to reap its child and exit
// with 137 on a busy machine. What was killed itself may take longer, see lives.
const outliveTime = 2 * time.Second

// tellOOM is called after OOM kills, with how many there were.
func (c *container) tellOOM(kills uint64) {
	c.oomKills.Store(kills)
	c.server.events.publish(monitor.EventOOM, c.state)
	time.AfterFunc(outliveTime, func() {
		if c.lives() {
			c.outlived(kills)
		}
	})
}

// lives says that the first process has not ended and does not end of a SIGKILL either: one with much memory takes its time.
func (c *container) lives() bool {
	return !killPending(c.runtime.PID()) && c.watch.Alive()
}

// outlived notes that the first process lives on after so many OOM kills.
func (c *container) outlived(kills uint64) {
	for {
		was := c.outlivedOOMKills.Load()
		if kills <= was || c.outlivedOOMKills.CompareAndSwap(was, kills) {
			return
		}
	}
}

// killPending says whether a process is known to have got a SIGKILL: the kernel keeps it until the process is gone.
func killPending(pid int) bool {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(data)) {
		if mask, ok := strings.CutPrefix(line, "ShdPnd:"); ok {
			signals, _ := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return signals&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return false
}
