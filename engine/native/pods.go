package native

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/host"
	"crishim/engine/native/monitor"
	"crishim/engine/native/ns"
	"crishim/engine/native/spec"
	"crishim/internal/failpoint"
)

// pod is a pod as the engine knows it. Calls on one pod are ordered by the caller; what is read by others is under the
// engine's mu.
type pod struct {
	podRecord
	// client is nil unless the monitor lives.
	client *monitor.Client
	// follow ends the goroutine that reads the monitor's events.
	follow func()
	pins   ns.Set
	// pause is the process that holds the shared PID namespace, 0 where there is none.
	pause      int
	pauseTicks uint64
	// failed says why the pod ended by itself.
	failed string
}

// status requires mu.
func (p *pod) status() engine.PodStatus {
	st := engine.PodStatus{
		ID: p.ID, Key: p.Spec.Key, State: engine.PodNotReady, CreatedAt: p.CreatedAt, StartedAt: p.StartedAt,
		NetNSPath: p.pins[ns.Net], Spec: &p.Spec,
	}
	if p.client == nil || p.Stopped || p.StartedAt.IsZero() {
		return st
	}
	st.State = engine.PodReady
	st.PID, st.StartTicks = p.pause, p.pauseTicks
	// The pause process's own cgroup, whether there is one or not: its parent is the pod's.
	st.CgroupPath = filepath.Join(p.Cgroup.Path, "crishim-pause")
	return st
}

