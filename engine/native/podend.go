package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/host"
	"crishim/engine/native/monitor"
	"crishim/engine/native/ns"
	"crishim/internal/failpoint"
	"crishim/internal/flight"
	"crishim/internal/process"
)

// StopPod implements engine.Pods: whatever still runs in the pod is killed, its monitor ends, its namespaces stay pinned.
func (e *Engine) StopPod(ctx context.Context, id engine.PodID) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	p, err := e.pod(id)
	if err != nil {
		return nil
	}
	containers := e.containersOf(id)
	if err := e.endAll(ctx, id, containers); err != nil {
		return fmt.Errorf("end the pod's containers: %w", err)
	}
	e.tellPodStopped(ctx, p, containers)
	if err := e.endMonitor(ctx, p); err != nil {
		return err
	}
	e.mu.Lock()
	changed := !p.Stopped
	p.Stopped, p.pause, p.pauseTicks = true, 0, 0
	e.mu.Unlock()
	if !changed {
		return nil
	}
	e.podChanged(p)
	// Whether this is recorded matters little: after a crash a pod without a monitor is one that has stopped.
	quiet(e.savePod(p), "record the end of a pod sandbox", id)
	return nil
}

// StopPodEndsContainers implements engine.WholePods.
func (e *Engine) StopPodEndsContainers() {}

// endAll ends the containers of a pod that ends itself. A monitor that hangs is killed: all that it has is to end anyway.
func (e *Engine) endAll(ctx context.Context, id engine.PodID, containers []*container) error {
	try := func(ctx context.Context) error {
		var all sync.WaitGroup
		errs := make([]error, len(containers))
		for i, c := range containers {
			all.Go(func() {
				defer flight.Caught(&errs[i])
				errs[i] = e.end(ctx, c)
			})
		}
		all.Wait()
		return errors.Join(errs...)
	}
	client := e.monitorOf(id)
	if client == nil {
		return try(ctx)
	}
	patient, cancel := context.WithTimeout(ctx, hangLimit)
	defer cancel()
	err := try(patient)
	if err == nil || patient.Err() == nil || ctx.Err() != nil {
		return err
	}
	e.counts.monitorsKilled.Add(1)
	klog.ErrorS(err, "The monitor of a pod that ends hangs and is killed", "id", id, "monitor", client.PID())
	if err := client.KillMonitor(); err != nil {
		return err
	}
	if err := awaitEnd(ctx, client); err != nil {
		return err
	}
	return try(ctx)
}

// endLimit is how long a process that was told to end, or killed, is waited for: longer is one that the kernel cannot end, as a disk
// hangs that it writes to. Tests lower it.
var endLimit = 20 * time.Second

// awaitEnd waits for the end of a monitor that was told to end, or killed.
func awaitEnd(ctx context.Context, client *monitor.Client) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	select {
	case <-client.Done():
		return nil
	case <-ctx.Done():
		return hangs(ctx, client.PID())
	}
}

// hangs is why a process that was told to end, or killed, is no longer waited for.
func hangs(ctx context.Context, pid int) error {
	return fmt.Errorf("process %d was ended and is still there, as one is whose disk does not answer: %w", pid, ctx.Err())
}

// endMonitor ends the pause process and the monitor, and leaves nothing of the pod's processes. What is in the monitor's
// folder stays: it may be all that tells of an exit that the full disk did not take.
func (e *Engine) endMonitor(ctx context.Context, p *pod) error {
	e.mu.Lock()
	client, follow := p.client, p.follow
	e.mu.Unlock()
	if client != nil {
		if follow != nil {
			follow()
		}
		err := failpoint.Around("native.pod.shutdown", func() error { return e.shutdown(ctx, p, client) })
		if err != nil {
			return fmt.Errorf("end the pod's monitor: %w", err)
		}
		e.mu.Lock()
		p.client, p.follow = nil, nil
		e.mu.Unlock()
		client.Close()
	}
	return failpoint.Around("native.pod.kill", func() error { return e.killRemains(ctx, p) })
}

// shutdown asks the monitor to end, or kills it.
func (e *Engine) shutdown(ctx context.Context, p *pod, client *monitor.Client) error {
	patient, cancel := context.WithTimeout(ctx, hangLimit)
	defer cancel()
	var err error
	if p.Spec.Namespaces.PID == engine.NamespacePod {
		err = deleteIn(patient, client, pauseID(p.ID))
	}
	if err == nil {
		err = client.Shutdown(patient)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		if !errdefs.IsUnavailable(err) {
			klog.ErrorS(err, "The monitor of a pod does not end by itself and is killed", "id", p.ID)
		}
		e.counts.monitorsKilled.Add(1)
		_ = client.KillMonitor()
	}
	return awaitEnd(ctx, client)
}

