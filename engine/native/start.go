package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/monitor"
	"crishim/engine/native/ns"
	"crishim/internal/failpoint"
	"crishim/internal/sysfs"
)

// StartContainer implements engine.Containers.
func (e *Engine) StartContainer(ctx context.Context, id engine.ContainerID, _ *engine.ContainerSpec) (engine.ContainerStatus, error) {
	if err := e.check(ctx); err != nil {
		return engine.ContainerStatus{}, err
	}
	c, err := e.container(id)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	p, err := e.pod(c.Spec.Pod)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	e.mu.Lock()
	state, client := c.status().State, p.client
	e.mu.Unlock()
	switch {
	case state != engine.ContainerCreated:
		return engine.ContainerStatus{}, fmt.Errorf("container %s is %s, only a created one can be started: %w", id, state, errdefs.ErrFailedPrecondition)
	case client == nil:
		return engine.ContainerStatus{}, fmt.Errorf("pod sandbox %s of container %s has ended: %w", p.ID, id, errdefs.ErrFailedPrecondition)
	}
	e.cgroups.ExpectJoin()
	defer e.block()()
	if err := e.askStart(ctx, c); err != nil {
		return engine.ContainerStatus{}, err
	}
	status, err := e.startProcess(ctx, p, c, client)
	if err == nil {
		e.tellStarted(ctx, c)
	}
	return status, err
}

func (e *Engine) startProcess(ctx context.Context, p *pod, c *container, client *monitor.Client) (engine.ContainerStatus, error) {
	id := c.ID
	c.limits.Lock()
	defer c.limits.Unlock()
	if _, err := e.roots.Get(id); err != nil {
		return engine.ContainerStatus{}, fmt.Errorf("container %s has no root file system any more, as its pod was being stopped: %w", id, errdefs.ErrFailedPrecondition)
	}
	oci, err := e.readRawBundle(id)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	program, err := e.runtimeOf(p)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	e.beginStart(c)
	if err := e.saveContainer(c); err != nil {
		e.endStart(c, false)
		return engine.ContainerStatus{}, err
	}
	args := monitor.CreateArgs{
		LogRoot: c.Spec.LogDirectory, LogPath: c.Spec.LogPath, LogMaxSize: e.opts.ContainerLogMaxSize, OCIRuntime: program, Stdin: c.Spec.Stdin, StdinOnce: c.Spec.StdinOnce,
	}
	started, err := e.run(ctx, p, c, client, oci, args)
	if err != nil {
		return e.startFailed(ctx, c, client, err)
	}
	early := e.endStart(c, true)
	e.noteRunning(c, &started)
	if early != nil {
		e.exited(c, early)
	}
	// Only the time of the start is new in it, which is not worth waiting for the disk.
	quiet(e.saveContainer(c), "record the start of a container", id)
	// It runs: a caller that gave up in the last moment must not be told that it does not.
	return e.ContainerStatus(context.WithoutCancel(ctx), id)
}

// run makes the container's process and lets it run, or restores it.
func (e *Engine) run(ctx context.Context, p *pod, c *container, client *monitor.Client, oci json.RawMessage, args monitor.CreateArgs) (st monitor.State, err error) {
	if c.Spec.Checkpoint != nil {
		err = e.anew(ctx, client, c, func() (err error) { st, err = e.restoreProcess(ctx, client, c, oci, args); return err })
		return st, err
	}
	var created monitor.State
	err = e.anew(ctx, client, c, func() (err error) { created, err = e.createProcess(ctx, p, string(c.ID), oci, args); return err })
	if err != nil {
		return created, err
	}
	e.setBorn(c, created.CreatedAt)
	e.allowSysfsWrites(p, c)
	err = failpoint.Around("native.container.start", func() (err error) { st, err = client.Start(ctx, string(c.ID)); return err })
	return st, err
}

// anew has the monitor make the container's process. It may still be at one, of a start in whose midst the daemon before was killed, or
// that could not be taken back: that goes first.
func (e *Engine) anew(ctx context.Context, client *monitor.Client, c *container, makeProcess func() error) error {
	err := makeProcess()
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := e.deleteProcess(ctx, client, c); err != nil {
		return fmt.Errorf("take away what an earlier start left: %w", err)
	}
	return makeProcess()
}

// allowSysfsWrites lets a privileged container, whose root file system is mounted by now, write to /sys: the pod's sysfs is
// read-only where a container that is not privileged was the first to mount it.
func (e *Engine) allowSysfsWrites(p *pod, c *container) {
	if !c.Spec.Security.Privileged {
		return
	}
	e.mu.Lock()
	path := p.pins[ns.Net]
	e.mu.Unlock()
	if path != "" {
		if err := sysfs.AllowWrites(path); err != nil {
			klog.ErrorS(err, "A privileged container cannot write to /sys", "id", c.ID)
		}
	}
}

// setBorn says which process is the container's.
func (e *Engine) setBorn(c *container, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.born = at
}

// beginStart: from now on only the monitor knows whether the container runs.
func (e *Engine) beginStart(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.Started, c.starting, c.early, c.born = true, true, nil, time.Time{}
}

// endStart is the exit that was told meanwhile of the process that has started; all of one that has not is forgotten.
func (e *Engine) endStart(c *container, started bool) *monitor.State {
	e.mu.Lock()
	defer e.mu.Unlock()
	early := c.early
	if !started || early != nil && !early.CreatedAt.Equal(c.born) {
		early = nil
	}
	c.Started, c.starting, c.early = started, false, nil
	if !started {
		c.born = time.Time{}
	}
	return early
}

