package native

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/monitor"
	"crishim/engine/native/spec"
	"crishim/internal/failpoint"
	"crishim/internal/mounttree"
)

// StopContainer implements engine.Containers.
func (e *Engine) StopContainer(ctx context.Context, id engine.ContainerID, grace time.Duration) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	err := e.stop(ctx, id, grace)
	if c, found := e.container(id); found == nil {
		if err == nil {
			e.tidyNow(ctx, c)
		}
		e.tellStopped(c)
	}
	return err
}

// tidyNow waits until what an ended container's process had is gone: who stops a container may count on that. It is no reason
// to say that it was not stopped; the removal tries again.
func (e *Engine) tidyNow(ctx context.Context, c *container) {
	e.mu.Lock()
	ended := c.exit != nil
	e.mu.Unlock()
	if !ended {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, hangLimit)
	defer cancel()
	quiet(e.end(ctx, c), "take away what a stopped container had", c.ID)
}

func (e *Engine) stop(ctx context.Context, id engine.ContainerID, grace time.Duration) error {
	c, client, err := e.running(id)
	switch {
	case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err):
		return nil
	case errdefs.IsUnavailable(err): // its monitor died just now, which ends it
		c, err = e.container(id)
		if err != nil {
			return nil
		}
		return e.awaitExit(ctx, c)
	case err != nil:
		return err
	}
	if grace > 0 {
		_, sig, err := spec.StopSignal(&c.Spec, c.StopSignal)
		if err != nil {
			return fmt.Errorf("stop container %s: %w", id, err)
		}
		// A monitor that hangs, or an OCI runtime, passes no signal on; the time is up all the same.
		patient, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		told := e.signal(patient, client, c, sig)
		select {
		case <-c.done:
			return nil
		case <-patient.Done():
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if told != nil {
			klog.ErrorS(told, "A container that could not be told to end is killed", "id", id, "signal", sig)
		}
	}
	if err := failpoint.Around("native.container.kill", func() error { return e.kill(ctx, client, c) }); err != nil && !over(err) {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	return e.awaitExit(ctx, c)
}

// signal has the monitor signal the container, and tries again until ctx ends: what is in the way may go, as a limit of the node, or
// stay, as an AppArmor profile that lets no signal in.
func (e *Engine) signal(ctx context.Context, client *monitor.Client, c *container, sig unix.Signal) error {
	for {
		err := client.Signal(ctx, string(c.ID), sig)
		if err == nil || over(err) || ctx.Err() != nil {
			return nil
		}
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
			return err
		case <-time.After(signalAgain):
		}
	}
}

// signalAgain is the pause before a container is signalled anew that could not be.
const signalAgain = time.Second

// kill has the monitor kill the container, or does it itself: the monitor waits where a process is being made in the container, and
// one that opens a pipe in the place of /etc/passwd, or a file whose server hangs, is made for ever. It is in the cgroup, too. And an OCI
// runtime may fail, or be gone.
func (e *Engine) kill(ctx context.Context, client *monitor.Client, c *container) error {
	patient, cancel := context.WithTimeout(ctx, hangLimit/2)
	defer cancel()
	err := client.Kill(patient, string(c.ID))
	if err == nil || over(err) || ctx.Err() != nil {
		return err
	}
	klog.ErrorS(err, "A container is killed by its cgroup, as its monitor does not", "id", c.ID)
	return e.cgroups.Kill(ctx, c.Cgroup.Path)
}

// over is how the monitor says that it, or the container, has ended meanwhile.
func over(err error) bool { return errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) }

func (e *Engine) awaitExit(ctx context.Context, c *container) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s was killed and has not ended: %w", c.ID, ctx.Err())
	}
}

// hangLimit is how long what ends a pod waits for a monitor that cannot take a container away, as one that is being made
// hangs. Tests lower it.
var hangLimit = 5 * time.Second

// tidyLimit bounds what is cleaned up without a caller.
const tidyLimit = 30 * time.Second

// leastTidy is what is left of tidyLimit for what comes last.
const leastTidy = 2 * time.Second

// end kills the container if it runs and takes away what its process had: state, cgroup and mounts. The writable layer, the
// exit and the log stay.
func (e *Engine) end(ctx context.Context, c *container) error {
	if err := e.stop(ctx, c.ID, 0); err != nil {
		return err
	}
	select {
	case c.tidy <- struct{}{}:
		defer func() { <-c.tidy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if c.tidied {
		return nil
	}
	if client := e.monitorOf(c.Spec.Pod); client != nil {
		if err := e.deleteProcess(ctx, client, c); err != nil && !errdefs.IsUnavailable(err) {
			return fmt.Errorf("delete container %s: %w", c.ID, err)
		}
	}
	for _, step := range []struct {
		name, what string
		do         func() error
	}{
		// What the monitor did not do.
		{"uncgroup", "remove the cgroup", func() error { return e.cgroups.Remove(ctx, c.Cgroup.Path) }},
		{"unstate", "remove the state", func() error {
			return errors.Join(removeTree(filepath.Join(e.stateRoot(), string(c.ID))), mounttree.RemoveAll(filepath.Join(e.ociRoot(), string(c.ID))))
		}},
		{"unpin", "unpin the PID namespace", func() error { return e.unpinTarget(c) }},
		{"unmount", "unmount the root", func() error { return e.roots.Unmount(ctx, c.ID) }},
	} {
		if err := failpoint.Around("native.container."+step.name, step.do); err != nil {
			return fmt.Errorf("%s of container %s: %w", step.what, c.ID, err)
		}
	}
	c.tidied = true
	return nil
}

func (e *Engine) unpinTarget(c *container) error {
	if c.Spec.Namespaces.PID != engine.NamespaceTarget {
		return nil
	}
	return e.pins.Unpin(c.Spec.Pod, string(c.ID))
}

// tidyLater takes away in the background what an ended container's process had.
func (e *Engine) tidyLater(c *container) {
	e.inBackground(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, tidyLimit)
		defer cancel()
		if err := e.end(ctx, c); err != nil && !errdefs.IsNotFound(err) {
			klog.V(2).InfoS("An ended container's mounts or cgroup stay until it is removed", "id", c.ID, "err", err)
		}
	})
}

// RemoveContainer implements engine.Containers. The order is fixed, and the record goes last.
func (e *Engine) RemoveContainer(ctx context.Context, id engine.ContainerID) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	c, err := e.container(id)
	if err != nil {
		return nil
	}
	if err := e.end(ctx, c); err != nil {
		return err
	}
	p, described := e.describeWithPod(c)
	for _, step := range []struct {
		name, what string
		do         func() error
	}{
		{"remove", "remove the writable layer", func() error {
			return errors.Join(e.roots.Remove(ctx, id), removeTree(e.checkpointDir(id)))
		}},
		{"clear", "remove the bundle and the exit", func() error {
			c.limits.Lock()
			defer c.limits.Unlock()
			c.cleared = true
			return errors.Join(removeTree(e.bundle(id)), removeFile(e.exitFile(id)), removeFile(e.fallbackExitFile(c.Spec.Pod, id)))
		}},
	} {
		if err := failpoint.Around("native.container."+step.name, step.do); err != nil {
			return fmt.Errorf("%s of container %s: %w", step.what, id, diskError(err))
		}
	}
	defer e.tellRemoved(ctx, c, p, described)()
	if err := e.forgetContainer(c); err != nil {
		return err
	}
	e.mu.Lock()
	delete(e.containers, id)
	e.mu.Unlock()
	e.events.push(func(s engine.Sink) { s.ContainerRemoved(id) })
	return nil
}
