package enginetest

import (
	"context"
	"fmt"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
)

// A step is the name of an engine method ("CreatePod"), which fails before anything was done, or that name with ".after",
// which fails when everything was done.

// fault is what happens at a step.
type fault struct {
	errs  []error
	delay time.Duration
	block chan struct{} // nil, or closed to let calls go on
}

// FailOnce has the next call of the step fail with err; several calls queue up.
func (m *Memory) FailOnce(step string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.fault(step)
	f.errs = append(f.errs, err)
}

// Delay has every call of the step wait for d, or until its context ends; 0 ends that.
func (m *Memory) Delay(step string, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault(step).delay = d
}

// Block has every call of the step wait until release, or until its context ends.
func (m *Memory) Block(step string) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	block := make(chan struct{})
	m.fault(step).block = block
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if f := m.fault(step); f.block == block {
			f.block = nil
			close(block)
		}
	}
}

// Calls is how often the step was reached.
func (m *Memory) Calls(step string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[step]
}

// AllCalls is how often any step was reached.
func (m *Memory) AllCalls() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	total := 0
	for _, n := range m.calls {
		total += n
	}
	return total
}

// SetHealth connects the engine or takes it away: while it is away every call answers ErrUnavailable, processes go on and
// events are lost. Coming back resyncs.
func (m *Memory) SetHealth(ready bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.health.Ready == ready {
		return
	}
	m.health = engine.Health{Ready: ready}
	if !ready {
		m.health.Reason, m.health.Message = "EngineUnavailable", "the engine was taken away by a test"
	}
	health := m.health
	if m.watch != nil {
		m.watch.push(func(s engine.Sink) { s.Health(health) })
	}
	if ready {
		m.resync()
	}
}

// Gap runs during while every event is lost, then resyncs.
func (m *Memory) Gap(during func()) {
	m.mu.Lock()
	m.gap = true
	m.mu.Unlock()
	during()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gap = false
	m.resync()
}

// Resync delivers a full snapshot once more.
func (m *Memory) Resync() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resync()
}

// Forget removes a pod or container of this id behind everybody's back. It says whether there was one.
func (m *Memory) Forget(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[engine.PodID(id)]; p != nil {
		m.dropPod(p)
		return true
	}
	if c := m.containers[engine.ContainerID(id)]; c != nil {
		m.dropContainer(c)
		return true
	}
	return false
}

// Twin gives a pod the key of another, and a container that of another, behind everybody's back, as a crashed shim may leave them.
func (m *Memory) Twin(id, of string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, other := m.pods[engine.PodID(id)], m.pods[engine.PodID(of)]; p != nil && other != nil {
		p.spec.Key = other.spec.Key
	}
	if c, other := m.containers[engine.ContainerID(id)], m.containers[engine.ContainerID(of)]; c != nil && other != nil {
		c.spec.Pod, c.spec.PodKey, c.spec.Key = other.spec.Pod, other.spec.PodKey, other.spec.Key
	}
}

// KillPod ends the pod's own process.
func (m *Memory) KillPod(id engine.PodID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[id]; p != nil && p.running {
		p.running = false
		m.tellPod(p)
	}
}

// Exit has the container's process end by itself with the code, and waits for it. OOM kills are Exit with 137 after
// SetOOM.
func (m *Memory) Exit(id engine.ContainerID, code int) {
	m.mu.Lock()
	c := m.containers[id]
	m.mu.Unlock()
	if c == nil || c.proc == nil {
		return
	}
	c.proc.exit(code)
	<-c.exited
}

// SetOOM has the container's end reported as an OOM kill.
func (m *Memory) SetOOM(id engine.ContainerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.containers[id]; c != nil {
		c.oom = true
	}
}

// begin is the start of every method: it applies the faults of the step. done, called with mu held when the work is done,
// applies those of step.after.
func (m *Memory) begin(ctx context.Context, step string) (done func() error, err error) {
	if err := m.reach(ctx, step); err != nil {
		return nil, err
	}
	return func() error { return m.reachLocked(step + ".after") }, nil
}

// reach counts the step, waits as its faults say, and returns the error it is to fail with.
func (m *Memory) reach(ctx context.Context, step string) error {
	m.mu.Lock()
	err := m.reachLocked(step)
	f := m.fault(step)
	delay, block := f.delay, f.block
	if err == nil && !m.health.Ready {
		err = fmt.Errorf("%s: %s: %w", step, m.health.Message, errdefs.ErrUnavailable)
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
		}
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// reachLocked requires mu.
func (m *Memory) reachLocked(step string) error {
	m.calls[step]++
	f := m.fault(step)
	if len(f.errs) == 0 {
		return nil
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return err
}

// fault requires mu.
func (m *Memory) fault(step string) *fault {
	f := m.faults[step]
	if f == nil {
		f = &fault{}
		m.faults[step] = f
	}
	return f
}
