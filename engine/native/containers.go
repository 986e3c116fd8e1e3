package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/imageuser"
	"crishim/engine/native/host"
	"crishim/engine/native/monitor"
	"crishim/engine/native/ns"
	"crishim/engine/native/rootfs"
	"crishim/engine/native/spec"
	"crishim/internal/failpoint"
)

// container is a container as the engine knows it. Calls on one container are ordered by the caller, but for its stops.
type container struct {
	containerRecord
	// Of the process that runs; 0 before and after. Under the engine's mu, as the rest.
	pid   int
	ticks uint64
	exit  *ending
	// done is closed when exit is set.
	done chan struct{}
	// tidy holds a value while what the process had is taken away, after its end or at the removal.
	tidy chan struct{}
}

func newContainer(record containerRecord) *container {
	return &container{containerRecord: record, done: make(chan struct{}), tidy: make(chan struct{}, 1)}
}

func (c *container) uses(id engine.ImageID) bool {
	if c.Spec.Image.ID == id {
		return true
	}
	for _, m := range c.Spec.Mounts {
		if m.Image != nil && m.Image.ID == id {
			return true
		}
	}
	return false
}

// status requires mu.
func (c *container) status() engine.ContainerStatus {
	st := engine.ContainerStatus{
		ID: c.ID, Pod: c.Spec.Pod, PodKey: c.Spec.PodKey, Key: c.Spec.Key, State: engine.ContainerCreated,
		CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, UpperDir: c.Upper, ImageID: c.Spec.Image.ID, StopSignal: c.StopSignal,
		User: new(c.User), Spec: &c.Spec,
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

func (e *Engine) saveContainer(c *container) error {
	e.mu.Lock()
	record := c.containerRecord
	e.mu.Unlock()
	if err := writeRecord(e.containerRecords(), string(c.ID), &record); err != nil {
		return err
	}
	return failpoint.Hit("native.container.recorded")
}

func (e *Engine) containerChanged(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := c.status()
	e.events.push(func(s engine.Sink) { s.ContainerChanged(st) })
}

// CreateContainer implements engine.Containers: the root file system is mounted and the OCI spec decided; there is no
// process before StartContainer.
func (e *Engine) CreateContainer(ctx context.Context, s *engine.ContainerSpec) (_ engine.ContainerStatus, err error) {
	if err := e.check(ctx); err != nil {
		return engine.ContainerStatus{}, err
	}
	p, err := e.pod(s.Pod)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	for _, old := range e.containersOf(s.Pod) {
		if old.Spec.Key != s.Key {
			continue
		}
		klog.InfoS("Removing a container that a crash left", "container", s.Key.Name, "id", old.ID)
		if err := e.RemoveContainer(ctx, old.ID); err != nil {
			return engine.ContainerStatus{}, fmt.Errorf("remove what a crash left of the container: %w", err)
		}
	}
	id := engine.ContainerID(newID())
	c := newContainer(containerRecord{
		Version: recordVersion, ID: id, Boot: boot(), Spec: *s, CreatedAt: time.Now(), Cgroup: e.cgroups.Container(p.Cgroup, id),
	})
	// From here on the images are in use, as RemoveImage sees it; a removal that came first is found by the look-up.
	e.mu.Lock()
	e.containers[id] = c
	e.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, e.forget(context.WithoutCancel(ctx), c))
		}
	}()
	if err := e.saveContainer(c); err != nil {
		return engine.ContainerStatus{}, err
	}
	root, err := e.mountRoot(ctx, p, c)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	if err := failpoint.Hit("native.container.mounted"); err != nil {
		return engine.ContainerStatus{}, err
	}
	oci, err := e.ociSpec(ctx, p, c, root)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	if err := e.writeBundle(id, oci); err != nil {
		return engine.ContainerStatus{}, err
	}
	if err := e.saveContainer(c); err != nil {
		return engine.ContainerStatus{}, err
	}
	e.containerChanged(c)
	return e.ContainerStatus(ctx, id)
}

// forget takes a container back that could not be made.
func (e *Engine) forget(ctx context.Context, c *container) error {
	ctx, cancel := context.WithTimeout(ctx, tidyLimit)
	defer cancel()
	return e.RemoveContainer(ctx, c.ID)
}