// killRemains ends a monitor that nobody is connected to, what it left, and the pause process with its state.
func (e *Engine) killRemains(ctx context.Context, p *pod) error {
	if err := e.killMonitor(ctx, p); err != nil {
		return err
	}
	if err := e.killSession(ctx, e.monitorRecord(p)); err != nil {
		return err
	}
	if p.Spec.Namespaces.PID != engine.NamespacePod {
		return nil
	}
	cg := e.cgroups.Container(p.Cgroup, engine.ContainerID(pauseID(p.ID)))
	if err := e.cgroups.Remove(ctx, cg.Path); err != nil {
		return fmt.Errorf("end the process that holds the pod's PID namespace: %w", err)
	}
	if err := errors.Join(removeTree(filepath.Join(e.stateRoot(), pauseID(p.ID))), removeFile(e.exitFile(engine.ContainerID(pauseID(p.ID))))); err != nil {
		return err
	}
	return e.pins.Unpin(p.ID, string(ns.PID))
}

// killMonitor kills the pod's monitor, if it lives.
func (e *Engine) killMonitor(ctx context.Context, p *pod) error {
	own := e.monitorRecord(p)
	return killProcess(ctx, own.PID, own.StartTicks)
}

// monitorRecord is what the pod's monitor recorded of itself, or we of it. After a reboot there is none.
func (e *Engine) monitorRecord(p *pod) monitor.Record {
	if p.Boot != boot() {
		return monitor.Record{}
	}
	if own, err := e.knownMonitor(p); err == nil {
		return own
	}
	return p.Monitor
}

// knownMonitor is which process the pod's monitor is: as it recorded that itself, or where its record is damaged or lost, as we did.
func (e *Engine) knownMonitor(p *pod) (monitor.Record, error) {
	own, err := monitor.ReadRecord(e.monitorDir(p.ID))
	if err == nil || process.Starved(err) {
		return own, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.Monitor.PID <= 0 {
		return own, err
	}
	if !errdefs.IsNotFound(err) {
		klog.ErrorS(err, "What a monitor recorded of itself cannot be read; the pod's record says which it is", "id", p.ID, "monitor", p.Monitor.PID)
	}
	return p.Monitor, nil
}

// killProcess kills the process pid that started at ticks and waits for its end. OK when it is gone.
func killProcess(ctx context.Context, pid int, ticks uint64) error {
	if pid <= 0 || ticks == 0 {
		return nil
	}
	watch, err := process.WatchExit(pid, ticks)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer watch.Close()
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, watch.Close)
	defer stop()
	if err := watch.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	if watch.Wait() != nil {
		return hangs(ctx, pid)
	}
	return nil
}

// ReleaseNetNS implements engine.Pods. The other namespaces go with it: nothing runs in them any more.
func (e *Engine) ReleaseNetNS(ctx context.Context, id engine.PodID) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	if err := e.unpin(id); err != nil {
		return err
	}
	if p, err := e.pod(id); err == nil {
		e.mu.Lock()
		p.pins = nil
		e.mu.Unlock()
		e.podChanged(p)
	}
	return nil
}

func (e *Engine) unpin(id engine.PodID) error {
	if err := failpoint.Around("native.pod.unpin", func() error { return e.pins.Remove(id) }); err != nil {
		return fmt.Errorf("drop the pins of the pod's namespaces: %w", err)
	}
	return nil
}

// RemovePod implements engine.Pods. The order is fixed, and the record goes last: what a crash leaves is removed by the next
// call.
func (e *Engine) RemovePod(ctx context.Context, id engine.PodID) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	p, err := e.pod(id)
	if err != nil {
		return nil
	}
	for _, c := range e.containersOf(id) {
		if err := e.RemoveContainer(ctx, c.ID); err != nil {
			return fmt.Errorf("remove container %s of the pod: %w", c.ID, err)
		}
	}
	if err := e.endMonitor(ctx, p); err != nil {
		return err
	}
	if err := e.unpin(id); err != nil {
		return err
	}
	for _, step := range []struct {
		name, what string
		do         func() error
	}{
		{"unfile", "remove the pod's files", func() error { return e.roots.RemovePod(ctx, id) }},
		{"uncgroup", "remove the pod's cgroup", func() error { return e.cgroups.RemovePod(ctx, p.Cgroup) }},
		{"clear", "remove the folder of the pod's monitor", func() error { return removeTree(e.monitorDir(id)) }},
	} {
		if err := failpoint.Around("native.pod."+step.name, step.do); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	defer e.tellPodRemoved(ctx, p)()
	if err := e.forgetPod(p); err != nil {
		return err
	}
	host.ReleaseLabels(p.Labels)
	e.mu.Lock()
	delete(e.pods, id)
	e.mu.Unlock()
	e.events.push(func(s engine.Sink) { s.PodRemoved(id) })
	return nil
}
