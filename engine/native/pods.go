package native

import (
	"cmp"
	"context"
	"encoding/json"
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
	told told
	// saving orders the writes of the record, until it is removed (forgotten).
	saving    sync.Mutex
	forgotten bool

	// client is nil unless the monitor lives.
	client *monitor.Client
	// follow ends the goroutine that reads the monitor's events.
	follow func()
	pins   ns.Set
	// pause is the process that holds the shared PID namespace, 0 where there is none.
	pause      int
	pauseTicks uint64
}

// status requires mu.
func (p *pod) status() engine.PodStatus {
	spec := p.Spec // UpdatePod changes it
	st := engine.PodStatus{
		ID: p.ID, Key: p.Spec.Key, State: engine.PodNotReady, CreatedAt: p.CreatedAt, StartedAt: p.StartedAt,
		NetNSPath: p.pins[ns.Net], Spec: &spec,
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
	e.cgroups.ExpectJoin() // of the monitor
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
		header: header{Version: recordVersion, Boot: boot()}, ID: id, Spec: *s, CreatedAt: time.Now(), Cgroup: cg, Labels: labels,
	}}
	err = e.savePod(p)
	if err != nil {
		left := e.forgetPod(p)
		if left == nil {
			host.ReleaseLabels(labels)
			return "", err
		}
		err = errors.Join(err, left) // the next daemon would find it, and so does whoever removes it by its id
	}
	e.mu.Lock()
	e.pods[id] = p
	e.mu.Unlock()
	e.podChanged(p)
	return id, err
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

// savePod replaces the pod's record. One that was removed meanwhile stays removed.
func (e *Engine) savePod(p *pod) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	if p.forgotten {
		return nil
	}
	e.mu.Lock()
	p.Revision++
	record := p.podRecord
	e.mu.Unlock()
	return e.podRecords.save(string(p.ID), &record)
}

// forgetPod removes the pod's record for good.
func (e *Engine) forgetPod(p *pod) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	err := e.podRecords.remove(string(p.ID))
	p.forgotten = err == nil
	return err
}

func (e *Engine) podChanged(p *pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pods[p.ID] != p {
		return // its removal has been told
	}
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
	for _, step := range []struct {
		name, what string
		do         func() error
	}{
		{"cgroup", "make the pod's cgroup", func() error { return e.cgroups.CreatePod(ctx, p.Cgroup, s.Resources) }},
		{"pin", "make the pod's namespaces", func() error { return e.pinNamespaces(p, s) }},
		{"files", "make the pod's files", func() error { return e.makePodFiles(ctx, p, s) }},
		{"spawn", "start the pod's monitor", func() error { return e.spawn(ctx, p) }},
		{"join", "move the pod's monitor to its cgroup", func() error { return e.cgroups.Join(e.cgroups.Monitors(), p.client.PID()) }},
		{"pause", "start the process that holds the pod's PID namespace", func() error { return e.startPause(ctx, p, s) }},
		{"start", "record the start of the pod", func() error { return e.recordStart(p) }},
		{"commit", "tell the pod's monitor that it stays", func() error { return p.client.Commit(ctx) }},
	} {
		if step.name == "pause" && s.Namespaces.PID != engine.NamespacePod {
			continue
		}
		if err := failpoint.Around("native.pod."+step.name, step.do); err != nil {
			return engine.PodStatus{}, fmt.Errorf("%s: %w", step.what, diskError(err))
		}
	}
	e.followPod(p)
	e.podChanged(p)
	return e.PodStatus(ctx, id)
}

func (e *Engine) pinNamespaces(p *pod, s *engine.PodSpec) error {
	pins, err := e.pins.Create(p.ID, &ns.Config{
		User: s.Namespaces.User, Net: s.Namespaces.Network != engine.NamespaceNode, IPC: s.Namespaces.IPC != engine.NamespaceNode,
		UTS: s.Namespaces.Network != engine.NamespaceNode, Hostname: s.Hostname, Sysctls: s.Sysctls,
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	p.pins = pins
	return err
}

func (e *Engine) makePodFiles(ctx context.Context, p *pod, s *engine.PodSpec) error {
	files, err := e.roots.MakePod(ctx, p.ID, s, p.Labels.Mount)
	e.mu.Lock()
	defer e.mu.Unlock()
	p.Files = files
	return err
}

// spawn starts the monitor. It is then moved out of our own cgroup: it outlives the service, and is charged to nobody's pod.
func (e *Engine) spawn(ctx context.Context, p *pod) error {
	client, err := monitor.Spawn(ctx, e.helper, &monitor.Config{
		Pod: p.Spec.Key.Namespace + "/" + p.Spec.Key.Name, Dir: e.monitorDir(p.ID), StateRoot: e.stateRoot(), PodCgroup: e.cgroups.Unified(p.Cgroup),
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p.client, p.Monitor = client, client.Hello().Record
	return nil
}

func (e *Engine) recordStart(p *pod) error {
	e.mu.Lock()
	p.StartedAt = time.Now()
	e.mu.Unlock()
	return e.savePod(p)
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
	data, err := json.Marshal(oci)
	if err != nil {
		return err
	}
	state, err := e.createProcess(ctx, p, pauseID(p.ID), data, monitor.CreateArgs{})
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

// UpdatePod implements engine.Pods.
func (e *Engine) UpdatePod(ctx context.Context, id engine.PodID, overhead, resources *engine.Resources) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	p, err := e.pod(id)
	if err != nil {
		return err
	}
	if err := e.askPodUpdate(ctx, p, overhead, resources); err != nil {
		return err
	}
	e.mu.Lock()
	previous := p.Spec.Resources
	e.mu.Unlock()
	err = failpoint.Around("native.pod.update", func() error { return e.cgroups.UpdatePod(ctx, p.Cgroup, resources, previous) })
	if err != nil {
		return err
	}
	e.mu.Lock()
	p.Spec.Overhead, p.Spec.Resources = cmp.Or(overhead, p.Spec.Overhead), cmp.Or(resources, p.Spec.Resources)
	e.mu.Unlock()
	e.tellPodUpdated(ctx, p)
	if err := e.savePod(p); err != nil { // it is written again with what changes next
		klog.ErrorS(err, "Cannot record the resources of a pod", "id", id)
	}
	return nil
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
