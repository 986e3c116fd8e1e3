package serve

import (
	"sync"

	"crishim/engine/native/oom"
)

// ooms tells apart whose processes the kernel killed for want of memory. A container's cgroup counts its own, but systemd
// removes it once the last process was killed, maybe before it is asked. With version 2 the pod's cgroup counts them too: what
// nobody else accounts for there was of the container that cannot be asked any more.
type ooms struct {
	pod string // the folder of the pod's cgroup of version 2, or ""

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
		kills += o.unclaimed()
	}
	delete(o.live, c)
	o.past += kills
	return kills
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