// mountRoot stacks the image's layers under a writable one and looks up who the container runs as.
func (e *Engine) mountRoot(ctx context.Context, p *pod, c *container) (rootfs.Rootfs, error) {
	layers, err := e.images.LayerDirs(ctx, c.Spec.Image.ID)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	labels, err := e.labels(p, c)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	root, err := e.roots.Mount(ctx, c.ID, &rootfs.Layers{Dirs: layers, Idmap: e.idmap(p), Label: labels.Mount})
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	config, err := e.images.Config(ctx, c.Spec.Image.ID)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	user, err := imageuser.Resolve(&c.Spec.Security, config.Config.User, func() ([]byte, []byte, error) { return rootfs.UserFiles(root.Path) })
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	stop, _, err := spec.StopSignal(&c.Spec, config.Config.StopSignal)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.Upper, c.User, c.StopSignal = root.Upper, user, stop
	return root, nil
}

func (e *Engine) labels(p *pod, c *container) (host.Labels, error) {
	return host.ContainerLabels(p.Labels, c.Spec.Security.SELinux, c.Spec.Security.Privileged)
}

func (e *Engine) idmap(p *pod) *rootfs.Idmap {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.Spec.Namespaces.User == nil {
		return nil
	}
	return &rootfs.Idmap{Namespace: p.Spec.Namespaces.User, Path: p.pins[ns.User]}
}

// ociSpec looks up everything that the OCI spec depends on, and builds it.
func (e *Engine) ociSpec(ctx context.Context, p *pod, c *container, root rootfs.Rootfs) (*specs.Spec, error) {
	s := &c.Spec
	config, err := e.images.Config(ctx, s.Image.ID)
	if err != nil {
		return nil, err
	}
	if err := e.host.CheckAppArmor(&s.Security.AppArmor); err != nil {
		return nil, err
	}
	in := &spec.Container{
		Spec: s, Image: config.Config, User: c.User, Rootfs: root.Path, Pins: e.specPins(p), Hostname: p.Spec.Hostname,
		CgroupsPath: c.Cgroup.CgroupsPath, ImageVolumes: map[int]string{},
	}
	if in.Labels, err = e.labels(p, c); err != nil {
		return nil, err
	}
	if in.Devices, err = host.Devices(s.Devices); err != nil {
		return nil, err
	}
	if s.Security.Privileged {
		all, err := host.AllDevices()
		if err != nil {
			return nil, err
		}
		in.Devices = append(all, in.Devices...)
	}
	if err := rootfs.PrepareSources(s.Mounts, in.Labels.Mount); err != nil {
		return nil, err
	}
	for i, m := range s.Mounts {
		if m.Image == nil {
			continue
		}
		layers, err := e.images.LayerDirs(ctx, m.Image.ID)
		if err != nil {
			return nil, err
		}
		in.ImageVolumes[i], err = e.roots.MountImage(ctx, c.ID, i, &rootfs.ImageVolume{
			Layers: rootfs.Layers{Dirs: layers, Idmap: e.idmap(p), Label: in.Labels.Mount}, SubPath: m.ImageSubPath, Options: m.Options,
		})
		if err != nil {
			return nil, fmt.Errorf("mount image volume %s: %w", m.ContainerPath, err)
		}
	}
	in.Files = spec.Files{Hosts: p.Files.Hosts, Hostname: p.Files.Hostname, ResolvConf: p.Files.ResolvConf}
	if in.Shm = p.Files.Shm; s.Namespaces.IPC == engine.NamespaceNode {
		in.Shm = "/dev/shm"
	}
	if in.Pins.PID, err = e.pidPin(p, s, c.ID); err != nil {
		return nil, err
	}
	oci, warnings, err := spec.Build(e.host, in)
	if err != nil {
		return nil, err
	}
	if len(warnings) > 0 {
		klog.V(2).InfoS("The container gets less than was asked for, as this host allows no more", "container", s.Key.Name, "id", c.ID, "warnings", warnings)
	}
	if err := e.cdi.Inject(oci, s.CDIDevices); err != nil {
		return nil, err
	}
	return oci, nil
}