// createProcess hands the OCI spec to the pod's monitor; the process waits for Start.
func (e *Engine) createProcess(ctx context.Context, p *pod, id string, oci json.RawMessage, args monitor.CreateArgs) (monitor.State, error) {
	if err := e.complete(ctx, &args, id, oci); err != nil {
		return monitor.State{}, err
	}
	client := e.monitorOf(p.ID)
	if client == nil {
		return monitor.State{}, fmt.Errorf("the pod's monitor has ended: %w", errdefs.ErrUnavailable)
	}
	var state monitor.State
	err := failpoint.Around("native.process.create", func() (err error) { state, err = client.Create(ctx, id, &args); return err })
	return state, err
}

// complete fills in what is the same for all processes.
func (e *Engine) complete(ctx context.Context, args *monitor.CreateArgs, id string, oci json.RawMessage) error {
	// Of all of it only the profile is decoded here, and that not further: it is the largest part.
	var part struct {
		Linux struct {
			Seccomp json.RawMessage `json:"seccomp"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(oci, &part); err != nil {
		return fmt.Errorf("decode the container's OCI spec: %w", err)
	}
	args.Spec, args.SystemdCgroup = oci, e.host.CgroupDriver == engine.SystemdDriver
	args.ExitFile = e.exitFile(engine.ContainerID(id))
	if args.OCIRuntime == "" {
		args.SeccompFilter = e.filters.of(ctx, part.Linux.Seccomp)
	}
	return nil
}

// deleteIn has the monitor remove a process with its cgroup and state; where it is still being made, once it is.
func deleteIn(ctx context.Context, client *monitor.Client, id string) error {
	return failpoint.Around("native.process.delete", func() error {
		for {
			err := client.Delete(ctx, id)
			if !errdefs.IsAlreadyExists(err) {
				return err
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

// deleteProcess is deleteIn for a container. What hangs while it is made does so in a process of the container's, mostly,
// which is killed.
func (e *Engine) deleteProcess(ctx context.Context, client *monitor.Client, c *container) error {
	stop := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-ctx.Done():
				return
			case <-time.After(killInterval):
				ctx, cancel := context.WithTimeout(ctx, killInterval)
				quiet(e.cgroups.Kill(ctx, c.Cgroup.Path), "kill a container that is still being made", c.ID)
				cancel()
			}
		}
	})
	defer killer.Wait()
	defer close(stop)
	return deleteIn(ctx, client, string(c.ID))
}

// killInterval is between kills of what does not end; a container that is only deleted has mostly gone by the first.
const killInterval = 500 * time.Millisecond

// startFailed tells a program that cannot run, which is the container's end, from everything else, after which it can be
// started again.
func (e *Engine) startFailed(ctx context.Context, c *container, client *monitor.Client, err error) (engine.ContainerStatus, error) {
	limit := tidyLimit
	if ctx.Err() != nil {
		limit = hangLimit // whoever gave it up is about to end more than this
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	undone := e.deleteProcess(clean, client, c)
	var start *monitor.StartError
	if !errors.As(err, &start) {
		if undone == nil {
			// It tells of the process that was taken back.
			undone = errors.Join(removeFile(e.exitFile(c.ID)), removeFile(e.fallbackExitFile(c.Spec.Pod, c.ID)))
		}
		if undone != nil {
			err = fmt.Errorf("%w; and taking back what was started failed: %w", err, undone)
		}
		e.endStart(c, false)
		quiet(e.saveContainer(c), "record that a container did not start", c.ID)
		return engine.ContainerStatus{}, err
	}
	quiet(undone, "take back a container that did not start", c.ID)
	now := time.Now()
	e.mu.Lock()
	c.StartedAt = now
	e.mu.Unlock()
	e.endStart(c, true)
	e.noteExit(c, ending{Code: int32(start.ExitCode), Reason: engine.ReasonStartError, Message: start.Message, At: now}, true)
	e.mu.Lock()
	defer e.mu.Unlock()
	return c.status(), fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
}

// noteRunning takes over what the monitor says of a process that runs.
func (e *Engine) noteRunning(c *container, st *monitor.State) {
	e.mu.Lock()
	if c.StartedAt.IsZero() {
		c.StartedAt = st.StartedAt
	}
	known := c.exit != nil || c.pid == st.PID
	if c.exit == nil {
		c.pid, c.ticks = st.PID, st.StartTicks
	}
	e.mu.Unlock()
	if !known {
		e.containerChanged(c)
	}
}

// noteExit makes the end known, once. One that no exit file tells is recorded here.
func (e *Engine) noteExit(c *container, end ending, record bool) {
	e.mu.Lock()
	if c.exit != nil {
		e.mu.Unlock()
		return
	}
	c.exit, c.pid, c.ticks = &end, 0, 0
	if record {
		c.Ended = &end
	}
	e.mu.Unlock()
	if record {
		quiet(e.saveContainer(c), "record the end of a container", c.ID)
	}
	e.containerChanged(c)
	close(c.done) // who waits for the end finds it told
	e.tellStoppedLater(c)
}

// endingOf is what an exit of the monitor's means in CRI.
func endingOf(exit *monitor.Exit) ending {
	end := ending{Code: int32(exit.Code), Reason: engine.ReasonError, At: exit.FinishedAt}
	switch {
	case exit.OOMKilled:
		end.Reason = engine.ReasonOOMKilled
	case exit.Code == 0:
		end.Reason = engine.ReasonCompleted
	}
	return end
}
