package native

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/hook"
	"crishim/engine/native/ns"
	"crishim/engine/native/rootfs"
	"crishim/engine/native/spec"
)

// told is what plugins know of a pod or a container.
type told struct {
	// announced, under the engine's mu: they have heard of it, or would if there were any.
	announced bool
	// stop and remove run once each; who comes second waits.
	stop, remove sync.Once
}

// startPlugins lets plugins in. What was found at the start they learn when they connect.
func (e *Engine) startPlugins() error {
	if e.opts.Plugins == nil {
		return nil
	}
	e.mu.Lock()
	for _, p := range e.pods {
		p.told.announced = true
		if p.Stopped {
			p.told.stop.Do(func() {})
		}
	}
	for _, c := range e.containers {
		c.told.announced = true
		if c.exit != nil {
			c.told.stop.Do(func() {})
		}
	}
	e.mu.Unlock()
	return e.opts.Plugins.Start(pluginRuntime{e})
}

// StopPlugins ends the plugins that run as our children and disconnects the others: nothing more is asked of the engine.
func (e *Engine) StopPlugins() {
	if e.opts.Plugins != nil {
		e.opts.Plugins.Stop()
	}
}

// block keeps plugins from connecting while something changes of which they are told.
func (e *Engine) block() (unblock func()) {
	if e.opts.Plugins == nil {
		return func() {}
	}
	return e.opts.Plugins.Block()
}

// endBlock bounds how long an end waits to be told while a plugin connects: that waits for starts and creations, which may hang. Tests
// shorten it.
var endBlock = 10 * time.Second

// blockForEnd is block for an end. A plugin that connects for longer may be told of the container or pod as there, and not of its end.
func (e *Engine) blockForEnd() (unblock func()) {
	blocked := make(chan func(), 1)
	go func() { blocked <- e.block() }()
	select {
	case unblock := <-blocked:
		return unblock
	case <-time.After(endBlock):
		go func() { (<-blocked)() }()
		return func() {}
	}
}

// describePod is the pod as plugins see it.
func (e *Engine) describePod(p *pod) *hook.Pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := &hook.Pod{PodStatus: p.status(), CgroupPath: p.Cgroup.Path}
	out.IPs = p.IPs
	for _, n := range []struct {
		kind ns.Kind
		oci  specs.LinuxNamespaceType
	}{
		{ns.Net, specs.NetworkNamespace}, {ns.IPC, specs.IPCNamespace}, {ns.UTS, specs.UTSNamespace},
		{ns.PID, specs.PIDNamespace}, {ns.User, specs.UserNamespace},
	} {
		if path := p.pins[n.kind]; path != "" {
			out.Namespaces = append(out.Namespaces, specs.LinuxNamespace{Type: n.oci, Path: path})
		}
	}
	return out
}