// pidPin is the PID namespace to join: the pod's, another container's, or "" for one of its own (or the host's).
func (e *Engine) pidPin(p *pod, s *engine.ContainerSpec, id engine.ContainerID) (string, error) {
	switch s.Namespaces.PID {
	case engine.NamespacePod:
		e.mu.Lock()
		defer e.mu.Unlock()
		return p.pins[ns.PID], nil
	case engine.NamespaceTarget:
		target, _, err := e.running(s.Namespaces.PIDTarget)
		if err != nil {
			return "", fmt.Errorf("share the PID namespace: %w", err)
		}
		e.mu.Lock()
		pid, ticks := target.pid, target.ticks
		e.mu.Unlock()
		return e.pins.Pin(p.ID, string(id), ns.PID, pid, ticks)
	}
	return "", nil
}

func (e *Engine) writeBundle(id engine.ContainerID, oci *specs.Spec) error {
	data, err := json.Marshal(oci)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(e.bundle(id), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(e.bundle(id), "config.json"), data, 0o600)
}

func (e *Engine) readBundle(id engine.ContainerID) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(e.bundle(id), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the container's OCI spec: %w", err)
	}
	oci := new(specs.Spec)
	return oci, json.Unmarshal(data, oci)
}

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
	oci, err := e.readBundle(id)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	e.setStarted(c, true)
	if err := e.saveContainer(c); err != nil {
		e.setStarted(c, false)
		return engine.ContainerStatus{}, err
	}
	started, err := e.createProcess(ctx, p, string(id), oci, monitor.CreateArgs{
		LogRoot: c.Spec.LogDirectory, LogPath: c.Spec.LogPath, Stdin: c.Spec.Stdin, StdinOnce: c.Spec.StdinOnce,
	})
	if err == nil {
		if err = failpoint.Hit("native.container.created"); err == nil {
			started, err = client.Start(ctx, string(id))
		}
	}
	if err != nil {
		return e.startFailed(ctx, c, client, err)
	}
	e.noteRunning(c, &started)
	// Only the time of the start is new in it, which is not worth waiting for the disk.
	quiet(e.saveContainer(c), "record the start of a container", id)
	return e.ContainerStatus(ctx, id)
}

func (e *Engine) setStarted(c *container, started bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.Started = started
}

// createProcess hands the OCI spec to the pod's monitor; the process waits for Start.
func (e *Engine) createProcess(ctx context.Context, p *pod, id string, oci *specs.Spec, args monitor.CreateArgs) (monitor.State, error) {
	data, err := json.Marshal(oci)
	if err != nil {
		return monitor.State{}, err
	}
	args.Spec, args.SystemdCgroup = data, e.host.CgroupDriver == engine.SystemdDriver
	args.ExitFile = e.exitFile(engine.ContainerID(id))
	client := e.monitorOf(p.ID)
	if client == nil {
		return monitor.State{}, fmt.Errorf("the pod's monitor has ended: %w", errdefs.ErrUnavailable)
	}
	return client.Create(ctx, id, &args)
}

// startFailed tells a program that cannot run, which is the container's end, from everything else, after which it can be
// started again.
func (e *Engine) startFailed(ctx context.Context, c *container, client *monitor.Client, err error) (engine.ContainerStatus, error) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
	defer cancel()
	quiet(client.Delete(clean, string(c.ID)), "take back a container that did not start", c.ID)
	var start *monitor.StartError
	if !errors.As(err, &start) {
		e.setStarted(c, false)
		quiet(e.saveContainer(c), "record that a container did not start", c.ID)
		return engine.ContainerStatus{}, err
	}
	now := time.Now()
	e.mu.Lock()
	c.StartedAt = now
	e.mu.Unlock()
	e.noteExit(c, ending{Code: int32(start.ExitCode), Reason: engine.ReasonStartError, Message: start.Message, At: now}, true)
	e.mu.Lock()
	defer e.mu.Unlock()
	return c.status(), err
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
	close(c.done)
	e.mu.Unlock()
	if record {
		quiet(e.saveContainer(c), "record the end of a container", c.ID)
	}
	e.containerChanged(c)
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

// StopContainer implements engine.Containers.
func (e *Engine) StopContainer(ctx context.Context, id engine.ContainerID, grace time.Duration) error {
	if err := e.check(ctx); err != nil {
		return err
	}
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
		if err := client.Signal(ctx, string(id), sig); err != nil && !errdefs.IsUnavailable(err) {
			return fmt.Errorf("signal container %s: %w", id, err)
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
	if err := client.Kill(ctx, string(id)); err != nil && !errdefs.IsUnavailable(err) {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	return e.awaitExit(ctx, c)
}

func (e *Engine) awaitExit(ctx context.Context, c *container) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s was killed and has not ended: %w", c.ID, ctx.Err())
	}
}

