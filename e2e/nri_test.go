package e2e

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"crishim/e2e/harness"
)

// observer is an NRI plugin that notes what it is told, and gives each container a variable.
type observer struct {
	mu     sync.Mutex
	synced chan struct{}
	told   []string
	known  []string // containers that were there when it connected
}

func (o *observer) note(what, id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = append(o.told, what+" "+id)
}

func (o *observer) Synchronize(_ context.Context, _ []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, c := range containers {
		o.known = append(o.known, c.GetId())
	}
	close(o.synced)
	return nil, nil
}

func (o *observer) RunPodSandbox(_ context.Context, p *api.PodSandbox) error {
	o.note("run", p.GetId())
	return nil
}

func (o *observer) StopPodSandbox(_ context.Context, p *api.PodSandbox) error {
	o.note("stop", p.GetId())
	return nil
}

func (o *observer) RemovePodSandbox(_ context.Context, p *api.PodSandbox) error {
	o.note("remove", p.GetId())
	return nil
}

func (o *observer) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	o.note("create", c.GetId())
	a := &api.ContainerAdjustment{}
	a.AddEnv("FROM_A_PLUGIN", "yes")
	return a, nil, nil
}

func (o *observer) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	o.note("start", c.GetId())
	return nil
}

// With [nri] in its configuration the daemon serves plugins: one that connects is told what there is, then the life of a pod in
// order, and changes its containers. After a restart of the daemon it connects again and is told of what runs.
func TestNativePluginsOfNRI(t *testing.T) {
	harness.AboutNative(t)
	dir := harness.WorkDir(t, "n")
	socket := filepath.Join(dir, "nri.sock")
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Settings: map[string]any{"nri": map[string]any{
		"enable": true, "socket_path": socket, "plugin_path": filepath.Join(dir, "plugins"), "plugin_config_path": filepath.Join(dir, "conf"),
	}}})
	n.Pull(t, harness.Busybox)
	connect := func() *observer {
		t.Helper()
		o := &observer{synced: make(chan struct{})}
		plugin, err := stub.New(o, stub.WithPluginName("observer"), stub.WithPluginIdx("10"), stub.WithSocketPath(socket), stub.WithOnClose(func() {}))
		if err != nil {
			t.Fatal(err)
		}
		if err := plugin.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(plugin.Stop)
		select {
		case <-o.synced:
		case <-time.After(time.Minute):
			t.Fatal("the plugin is told of nothing")
		}
		return o
	}
	before := n.RunPod(t, "before").Run("c", n.Registry.Ref(harness.Busybox), forever)
	o := connect()
	if !slices.Contains(o.known, before.ID) {
		t.Errorf("it is told of the containers %v, and not of %s", o.known, before.ID)
	}
	pod := n.RunPod(t, "plugins")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	if got := c.Output("echo $FROM_A_PLUGIN"); got != "yes\n" {
		t.Errorf("the variable of the plugin is %q", got)
	}
	n.Shim.Restart()
	again := connect()
	if !slices.Contains(again.known, c.ID) || !slices.Contains(again.known, before.ID) {
		t.Errorf("after a restart it is told of the containers %v", again.known)
	}
	pod.Stop()
	pod.Remove()
	o.mu.Lock()
	defer o.mu.Unlock()
	if want := []string{"run " + pod.ID, "create " + c.ID, "start " + c.ID}; !slices.Equal(o.told, want) {
		t.Errorf("it was told %q, want %q", o.told, want)
	}
	again.mu.Lock()
	defer again.mu.Unlock()
	if want := []string{"stop " + pod.ID, "remove " + pod.ID}; !slices.Equal(again.told, want) {
		t.Errorf("after a restart it was told %q, want %q", again.told, want)
	}
}