func (e *Engine) pod(id engine.PodID) (*pod, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.pods[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("pod sandbox %s: %w", id, errdefs.ErrNotFound)
}

// CreatePod implements engine.Pods: it records the pod, which then is removed by RemovePod whatever was made of it.
func (e *Engine) CreatePod(ctx context.Context, s *engine.PodSpec) (engine.PodID, error) {
	if err := e.check(ctx); err != nil {
		return "", err
	}
	if err := e.removeLeftover(ctx, s.Key); err != nil {
		return "", fmt.Errorf("remove what a crash left of the pod: %w", err)
	}
	id := engine.PodID(newID())
	cg, err := e.cgroups.Pod(id, s.CgroupParent)
	if err != nil {
		return "", err
	}
	labels, err := host.PodLabels(s.Security.SELinux)
	if err != nil {
		return "", err
	}
	p := &pod{podRecord: podRecord{
		Version: recordVersion, ID: id, Boot: boot(), Spec: *s, CreatedAt: time.Now(), Cgroup: cg, Labels: labels,
	}}
	if err := e.savePod(p); err != nil {
		host.ReleaseLabels(labels)
		return "", err
	}
	e.mu.Lock()
	e.pods[id] = p
	e.mu.Unlock()
	e.podChanged(p)
	return id, nil
}

func (e *Engine) removeLeftover(ctx context.Context, key engine.PodKey) error {
	e.mu.Lock()
	var old []engine.PodID
	for id, p := range e.pods {
		if p.Spec.Key == key {
			old = append(old, id)
		}
	}
	e.mu.Unlock()
	for _, id := range old {
		klog.InfoS("Removing a pod sandbox that a crash left", "pod", klog.KRef(key.Namespace, key.Name), "id", id)
		if err := errors.Join(e.StopPod(ctx, id), e.ReleaseNetNS(ctx, id)); err != nil {
			return err
		}
		if err := e.RemovePod(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) savePod(p *pod) error {
	e.mu.Lock()
	record := p.podRecord
	e.mu.Unlock()
	if err := writeRecord(e.podRecords(), string(p.ID), &record); err != nil {
		return err
	}
	return failpoint.Hit("native.pod.recorded")
}

func (e *Engine) podChanged(p *pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := p.status()
	e.events.push(func(s engine.Sink) { s.PodChanged(st) })
}

// StartPod implements engine.Pods: cgroup, namespaces, files, monitor, and the pause process where PIDs are shared.
func (e *Engine) StartPod(ctx context.Context, id engine.PodID, s *engine.PodSpec) (engine.PodStatus, error) {
	if err := e.check(ctx); err != nil {
		return engine.PodStatus{}, err
	}
	p, err := e.pod(id)
	if err != nil {
		return engine.PodStatus{}, err
	}
	if err := e.cgroups.CreatePod(ctx, p.Cgroup, s.Resources); err != nil {
		return engine.PodStatus{}, fmt.Errorf("make the pod's cgroup: %w", err)
	}
	if err := failpoint.Hit("native.pod.cgroup"); err != nil {
		return engine.PodStatus{}, err
	}
	pins, err := e.pins.Create(id, &ns.Config{
		User: s.Namespaces.User, Net: s.Namespaces.Network != engine.NamespaceNode, IPC: s.Namespaces.IPC != engine.NamespaceNode,
		UTS: s.Namespaces.Network != engine.NamespaceNode, Hostname: s.Hostname, Sysctls: s.Sysctls,
	})
	if err != nil {
		return engine.PodStatus{}, fmt.Errorf("make the pod's namespaces: %w", err)
	}
	if err := failpoint.Hit("native.pod.pinned"); err != nil {
		return engine.PodStatus{}, err
	}
	files, err := e.roots.MakePod(ctx, id, s, p.Labels.Mount)
	if err != nil {
		return engine.PodStatus{}, fmt.Errorf("make the pod's files: %w", err)
	}
	client, err := e.spawn(ctx, p)
	if err != nil {
		return engine.PodStatus{}, err
	}
	if err := failpoint.Hit("native.pod.monitored"); err != nil {
		return engine.PodStatus{}, err
	}
	e.mu.Lock()
	p.client, p.pins, p.Files = client, pins, files
	e.mu.Unlock()
	if s.Namespaces.PID == engine.NamespacePod {
		if err := e.startPause(ctx, p, s); err != nil {
			return engine.PodStatus{}, fmt.Errorf("start the process that holds the pod's PID namespace: %w", err)
		}
	}
	e.mu.Lock()
	p.StartedAt = time.Now()
	e.mu.Unlock()
	if err := e.savePod(p); err != nil {
		return engine.PodStatus{}, err
	}
	if err := client.Commit(ctx); err != nil {
		return engine.PodStatus{}, fmt.Errorf("tell the pod's monitor that it stays: %w", err)
	}
	e.followPod(p)
	e.podChanged(p)
	return e.PodStatus(ctx, id)
}

// spawn starts the monitor and moves it out of our own cgroup: it outlives the service, and is charged to nobody's pod.
func (e *Engine) spawn(ctx context.Context, p *pod) (*monitor.Client, error) {
	client, err := monitor.Spawn(ctx, e.helper, &monitor.Config{
		Pod: p.Spec.Key.Namespace + "/" + p.Spec.Key.Name, Dir: e.monitorDir(p.ID), StateRoot: e.stateRoot(),
	})
	if err != nil {
		return nil, err
	}
	if err := e.cgroups.Join(e.cgroups.Monitors(), client.PID()); err != nil {
		err = fmt.Errorf("move the pod's monitor to its cgroup: %w", err)
		err = errors.Join(err, client.KillMonitor())
		client.Close()
		return nil, err
	}
	return client, nil
}

// pauseID is the pause process's name for its monitor and for libcontainer.
func pauseID(id engine.PodID) string { return "pause-" + string(id) }

func (e *Engine) startPause(ctx context.Context, p *pod, s *engine.PodSpec) error {
	root, err := e.roots.PauseRoot()
	if err != nil {
		return err
	}
	cg := e.cgroups.Container(p.Cgroup, engine.ContainerID(pauseID(p.ID)))
	oci, err := spec.BuildPause(e.host, &spec.Pause{
		Rootfs: root, Namespaces: s.Namespaces, Pins: e.specPins(p), CgroupsPath: cg.CgroupsPath, Labels: p.Labels, Security: &s.Security,
	})
	if err != nil {
		return err
	}
	state, err := e.createProcess(ctx, p, pauseID(p.ID), oci, monitor.CreateArgs{})
	if err != nil {
		return err
	}
	if _, err := p.client.Start(ctx, pauseID(p.ID)); err != nil {
		return err
	}
	pin, err := e.pins.Pin(p.ID, string(ns.PID), ns.PID, state.PID, state.StartTicks)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p.pins[ns.PID], p.pause, p.pauseTicks = pin, state.PID, state.StartTicks
	return nil
}

// specPins are the pod's namespaces as its containers join them.
func (e *Engine) specPins(p *pod) spec.Pins {
	e.mu.Lock()
	defer e.mu.Unlock()
	return spec.Pins{User: p.pins[ns.User], Net: p.pins[ns.Net], IPC: p.pins[ns.IPC], UTS: p.pins[ns.UTS], PID: p.pins[ns.PID]}
}

// StopPod implements engine.Pods: whatever still runs in the pod is killed, its monitor ends, its namespaces stay pinned.
func (e *Engine) StopPod(ctx context.Context, id engine.PodID) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	p, err := e.pod(id)
	if err != nil {
		return nil
	}
	var all sync.WaitGroup
	containers := e.containersOf(id)
	errs := make([]error, len(containers))
	for i, c := range containers {
		all.Go(func() { errs[i] = e.end(ctx, c) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("end the pod's containers: %w", err)
	}
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

// endMonitor ends the pause process and the monitor, and leaves nothing of the pod's processes.
func (e *Engine) endMonitor(ctx context.Context, p *pod) error {
	e.mu.Lock()
	client, follow := p.client, p.follow
	p.client, p.follow = nil, nil
	e.mu.Unlock()
	if follow != nil {
		follow()
	}
	if client != nil {
		err := client.Delete(ctx, pauseID(p.ID))
		if err == nil {
			err = client.Shutdown(ctx)
		}
		if err != nil && ctx.Err() == nil && !errdefs.IsUnavailable(err) {
			klog.ErrorS(err, "The monitor of a pod does not end by itself and is killed", "id", p.ID)
		}
		if ctx.Err() != nil {
			e.mu.Lock()
			p.client = client // the next call goes on
			e.mu.Unlock()
			return ctx.Err()
		}
		if err != nil {
			_ = client.KillMonitor()
		}
		select {
		case <-client.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
		client.Close()
	}
	return e.killRemains(ctx, p)
}

// killRemains ends what a monitor that died left of the pause process, and its state.
func (e *Engine) killRemains(ctx context.Context, p *pod) error {
	if p.Spec.Namespaces.PID == engine.NamespacePod {
		cg := e.cgroups.Container(p.Cgroup, engine.ContainerID(pauseID(p.ID)))
		if err := e.cgroups.Remove(ctx, cg.Path); err != nil {
			return fmt.Errorf("end the process that holds the pod's PID namespace: %w", err)
		}
		if err := removeTree(filepath.Join(e.stateRoot(), pauseID(p.ID))); err != nil {
			return err
		}
		if err := e.pins.Unpin(p.ID, string(ns.PID)); err != nil {
			return err
		}
	}
	return removeTree(e.monitorDir(p.ID))
}

// ReleaseNetNS implements engine.Pods. The other namespaces go with it: nothing runs in them any more.
func (e *Engine) ReleaseNetNS(ctx context.Context, id engine.PodID) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	if err := e.pins.Remove(id); err != nil {
		return fmt.Errorf("drop the pins of the pod's namespaces: %w", err)
	}
	if p, err := e.pod(id); err == nil {
		e.mu.Lock()
		p.pins = nil
		e.mu.Unlock()
		e.podChanged(p)
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
	if err := e.pins.Remove(id); err != nil {
		return fmt.Errorf("drop the pins of the pod's namespaces: %w", err)
	}
	if err := e.roots.RemovePod(ctx, id); err != nil {
		return fmt.Errorf("remove the pod's files: %w", err)
	}
	if err := e.cgroups.RemovePod(ctx, p.Cgroup); err != nil {
		return fmt.Errorf("remove the pod's cgroup: %w", err)
	}
	if err := failpoint.Hit("native.pod.removing"); err != nil {
		return err
	}
	if err := removeFile(filepath.Join(e.podRecords(), string(id))); err != nil {
		return fmt.Errorf("remove the pod's record: %w", err)
	}
	host.ReleaseLabels(p.Labels)
	e.mu.Lock()
	delete(e.pods, id)
	e.mu.Unlock()
	e.events.push(func(s engine.Sink) { s.PodRemoved(id) })
	return nil
}

// UpdatePod implements engine.Pods.
func (e *Engine) UpdatePod(ctx context.Context, id engine.PodID, _, resources *engine.Resources) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	p, err := e.pod(id)
	if err != nil {
		return err
	}
	return e.cgroups.UpdatePod(ctx, p.Cgroup, resources)
}

// PodStatus implements engine.Pods.
func (e *Engine) PodStatus(ctx context.Context, id engine.PodID) (engine.PodStatus, error) {
	if err := e.check(ctx); err != nil {
		return engine.PodStatus{}, err
	}
	p, err := e.pod(id)
	if err != nil {
		return engine.PodStatus{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return p.status(), nil
}