// describeContainer is the container as plugins see it; its bundle is read where oci is nil.
func (e *Engine) describeContainer(c *container, oci *specs.Spec) *hook.Container {
	if oci == nil {
		// After a reboot there is none, which is no reason to say nothing.
		oci, _ = e.readBundle(c.ID)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return &hook.Container{ContainerStatus: c.status(), OCI: oci}
}

// describeWithPod is both, for what a plugin is told of a container; nil without plugins, and of what they have not heard of.
func (e *Engine) describeWithPod(c *container) (*hook.Pod, *hook.Container) {
	if e.opts.Plugins == nil {
		return nil, nil
	}
	e.mu.Lock()
	p, announced := e.pods[c.Spec.Pod], c.told.announced
	e.mu.Unlock()
	if p == nil || !announced {
		return nil, nil
	}
	return e.describePod(p), e.describeContainer(c, nil)
}

// PodNetworked implements engine.Networked: plugins are asked about a pod once its networks are there.
func (e *Engine) PodNetworked(ctx context.Context, id engine.PodID, ips []string) error {
	if err := e.check(ctx); err != nil || e.opts.Plugins == nil {
		return err
	}
	p, err := e.pod(id)
	if err != nil {
		return err
	}
	defer e.block()()
	e.mu.Lock()
	// Who was asked before another said no is told of the end.
	p.IPs, p.told.announced = ips, true
	e.mu.Unlock()
	if err := e.savePod(p); err != nil {
		return err
	}
	return e.opts.Plugins.RunPod(ctx, e.describePod(p))
}

// askPodUpdate asks plugins about resources that CRI sets for a pod.
func (e *Engine) askPodUpdate(ctx context.Context, p *pod, overhead, resources *engine.Resources) error {
	if e.opts.Plugins == nil {
		return nil
	}
	return e.opts.Plugins.UpdatePod(ctx, e.describePod(p), overhead, resources)
}

func (e *Engine) tellPodUpdated(ctx context.Context, p *pod) {
	if e.opts.Plugins != nil {
		e.opts.Plugins.PodUpdated(context.WithoutCancel(ctx), e.describePod(p))
	}
}

// tellPodStopped comes when the pod's containers have ended and its namespaces are still there. Nothing that a plugin does
// keeps a pod from ending.
func (e *Engine) tellPodStopped(ctx context.Context, p *pod, containers []*container) {
	if e.opts.Plugins == nil {
		return
	}
	for _, c := range containers {
		e.tellStopped(c)
	}
	e.mu.Lock()
	announced := p.told.announced
	e.mu.Unlock()
	if announced {
		p.told.stop.Do(func() {
			defer e.blockForEnd()()
			e.opts.Plugins.StopPod(context.WithoutCancel(ctx), e.describePod(p))
		})
	}
}

// tellPodRemoved comes last; until unblock, which follows the removal of the record, no plugin connects.
func (e *Engine) tellPodRemoved(ctx context.Context, p *pod) (unblock func()) {
	e.tellPodStopped(ctx, p, nil)
	unblock = e.block()
	e.mu.Lock()
	announced := p.told.announced
	e.mu.Unlock()
	if e.opts.Plugins != nil && announced {
		p.told.remove.Do(func() { e.opts.Plugins.RemovePod(context.WithoutCancel(ctx), e.describePod(p)) })
	}
	return unblock
}

// adjust lets plugins edit the spec of a container that is being made.
func (e *Engine) adjust(ctx context.Context, p *pod, c *container, oci *specs.Spec) error {
	if e.opts.Plugins == nil {
		return nil
	}
	label := oci.Linux.MountLabel
	h := &hook.Host{
		InjectCDI:      e.cdi.Inject,
		CheckResources: func(r *specs.LinuxResources) error { return spec.CheckOverlay(e.host, r) },
		Relabel: func(path string) error {
			return rootfs.PrepareSources([]engine.Mount{{HostPath: path, SELinuxRelabel: true}}, label)
		},
	}
	defer e.block()()
	e.mu.Lock()
	c.told.announced = true
	e.mu.Unlock()
	described := e.describeContainer(c, oci)
	limits, err := e.opts.Plugins.CreateContainer(ctx, e.describePod(p), described, h)
	if err != nil {
		return err
	}
	oci.Linux.Resources = spec.Overlay(oci.Linux.Resources, limits)
	e.mu.Lock()
	c.PluginLimits = limits
	e.mu.Unlock()
	return nil
}

func (e *Engine) tellCreated(ctx context.Context, c *container) {
	if p, described := e.describeWithPod(c); described != nil {
		e.opts.Plugins.ContainerCreated(context.WithoutCancel(ctx), p, described)
	}
}

// askStart asks plugins about a start.
func (e *Engine) askStart(ctx context.Context, c *container) error {
	if p, described := e.describeWithPod(c); described != nil {
		return e.opts.Plugins.StartContainer(ctx, p, described)
	}
	return nil
}

func (e *Engine) tellStarted(ctx context.Context, c *container) {
	if p, described := e.describeWithPod(c); described != nil {
		e.opts.Plugins.ContainerStarted(context.WithoutCancel(ctx), p, described)
	}
}

// askUpdate asks plugins about limits that CRI sets, and returns what they set instead.
func (e *Engine) askUpdate(ctx context.Context, c *container, r *engine.Resources) (*specs.LinuxResources, error) {
	p, described := e.describeWithPod(c)
	if described == nil {
		return nil, nil
	}
	asked, err := spec.Resources(e.host, r, nil)
	if err != nil {
		return nil, err
	}
	limits, err := e.opts.Plugins.UpdateContainer(ctx, p, described, asked)
	if err != nil || limits == nil {
		return nil, err
	}
	return limits, spec.CheckOverlay(e.host, limits)
}

func (e *Engine) tellUpdated(ctx context.Context, c *container) {
	if p, described := e.describeWithPod(c); described != nil {
		e.opts.Plugins.ContainerUpdated(context.WithoutCancel(ctx), p, described)
	}
}

// tellStopped tells the end of a container that has ended, once, and returns when it is told.
func (e *Engine) tellStopped(c *container) {
	if e.opts.Plugins == nil {
		return
	}
	select {
	case <-c.done:
	default:
		return
	}
	c.told.stop.Do(func() {
		defer e.blockForEnd()()
		if p, described := e.describeWithPod(c); described != nil {
			e.opts.Plugins.StopContainer(context.Background(), p, described)
		}
	})
}

// tellStoppedLater is for an end that nobody waits for.
func (e *Engine) tellStoppedLater(c *container) {
	if e.opts.Plugins != nil {
		e.inBackground(func(context.Context) { e.tellStopped(c) })
	}
}

// tellRemoved is as tellPodRemoved; described was made before the bundle was removed.
func (e *Engine) tellRemoved(ctx context.Context, c *container, p *hook.Pod, described *hook.Container) (unblock func()) {
	e.tellStopped(c)
	unblock = e.block()
	if described != nil {
		c.told.remove.Do(func() { e.opts.Plugins.RemoveContainer(context.WithoutCancel(ctx), p, described) })
	}
	return unblock
}

// pluginRuntime is what plugins may ask of the engine.
type pluginRuntime struct{ e *Engine }

// State implements hook.Runtime.
func (r pluginRuntime) State() ([]*hook.Pod, []*hook.Container) {
	e := r.e
	e.mu.Lock()
	var pods []*pod
	var containers []*container
	for _, p := range e.pods {
		if p.told.announced {
			pods = append(pods, p)
		}
	}
	for _, c := range e.containers {
		if c.told.announced {
			containers = append(containers, c)
		}
	}
	e.mu.Unlock()
	var allPods []*hook.Pod
	var allContainers []*hook.Container
	for _, p := range pods {
		allPods = append(allPods, e.describePod(p))
	}
	for _, c := range containers {
		allContainers = append(allContainers, e.describeContainer(c, nil))
	}
	return allPods, allContainers
}

// UpdateLimits implements hook.Runtime.
func (r pluginRuntime) UpdateLimits(ctx context.Context, id engine.ContainerID, limits *specs.LinuxResources) error {
	c, err := r.e.container(id)
	if err != nil {
		return err
	}
	if err := spec.CheckOverlay(r.e.host, limits); err != nil {
		return fmt.Errorf("limits that a plugin sets: %w", err)
	}
	return r.e.update(ctx, c, nil, limits)
}

// errCleared is for limits of a container whose bundle was removed meanwhile.
var errCleared = fmt.Errorf("it is being removed: %w", errdefs.ErrNotFound)
