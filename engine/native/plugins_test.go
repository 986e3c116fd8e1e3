package native

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"crishim/engine"
	"crishim/nri"
)

// plugin is an NRI plugin over the real stub: it keeps what it is told, and does what a test has it do.
type plugin struct {
	stub stub.Stub

	mu         sync.Mutex
	events     []string // "StartContainer NAME"
	pods       []*api.PodSandbox
	containers []*api.Container
	last       map[string]*api.Container // by event
	ips        []string

	synced   chan struct{}
	onSync   func() []*api.ContainerUpdate
	onRun    func() error
	onCreate func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	onStart  func() error
	onUpdate func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
	onStop   func() error
}

func (p *plugin) note(event string, c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c != nil {
		p.last[event] = c
		event += " " + c.Name
	}
	p.events = append(p.events, event)
}

// told are the events so far.
func (p *plugin) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	p.pods, p.containers = pods, containers
	p.mu.Unlock()
	defer close(p.synced)
	if p.onSync != nil {
		return p.onSync(), nil
	}
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("RunPodSandbox", nil)
	p.mu.Lock()
	p.ips = pod.Ips
	p.mu.Unlock()
	if p.onRun != nil {
		return p.onRun()
	}
	return nil
}

func (p *plugin) UpdatePodSandbox(context.Context, *api.PodSandbox, *api.LinuxResources, *api.LinuxResources) error {
	p.note("UpdatePodSandbox", nil)
	return nil
}

func (p *plugin) PostUpdatePodSandbox(context.Context, *api.PodSandbox) error {
	p.note("PostUpdatePodSandbox", nil)
	return nil
}

func (p *plugin) StopPodSandbox(context.Context, *api.PodSandbox) error {
	p.note("StopPodSandbox", nil)
	if p.onStop != nil {
		return p.onStop()
	}
	return nil
}

func (p *plugin) RemovePodSandbox(context.Context, *api.PodSandbox) error {
	p.note("RemovePodSandbox", nil)
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("CreateContainer", c)
	if p.onCreate != nil {
		return p.onCreate(c)
	}
	return nil, nil, nil
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostCreateContainer", c)
	return nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("StartContainer", c)
	if p.onStart != nil {
		return p.onStart()
	}
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostStartContainer", c)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("UpdateContainer", c)
	if p.onUpdate != nil {
		return p.onUpdate(c, r), nil
	}
	return nil, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostUpdateContainer", c)
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("StopContainer", c)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("RemoveContainer", c)
	return nil
}

// patient is a request's time-out that no test waits for.
const patient = 20 * time.Second

// pluggable is an engine that plugins can connect to.
func pluggable(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.die(t)
	b.plugIn(t, patient)
	b.back(t)
	return b
}

func (b *bench) socket() string { return filepath.Join(b.dir, "nri.sock") }