// tidyLimit bounds what is cleaned up without a caller.
const tidyLimit = 30 * time.Second

// end kills the container if it runs and takes away what its process had: state, cgroup and mounts. The writable layer, the
// exit and the log stay.
func (e *Engine) end(ctx context.Context, c *container) error {
	if err := e.StopContainer(ctx, c.ID, 0); err != nil {
		return err
	}
	select {
	case c.tidy <- struct{}{}:
		defer func() { <-c.tidy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if client := e.monitorOf(c.Spec.Pod); client != nil {
		if err := client.Delete(ctx, string(c.ID)); err != nil && !errdefs.IsUnavailable(err) {
			return fmt.Errorf("delete container %s: %w", c.ID, err)
		}
	}
	// Where no monitor did it.
	if err := e.cgroups.Remove(ctx, c.Cgroup.Path); err != nil {
		return fmt.Errorf("remove the cgroup of container %s: %w", c.ID, err)
	}
	if err := removeTree(filepath.Join(e.stateRoot(), string(c.ID))); err != nil {
		return err
	}
	if c.Spec.Namespaces.PID == engine.NamespaceTarget {
		if err := e.pins.Unpin(c.Spec.Pod, string(c.ID)); err != nil {
			return err
		}
	}
	if err := e.roots.Unmount(ctx, c.ID); err != nil {
		return fmt.Errorf("unmount the root of container %s: %w", c.ID, err)
	}
	return nil
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
	if err := e.roots.Remove(ctx, id); err != nil {
		return fmt.Errorf("remove the writable layer of container %s: %w", id, err)
	}
	if err := failpoint.Hit("native.container.removing"); err != nil {
		return err
	}
	if err := errors.Join(removeTree(e.bundle(id)), removeFile(e.exitFile(id))); err != nil {
		return err
	}
	if err := removeFile(filepath.Join(e.containerRecords(), string(id))); err != nil {
		return fmt.Errorf("remove the record of container %s: %w", id, err)
	}
	e.mu.Lock()
	delete(e.containers, id)
	e.mu.Unlock()
	e.events.push(func(s engine.Sink) { s.ContainerRemoved(id) })
	return nil
}

// UpdateContainer implements engine.Containers. One that was not started yet is given the limits at its start.
func (e *Engine) UpdateContainer(ctx context.Context, id engine.ContainerID, r *engine.Resources) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	c, err := e.container(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	state, previous := c.status().State, c.Spec.Resources
	e.mu.Unlock()
	switch state {
	case engine.ContainerCreated:
		err = e.setLimits(c, r)
	case engine.ContainerRunning:
		err = e.changeLimits(ctx, c, r, &previous)
	default:
		err = fmt.Errorf("it is %s: %w", state, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("update the limits of container %s: %w", id, err)
	}
	e.mu.Lock()
	c.Spec.Resources = *r
	e.mu.Unlock()
	return e.saveContainer(c)
}

// setLimits is for a container without a process.
func (e *Engine) setLimits(c *container, r *engine.Resources) error {
	limits, err := spec.Resources(e.host, r, nil)
	if err != nil {
		return err
	}
	oci, err := e.readBundle(c.ID)
	if err != nil {
		return err
	}
	limits.Devices = oci.Linux.Resources.Devices
	oci.Linux.Resources = limits
	return e.writeBundle(c.ID, oci)
}

func (e *Engine) changeLimits(ctx context.Context, c *container, r, previous *engine.Resources) error {
	limits, err := spec.Resources(e.host, r, previous)
	if err != nil {
		return err
	}
	data, err := json.Marshal(limits)
	if err != nil {
		return err
	}
	_, client, err := e.running(c.ID)
	if err != nil {
		return err
	}
	return client.Update(ctx, string(c.ID), data)
}

// ReopenLog implements engine.Containers.
func (e *Engine) ReopenLog(ctx context.Context, id engine.ContainerID) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	_, client, err := e.running(id)
	if err != nil {
		return err
	}
	return client.ReopenLog(ctx, string(id))
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

// CheckpointContainer implements engine.Containers.
func (e *Engine) CheckpointContainer(ctx context.Context, id engine.ContainerID, _ string) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	return fmt.Errorf("checkpoint container %s: the native engine makes none yet: %w", id, errdefs.ErrNotImplemented)
}
