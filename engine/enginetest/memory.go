// Package enginetest owns two things for tests: Memory, a working engine.Engine that keeps everything in memory and runs
// fake processes, and Run, the suite of promises that every engine keeps.
//
// A test of a caller makes a Memory, hands its Watch a sink, drives it through the engine interface, and injects what
// goes wrong on real hosts: FailOnce, Delay, Block, SetHealth, Forget, Gap, Exit, KillPod. A test of an engine calls
// Run with a function that makes a Fixture.
package enginetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
)

// Options configure a Memory; the zero value is a usable engine without images.
type Options struct {
	// Name is the engine's, "memory" when empty.
	Name string
	// Info is answered while the engine is healthy. No Handlers means the default one alone.
	Info engine.Info
	// Images are in the store from the start, Registry is what PullImage finds. NewImage makes them.
	Images, Registry []engine.Image
	// ManifestIDs has the store take the digests of manifests for ids, as some do; others take those of configs.
	ManifestIDs bool
	// NetNSDir is where pods get a file as their pinned network namespace. Without it the paths lead nowhere.
	NetNSDir string
}

// Memory is an engine in memory. Processes are fake, see commands; their PID is 0. Close it when done.
type Memory struct {
	opts      Options
	processes sync.WaitGroup

	mu         sync.Mutex
	health     engine.Health
	pods       map[engine.PodID]*memoryPod
	containers map[engine.ContainerID]*memoryContainer
	images     map[engine.ImageID]engine.Image
	pulls      []engine.PullSpec
	faults     map[string]*fault
	calls      map[string]int
	watch      *watch // nil while nobody watches
	gap        bool   // events are dropped
	damage     bool   // the next export is damaged
}

var _ engine.Engine = (*Memory)(nil)

// NewMemory makes an engine that is healthy from the start.
func NewMemory(opts Options) *Memory {
	if opts.Name == "" {
		opts.Name = "memory"
	}
	if opts.Info.Handlers == nil {
		f := opts.Info.Features
		opts.Info.Handlers = map[string]engine.HandlerFeatures{"": {RecursiveReadonlyMounts: f.RecursiveReadonlyMounts, UserNamespaces: f.UserNamespaces}}
	}
	if opts.Info.CgroupDriver == "" {
		opts.Info.CgroupDriver = engine.CgroupfsDriver
	}
	m := &Memory{
		opts:       opts,
		health:     engine.Health{Ready: true},
		pods:       map[engine.PodID]*memoryPod{},
		containers: map[engine.ContainerID]*memoryContainer{},
		images:     map[engine.ImageID]engine.Image{},
		faults:     map[string]*fault{},
		calls:      map[string]int{},
	}
	for _, image := range opts.Images {
		m.images[image.ID] = image
	}
	return m
}

// Close kills every process and waits until all have ended.
func (m *Memory) Close() {
	m.mu.Lock()
	for _, c := range m.containers {
		if c.proc != nil {
			c.proc.kill()
		}
	}
	m.mu.Unlock()
	m.processes.Wait()
}

// Name implements engine.Engine.
func (m *Memory) Name() string { return m.opts.Name }

// Info implements engine.Engine.
func (m *Memory) Info() engine.Info { return m.opts.Info }