func (b *bench) plugIn(t *testing.T, timeout time.Duration) {
	t.Helper()
	plugins, err := nri.New(nri.Options{
		RuntimeName: "crishim", Version: "test", SocketPath: b.socket(), PluginPath: filepath.Join(b.dir, "none"), PluginConfigPath: filepath.Join(b.dir, "none"),
		RegistrationTimeout: 20 * time.Second, RequestTimeout: timeout,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.opts.Plugins = plugins
}

// connect returns once the plugin is told what happens.
func (b *bench) connect(t *testing.T, name, index string, p *plugin) *plugin {
	t.Helper()
	p.synced, p.last = make(chan struct{}), map[string]*api.Container{}
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName(name), stub.WithPluginIdx(index), stub.WithSocketPath(b.socket()), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.stub.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stub.Stop)
	select {
	case <-p.synced:
	case <-time.After(20 * time.Second):
		t.Fatal("the plugin was not synchronized")
	}
	// The adaptation takes it in after its answer, and lets nothing happen in between.
	b.block()()
	return p
}

func (b *bench) limits(t *testing.T, id engine.ContainerID) engine.Resources {
	t.Helper()
	return limitsInEffect(t, b.host.CgroupV2, b.status(t, id).CgroupPath)
}

func (b *bench) network(t *testing.T, id engine.PodID) {
	t.Helper()
	if err := b.PodNetworked(t.Context(), id, []string{"10.1.2.3"}); err != nil {
		t.Fatal(err)
	}
}

func TestAPluginIsToldTheLifeOfAPodInOrder(t *testing.T) {
	b := pluggable(t)
	p := b.connect(t, "order", "10", &plugin{})
	pod, s := b.runPod(t)
	b.network(t, pod)
	if err := b.UpdatePod(t.Context(), pod, &engine.Resources{}, &engine.Resources{CPUShares: 100}); err != nil {
		t.Fatal(err)
	}
	long := b.run(t, pod, s, "long", "sleep 1000")
	if err := b.UpdateContainer(t.Context(), long, &engine.Resources{CPUShares: 200}); err != nil {
		t.Fatal(err)
	}
	if err := b.StopContainer(t.Context(), long, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.RemoveContainer(t.Context(), long); err != nil {
		t.Fatal(err)
	}
	b.removePod(t, pod)
	want := []string{
		"RunPodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox", "CreateContainer long", "PostCreateContainer long",
		"StartContainer long", "PostStartContainer long", "UpdateContainer long", "PostUpdateContainer long", "StopContainer long",
		"RemoveContainer long", "StopPodSandbox", "RemovePodSandbox",
	}
	if got := p.told(); !slices.Equal(got, want) {
		t.Errorf("told %q", got)
	}
	if !slices.Equal(p.ips, []string{"10.1.2.3"}) {
		t.Errorf("IPs %q", p.ips)
	}
	if c := p.last["PostStartContainer"]; c.Pid == 0 || c.State != api.ContainerState_CONTAINER_RUNNING || !slices.Equal(c.Args, []string{"sh", "-c", "sleep 1000"}) {
		t.Errorf("after its start: %v", c)
	}
	if c := p.last["RemoveContainer"]; c.State != api.ContainerState_CONTAINER_STOPPED || c.ExitCode != 137 || len(c.Mounts) == 0 {
		t.Errorf("at its removal: %v", c)
	}
}

func TestAPluginLearnsOfAnEndThatNobodyAskedFor(t *testing.T) {
	b := pluggable(t)
	p := b.connect(t, "end", "10", &plugin{})
	pod, s := b.runPod(t)
	b.network(t, pod)
	b.run(t, pod, s, "fails", "exit 3")
	eventually(t, 20*time.Second, "the plugin hears of the end", func() bool { return slices.Contains(p.told(), "StopContainer fails") })
	p.mu.Lock()
	if c := p.last["StopContainer"]; c.ExitCode != 3 || c.StatusReason != engine.ReasonError {
		t.Errorf("at its end: %v", c)
	}
	p.mu.Unlock()
	// Whatever else ends the container and the pod, it is told once.
	b.removePod(t, pod)
	if got := strings.Join(p.told(), ", "); strings.Count(got, "StopContainer") != 1 || !strings.HasSuffix(got, "StopPodSandbox, RemoveContainer fails, RemovePodSandbox") {
		t.Errorf("told %s", got)
	}
}

// Else it would take the pod, which it was told of as there, for one that runs on.
func TestAPluginIsToldOfAnEndWhileItConnects(t *testing.T) {
	b := pluggable(t)
	pod, s := b.runPod(t)
	b.network(t, pod)
	id := b.run(t, pod, s, "ends", "sleep 1000")
	ended := make(chan struct{})
	p := b.connect(t, "late", "10", &plugin{onSync: func() []*api.ContainerUpdate {
		go func() {
			defer close(ended)
			quiet(b.StopContainer(context.Background(), id, 0), "stop a container", id)
			quiet(b.StopPod(context.Background(), pod), "stop a pod", pod)
		}()
		select { // the stop comes to its end here, unless it waits for the plugin
		case <-ended:
		case <-time.After(time.Second):
		}
		return nil
	}})
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the stop does not end")
	}
	if want := []string{"StopContainer ends", "StopPodSandbox"}; !slices.Equal(p.told(), want) {
		t.Errorf("told %q, want %q", p.told(), want)
	}
	b.removePod(t, pod)
}

// A plugin that connects while something hangs, or hangs itself, holds up no end.
func TestNoEndWaitsForAPluginThatDoesNotConnect(t *testing.T) {
	defer func(was time.Duration) { endBlock = was }(endBlock)
	endBlock = 100 * time.Millisecond
	b := pluggable(t)
	pod, s := b.runPod(t)
	b.network(t, pod)
	id := b.run(t, pod, s, "ends", "sleep 1000")
	b.connect(t, "hangs", "10", &plugin{onSync: func() []*api.ContainerUpdate {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			quiet(b.StopContainer(context.Background(), id, 0), "stop a container", id)
			quiet(b.StopPod(context.Background(), pod), "stop a pod", pod)
		}()
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			t.Error("the stop waits for the plugin")
		}
		return nil
	}})
	b.removePod(t, pod)
}

