package native

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/native/monitor"
)

// container is a container as the engine knows it. Calls on one container are ordered by the caller, but for its stops.
type container struct {
	containerRecord
	told told
	// limits orders what reads and changes the limits, which plugins change at any time; cleared says that the bundle is gone.
	limits  sync.Mutex
	cleared bool
	// saving orders the writes of the record, until it is removed (forgotten).
	saving    sync.Mutex
	forgotten bool
	// Of the process that runs; 0 before and after. Under the engine's mu, as the rest.
	pid   int
	ticks uint64
	exit  *ending
	// born names the process that the monitor made last: what is told of another is old. While it is being started (starting)
	// its exit waits in early until it is clear whether it had started.
	born     time.Time
	starting bool
	early    *monitor.State
	// done is closed when exit is set.
	done chan struct{}
	// tidy holds a value while what the process had is taken away, after its end or at the removal; tidied says that it is.
	tidy   chan struct{}
	tidied bool
}

func newContainer(record containerRecord) *container {
	return &container{containerRecord: record, done: make(chan struct{}), tidy: make(chan struct{}, 1)}
}

func (c *container) uses(id engine.ImageID) bool { return slices.Contains(imagesOf(&c.Spec), id) }

// imagesOf are the images that a container has as its root, as volumes and as its checkpoint.
func imagesOf(s *engine.ContainerSpec) []engine.ImageID {
	images := []engine.ImageID{s.Image.ID}
	if s.Checkpoint != nil && s.Checkpoint.Image != "" {
		images = append(images, s.Checkpoint.Image)
	}
	for _, m := range s.Mounts {
		if m.Image != nil {
			images = append(images, m.Image.ID)
		}
	}
	return images
}

// status requires mu.
func (c *container) status() engine.ContainerStatus {
	spec := c.Spec // updates change its limits
	st := engine.ContainerStatus{
		ID: c.ID, Pod: c.Spec.Pod, PodKey: c.Spec.PodKey, Key: c.Spec.Key, State: engine.ContainerCreated,
		CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, UpperDir: cmp.Or(c.Disk, c.Upper), ImageID: c.Spec.Image.ID, StopSignal: c.StopSignal,
		User: new(c.User), Spec: &spec,
	}
	switch {
	case c.exit != nil:
		st.State = engine.ContainerExited
		st.ExitCode, st.Reason, st.Message, st.FinishedAt = c.exit.Code, c.exit.Reason, c.exit.Message, c.exit.At
	case c.pid != 0:
		st.State = engine.ContainerRunning
		st.PID, st.StartTicks, st.CgroupPath = c.pid, c.ticks, c.Cgroup.Path
	}
	return st
}

func (e *Engine) container(id engine.ContainerID) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

func (e *Engine) containersOf(id engine.PodID) []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []*container
	for _, c := range e.containers {
		if c.Spec.Pod == id {
			all = append(all, c)
		}
	}
	return all
}

// monitorOf is nil where the pod has none (any more).
func (e *Engine) monitorOf(id engine.PodID) *monitor.Client {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.pods[id]; p != nil {
		return p.client
	}
	return nil
}

// running is the container with its pod's monitor; ErrFailedPrecondition unless it runs.
func (e *Engine) running(id engine.ContainerID) (*container, *monitor.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil {
		return nil, nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	if st := c.status(); st.State != engine.ContainerRunning {
		return nil, nil, fmt.Errorf("container %s is %s, not running: %w", id, st.State, errdefs.ErrFailedPrecondition)
	}
	p := e.pods[c.Spec.Pod]
	if p == nil || p.client == nil {
		return nil, nil, fmt.Errorf("container %s is losing its monitor: %w", id, errdefs.ErrUnavailable)
	}
	return c, p.client, nil
}

// endedMeanwhile gives an error of the monitor's the class that tells a container that has ended from one that is absent.
func endedMeanwhile(id engine.ContainerID, err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("container %s has ended: %w", id, errdefs.ErrFailedPrecondition)
	}
	return err
}

// saveContainer replaces the container's record. One that was removed meanwhile stays removed.
func (e *Engine) saveContainer(c *container) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	if c.forgotten {
		return nil
	}
	e.mu.Lock()
	c.Revision++
	record := c.containerRecord
	e.mu.Unlock()
	return e.containerRecords.save(string(c.ID), &record)
}

// forgetContainer removes the container's record for good.
func (e *Engine) forgetContainer(c *container) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	err := e.containerRecords.remove(string(c.ID))
	c.forgotten = err == nil
	return err
}

func (e *Engine) containerChanged(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.containers[c.ID] != c {
		return // its removal has been told
	}
	st := c.status()
	e.events.push(func(s engine.Sink) { s.ContainerChanged(st) })
}

// ContainerStatus implements engine.Containers.
func (e *Engine) ContainerStatus(ctx context.Context, id engine.ContainerID) (engine.ContainerStatus, error) {
	if err := e.check(ctx); err != nil {
		return engine.ContainerStatus{}, err
	}
	c, err := e.container(id)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return c.status(), nil
}