// Watch implements engine.Engine. One Watch at a time.
func (m *Memory) Watch(ctx context.Context, sink engine.Sink) error {
	w := &watch{more: make(chan struct{}, 1)}
	m.mu.Lock()
	if m.watch != nil {
		m.mu.Unlock()
		return fmt.Errorf("watch: somebody watches already: %w", errdefs.ErrFailedPrecondition)
	}
	m.watch = w
	health := m.health
	w.push(func(s engine.Sink) { s.Health(health) })
	if health.Ready {
		m.resync()
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.watch = nil
		m.mu.Unlock()
	}()
	for {
		for deliver := range w.pop {
			deliver(sink)
		}
		select {
		case <-w.more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch is a queue of what a sink has to be told.
type watch struct {
	mu    sync.Mutex
	queue []func(engine.Sink)
	more  chan struct{}
}

func (w *watch) push(deliver func(engine.Sink)) {
	w.mu.Lock()
	w.queue = append(w.queue, deliver)
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// pop yields until the queue is empty.
func (w *watch) pop(yield func(func(engine.Sink)) bool) {
	for {
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.mu.Unlock()
			return
		}
		next := w.queue[0]
		w.queue = w.queue[1:]
		w.mu.Unlock()
		if !yield(next) {
			return
		}
	}
}

// tell requires mu.
func (m *Memory) tell(deliver func(engine.Sink)) {
	if m.watch != nil && !m.gap && m.health.Ready {
		m.watch.push(deliver)
	}
}

// resync requires mu. The snapshot is taken when everything that was told before has been delivered: an older status that came
// after it would be newer than it.
func (m *Memory) resync() { m.tell(func(s engine.Sink) { s.Resync(m.snapshot()) }) }

func (m *Memory) snapshot() engine.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	snap := engine.Snapshot{Taken: time.Now()}
	for _, p := range m.pods {
		snap.Pods = append(snap.Pods, p.status())
	}
	for _, c := range m.containers {
		snap.Containers = append(snap.Containers, c.status())
	}
	return snap
}

func (m *Memory) tellPod(p *memoryPod) {
	st := p.status()
	m.tell(func(s engine.Sink) { s.PodChanged(st) })
}

func (m *Memory) tellContainer(c *memoryContainer) {
	st := c.status()
	m.tell(func(s engine.Sink) { s.ContainerChanged(st) })
}

// memoryPod is guarded by Memory.mu.
type memoryPod struct {
	id       engine.PodID
	spec     engine.PodSpec
	created  time.Time
	started  time.Time
	running  bool
	netns    string
	overhead *engine.Resources
	limits   *engine.Resources
}

func (p *memoryPod) status() engine.PodStatus {
	spec := p.spec
	st := engine.PodStatus{ID: p.id, Key: p.spec.Key, State: engine.PodNotReady, CreatedAt: p.created, StartedAt: p.started, NetNSPath: p.netns, Spec: &spec}
	if p.running {
		st.State = engine.PodReady
	}
	return st
}

// CreatePod implements engine.Pods.
func (m *Memory) CreatePod(ctx context.Context, spec *engine.PodSpec) (engine.PodID, error) {
	done, err := m.begin(ctx, "CreatePod")
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		if p.spec.Key == spec.Key {
			m.dropPod(p)
		}
	}
	p := &memoryPod{id: engine.PodID(newID()), spec: *spec, created: time.Now()}
	m.pods[p.id] = p
	m.tellPod(p)
	return p.id, done()
}

// StartPod implements engine.Pods.
func (m *Memory) StartPod(ctx context.Context, id engine.PodID, _ *engine.PodSpec) (engine.PodStatus, error) {
	done, err := m.begin(ctx, "StartPod")
	if err != nil {
		return engine.PodStatus{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pods[id]
	if p == nil {
		return engine.PodStatus{}, notFound("pod", string(id))
	}
	if !p.started.IsZero() {
		return engine.PodStatus{}, fmt.Errorf("start pod %s: it was started before: %w", id, errdefs.ErrFailedPrecondition)
	}
	if p.spec.Namespaces.Network != engine.NamespaceNode {
		if p.netns, err = m.pinNetNS(id); err != nil {
			return engine.PodStatus{}, err
		}
	}
	p.started, p.running = time.Now(), true
	m.tellPod(p)
	return p.status(), done()
}

func (m *Memory) pinNetNS(id engine.PodID) (string, error) {
	if m.opts.NetNSDir == "" {
		return "/nonexistent/netns/" + string(id), nil
	}
	path := filepath.Join(m.opts.NetNSDir, string(id))
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", fmt.Errorf("pin the network namespace: %w", err)
	}
	return path, nil
}

// StopPod implements engine.Pods.
func (m *Memory) StopPod(ctx context.Context, id engine.PodID) error {
	done, err := m.begin(ctx, "StopPod")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[id]; p != nil && p.running {
		p.running = false
		m.tellPod(p)
	}
	return done()
}

// ReleaseNetNS implements engine.Pods.
func (m *Memory) ReleaseNetNS(ctx context.Context, id engine.PodID) error {
	done, err := m.begin(ctx, "ReleaseNetNS")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[id]; p != nil && p.netns != "" {
		m.unpinNetNS(p)
		m.tellPod(p)
	}
	return done()
}

// unpinNetNS requires mu.
func (m *Memory) unpinNetNS(p *memoryPod) {
	if m.opts.NetNSDir != "" && p.netns != "" {
		_ = os.Remove(p.netns)
	}
	p.netns = ""
}

// RemovePod implements engine.Pods.
func (m *Memory) RemovePod(ctx context.Context, id engine.PodID) error {
	done, err := m.begin(ctx, "RemovePod")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[id]; p != nil {
		m.dropPod(p)
	}
	return done()
}

// dropPod requires mu.
func (m *Memory) dropPod(p *memoryPod) {
	m.unpinNetNS(p)
	delete(m.pods, p.id)
	m.tell(func(s engine.Sink) { s.PodRemoved(p.id) })
}

// UpdatePod implements engine.Pods.
func (m *Memory) UpdatePod(ctx context.Context, id engine.PodID, overhead, resources *engine.Resources) error {
	done, err := m.begin(ctx, "UpdatePod")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pods[id]
	if p == nil {
		return notFound("pod", string(id))
	}
	p.overhead, p.limits = overhead, resources
	return done()
}

// PodStatus implements engine.Pods.
func (m *Memory) PodStatus(ctx context.Context, id engine.PodID) (engine.PodStatus, error) {
	done, err := m.begin(ctx, "PodStatus")
	if err != nil {
		return engine.PodStatus{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pods[id]
	if p == nil {
		return engine.PodStatus{}, notFound("pod", string(id))
	}
	return p.status(), done()
}

// PodIDs and ContainerIDs are what the engine holds, to look for leaks.
func (m *Memory) PodIDs() []engine.PodID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.pods))
}

// ContainerIDs is PodIDs for containers.
func (m *Memory) ContainerIDs() []engine.ContainerID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.containers))
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func notFound(kind, id string) error {
	return fmt.Errorf("%s %s: %w", kind, id, errdefs.ErrNotFound)
}