func TestPluginsAdjustAContainer(t *testing.T) {
	b := pluggable(t)
	source := t.TempDir()
	b.connect(t, "adjust", "10", &plugin{onCreate: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("FROM_PLUGIN", "yes")
		a.AddMount(&api.Mount{Source: source, Destination: "/tmp/plugin", Type: "bind", Options: []string{"rbind", "ro"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/plugin", Type: "c", Major: 1, Minor: 3, FileMode: api.FileMode(os.FileMode(0o666))})
		a.AddRlimit("RLIMIT_CORE", 0, 0)
		a.SetLinuxCPUShares(512)
		return a, nil, nil
	}})
	pod, s := b.runPod(t)
	b.network(t, pod)
	id := b.run(t, pod, s, "adjusted", "echo $FROM_PLUGIN; sleep 1000")
	out := b.sh(t, id, "grep -c ' /tmp/plugin ' /proc/mounts; echo x >/dev/plugin && echo written; ulimit -c")
	if !slices.Equal(strings.Fields(out), []string{"1", "written", "0"}) {
		t.Errorf("in the container: %q", out)
	}
	eventually(t, 10*time.Second, "the variable is there", func() bool {
		return slices.Equal(lines(t, filepath.Join(s.LogDirectory, "adjusted.log")), []string{"yes"})
	})
	shares := func() int64 { return b.limits(t, id).CPUShares }
	if got := shares(); got != 512 {
		t.Errorf("cpu.shares %d", got)
	}
	// What CRI does not change keeps the plugin's value, what it changes does not.
	if err := b.UpdateContainer(t.Context(), id, &engine.Resources{MemoryLimit: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if got := shares(); got != 512 {
		t.Errorf("cpu.shares %d after an update of memory", got)
	}
	if err := b.UpdateContainer(t.Context(), id, &engine.Resources{MemoryLimit: 64 << 20, CPUShares: 16384}); err != nil {
		t.Fatal(err)
	}
	if got := shares(); got != 16384 {
		t.Errorf("cpu.shares %d after an update of them", got)
	}
	b.removePod(t, pod)
}

func TestPluginsUpdateContainers(t *testing.T) {
	b := pluggable(t)
	var first engine.ContainerID
	shares := func(id engine.ContainerID) int64 {
		return b.limits(t, id).CPUShares
	}
	update := func(id engine.ContainerID, shares uint64) []*api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(string(id))
		u.SetLinuxCPUShares(shares)
		return []*api.ContainerUpdate{u}
	}
	pod, s := b.runPod(t)
	b.network(t, pod)
	first = b.run(t, pod, s, "first", "sleep 1000")

	// At its connection, of what was there before it.
	p := b.connect(t, "update", "10", &plugin{
		onSync: func() []*api.ContainerUpdate { return update(first, 128) },
		onCreate: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			return nil, update(first, 256), nil
		},
		onUpdate: func(c *api.Container, _ *api.LinuxResources) []*api.ContainerUpdate {
			return slices.Concat(update(engine.ContainerID(c.Id), 2048), update(first, 4096))
		},
	})
	if len(p.pods) != 1 || len(p.containers) != 1 || p.containers[0].Id != string(first) || p.pods[0].Ips[0] != "10.1.2.3" {
		t.Errorf("synchronized with %v, %v", p.pods, p.containers)
	}
	if got := shares(first); got != 128 {
		t.Errorf("after the connection: %d", got)
	}
	// With the creation of another.
	second := b.run(t, pod, s, "second", "sleep 1000")
	if got := shares(first); got != 256 {
		t.Errorf("after a creation: %d", got)
	}
	// Unasked.
	if failed, err := p.stub.UpdateContainers(update(first, 512)); err != nil || len(failed) != 0 || shares(first) != 512 {
		t.Errorf("unasked: %v, %v, %d", failed, err, shares(first))
	}
	if failed, _ := p.stub.UpdateContainers(update("absent", 2)); len(failed) != 1 {
		t.Errorf("of an absent container: %v", failed)
	}
	// In place of what CRI asked for.
	if err := b.UpdateContainer(t.Context(), second, &engine.Resources{CPUShares: 8192}); err != nil {
		t.Fatal(err)
	}
	if shares(second) != 2048 || shares(first) != 4096 {
		t.Errorf("instead of 8192: %d, and the other %d", shares(second), shares(first))
	}
	b.removePod(t, pod)
}

// Of an update that is refused the limits that a plugin had set with it, where there were none, are lifted again.
func TestAPluginsLimitsGoWithARefusedUpdate(t *testing.T) {
	b := pluggable(t)
	pod, s := b.runPod(t)
	b.network(t, pod)
	id := b.run(t, pod, s, "c", "sleep 1000")
	want, wantCPUs := b.limits(t, id), b.cpus(t, id)
	b.connect(t, "wrong", "10", &plugin{onUpdate: func(c *api.Container, _ *api.LinuxResources) []*api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(c.Id)
		u.SetLinuxMemoryLimit(64 << 20)
		u.SetLinuxCPUShares(2048)
		u.SetLinuxCPUSetCPUs("0")
		u.SetLinuxCPUQuota(1 << 60)
		u.SetLinuxCPUPeriod(20_000)
		return []*api.ContainerUpdate{u}
	}})
	if err := b.UpdateContainer(t.Context(), id, &engine.Resources{}); err == nil {
		t.Fatal("a quota of 36000 years was accepted")
	}
	if got, cpus := b.limits(t, id), b.cpus(t, id); !reflect.DeepEqual(got, want) || cpus != wantCPUs {
		t.Errorf("limits %+v, CPUs %s; want %+v, %s", got, cpus, want, wantCPUs)
	}
	b.removePod(t, pod)
}

func TestAPluginForbids(t *testing.T) {
	b := pluggable(t)
	no := errors.New("not today")
	var refuse sync.Map
	refused := func(what string) error {
		if _, ok := refuse.Load(what); ok {
			return no
		}
		return nil
	}
	p := b.connect(t, "no", "10", &plugin{
		onRun:   func() error { return refused("run") },
		onStart: func() error { return refused("start") },
		onStop:  func() error { return no }, // which no pod minds
		onCreate: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			return nil, nil, refused("create")
		},
	})
	refuse.Store("run", true)
	bad, _ := b.runPod(t)
	if err := b.PodNetworked(t.Context(), bad, nil); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("run: %v", err)
	}
	b.removePod(t, bad)
	if got := p.told(); !slices.Equal(got, []string{"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"}) {
		t.Errorf("told %q", got)
	}
	pod, s := b.runPod(t)
	refuse.Delete("run")
	b.network(t, pod)
	refuse.Store("create", true)
	spec := b.containerSpec(t, pod, s, "c", "sleep 1000")
	if _, err := b.CreateContainer(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("create: %v", err)
	}
	if left := b.snapshot().Containers; len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	refuse.Delete("create")
	refuse.Store("start", true)
	st, err := b.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.StartContainer(t.Context(), st.ID, spec); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("start: %v", err)
	}
	refuse.Delete("start")
	if _, err := b.StartContainer(t.Context(), st.ID, spec); err != nil {
		t.Errorf("start again: %v", err)
	}
	b.removePod(t, pod)
}

func TestAPluginThatConnectsMeanwhileMissesNothing(t *testing.T) {
	b := pluggable(t)
	pod, s := b.runPod(t)
	b.network(t, pod)
	var all sync.WaitGroup
	ids := make([]engine.ContainerID, 6)
	started := make(chan struct{}, len(ids))
	for i := range ids {
		all.Go(func() {
			started <- struct{}{}
			ids[i] = b.run(t, pod, s, string(rune('a'+i)), "sleep 1000")
		})
	}
	<-started
	p := b.connect(t, "late", "10", &plugin{})
	all.Wait()
	p.mu.Lock()
	known := map[string]int{}
	for _, c := range p.containers {
		known[c.Name]++
	}
	for _, e := range p.events {
		if name, ok := strings.CutPrefix(e, "CreateContainer "); ok {
			known[name]++
		}
	}
	p.mu.Unlock()
	for i := range ids {
		if name := string(rune('a' + i)); known[name] != 1 {
			t.Errorf("container %s was told %d times", name, known[name])
		}
	}
	b.removePod(t, pod)
}

func TestPluginsLearnAfterARestartWhatThereIs(t *testing.T) {
	b := pluggable(t)
	b.connect(t, "before", "10", &plugin{onCreate: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.SetLinuxCPUShares(512)
		return a, nil, nil
	}})
	pod, s := b.runPod(t)
	b.network(t, pod)
	id := b.run(t, pod, s, "c", "sleep 1000")
	b.die(t)
	b.plugIn(t, patient)
	b.back(t)
	p := b.connect(t, "after", "10", &plugin{})
	if len(p.pods) != 1 || !slices.Equal(p.pods[0].Ips, []string{"10.1.2.3"}) || len(p.containers) != 1 || p.containers[0].State != api.ContainerState_CONTAINER_RUNNING {
		t.Errorf("synchronized with %v, %v", p.pods, p.containers)
	}
	// The limit of a plugin that is gone stays.
	if err := b.UpdateContainer(t.Context(), id, &engine.Resources{MemoryLimit: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if got := b.limits(t, id).CPUShares; got != 512 {
		t.Errorf("cpu.shares %d", got)
	}
	b.removePod(t, pod)
	if got := p.told(); !slices.Equal(got, []string{"UpdateContainer c", "PostUpdateContainer c", "StopContainer c", "StopPodSandbox", "RemoveContainer c", "RemovePodSandbox"}) {
		t.Errorf("told %q", got)
	}
}

func TestAPluginThatHangsKeepsNoPodFromEnding(t *testing.T) {
	b := newBench(t)
	b.die(t)
	b.plugIn(t, 300*time.Millisecond)
	b.back(t)
	p := b.connect(t, "hangs", "10", &plugin{onStop: func() error { <-t.Context().Done(); return nil }})
	pod, s := b.runPod(t)
	b.network(t, pod)
	b.run(t, pod, s, "c", "sleep 1000")
	b.removePod(t, pod)
	// It was disconnected for it.
	if got := p.told(); !slices.Equal(got[len(got)-2:], []string{"StopContainer c", "StopPodSandbox"}) {
		t.Errorf("told %q", got)
	}
}

func TestLimitsOfAContainerThatDoesNotRunYet(t *testing.T) {
	b := pluggable(t)
	p := b.connect(t, "early", "10", &plugin{})
	pod, s := b.runPod(t)
	b.network(t, pod)
	spec := b.containerSpec(t, pod, s, "c", "sleep 1000")
	st, err := b.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	u := &api.ContainerUpdate{}
	u.SetContainerId(string(st.ID))
	u.SetLinuxCPUShares(512)
	if failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{u}); err != nil || len(failed) != 0 {
		t.Errorf("%v, %v", failed, err)
	}
	if err := b.UpdateContainer(t.Context(), st.ID, &engine.Resources{MemoryLimit: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.StartContainer(t.Context(), st.ID, spec); err != nil {
		t.Fatal(err)
	}
	if r := b.limits(t, st.ID); r.CPUShares != 512 || r.MemoryLimit != 64<<20 {
		t.Errorf("it runs with %+v", r)
	}
	// Of one that has ended there are none.
	if err := b.StopContainer(t.Context(), st.ID, 0); err != nil {
		t.Fatal(err)
	}
	if failed, _ := p.stub.UpdateContainers([]*api.ContainerUpdate{u}); len(failed) != 1 {
		t.Errorf("of an ended container: %v", failed)
	}
	b.removePod(t, pod)
}

// The kubelet sets CPUs between CreateContainer and StartContainer: what it does not change keeps the plugin's value then, too.
func TestAnUpdateBeforeTheStartKeepsAPluginsOOMScore(t *testing.T) {
	b := pluggable(t)
	b.connect(t, "oom", "10", &plugin{onCreate: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a, score := &api.ContainerAdjustment{}, 700
		a.SetLinuxOomScoreAdj(&score)
		return a, nil, nil
	}})
	pod, s := b.runPod(t)
	b.network(t, pod)
	for name, test := range map[string]struct {
		asked int64
		want  string
	}{"unchanged": {0, "700"}, "changed": {600, "600"}} {
		spec := b.containerSpec(t, pod, s, name, "sleep 1000")
		st, err := b.CreateContainer(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.UpdateContainer(t.Context(), st.ID, &engine.Resources{CPUShares: 512, OOMScoreAdj: test.asked}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.StartContainer(t.Context(), st.ID, spec); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(b.sh(t, st.ID, "cat /proc/1/oom_score_adj")); got != test.want {
			t.Errorf("%s: oom_score_adj %s, want %s", name, got, test.want)
		}
	}
	b.removePod(t, pod)
}
