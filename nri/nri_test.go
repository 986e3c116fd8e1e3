package nri

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/hook"
)

// runtime is one without containers.
type runtime struct {
	mu      sync.Mutex
	updated []engine.ContainerID
	fail    error
}

func (r *runtime) State() ([]*hook.Pod, []*hook.Container) { return nil, nil }

func (r *runtime) UpdateLimits(_ context.Context, id engine.ContainerID, _ *specs.LinuxResources) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.updated = append(r.updated, id)
	return r.fail
}

// started has plugins connect to a socket of the test's own; options may be changed first.
func started(t *testing.T, r hook.Runtime, change func(*Options)) (*Plugins, string) {
	t.Helper()
	// Not t.TempDir: with a test's long name its path would not fit a socket.
	dir, err := os.MkdirTemp("", "nri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	opts := Options{
		RuntimeName: "crishim", Version: "1", SocketPath: filepath.Join(dir, "s"), PluginPath: filepath.Join(dir, "plugins"), PluginConfigPath: filepath.Join(dir, "conf"),
		RegistrationTimeout: 20 * time.Second, RequestTimeout: 20 * time.Second,
	}
	if change != nil {
		change(&opts)
	}
	p, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p, opts.SocketPath
}

// creator is a plugin that is asked about containers.
type creator struct {
	synced chan struct{}
	closed chan struct{}
	create func() (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
}

func (c *creator) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	close(c.synced)
	return nil, nil
}

func (c *creator) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return c.create()
}

// silent does not answer before the test's end.
func silent(t *testing.T) func() (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return func() (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		<-t.Context().Done()
		return nil, nil, nil
	}
}

func connect(t *testing.T, p *Plugins, socket string, c *creator, options ...stub.Option) {
	t.Helper()
	c.synced, c.closed = make(chan struct{}), make(chan struct{})
	options = append(options, stub.WithPluginName("creator"), stub.WithPluginIdx("10"), stub.WithSocketPath(socket), stub.WithOnClose(func() { close(c.closed) }))
	s, err := stub.New(c, options...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	select {
	case <-c.synced:
	case <-time.After(20 * time.Second):
		t.Fatal("not synchronized")
	}
	p.Block()()
}

func create(t *testing.T, p *Plugins) (*specs.Spec, error) {
	t.Helper()
	c := &hook.Container{ContainerStatus: engine.ContainerStatus{ID: "c", Spec: &engine.ContainerSpec{}}, OCI: testSpec()}
	_, err := p.CreateContainer(t.Context(), &hook.Pod{PodStatus: engine.PodStatus{ID: "p"}}, c, testHost())
	return c.OCI, err
}

func TestAPluginThatDoesNotAnswerIsDisconnectedAndTheContainerMadeWithoutIt(t *testing.T) {
	p, socket := started(t, &runtime{}, func(o *Options) { o.RequestTimeout = 300 * time.Millisecond })
	c := &creator{create: silent(t)}
	connect(t, p, socket, c)
	if s, err := create(t, p); err != nil || !slices.Equal(s.Process.Env, testSpec().Process.Env) {
		t.Errorf("created with %v, %v", s.Process.Env, err)
	}
	select {
	case <-c.closed:
	case <-time.After(20 * time.Second):
		t.Error("the plugin is still connected")
	}
}

func TestAPluginsFailurePolicyFailsTheContainer(t *testing.T) {
	p, socket := started(t, &runtime{}, func(o *Options) { o.RequestTimeout = 300 * time.Millisecond })
	connect(t, p, socket, &creator{create: silent(t)}, stub.WithFailurePolicy(&api.FailurePolicy{FailRequest: true}))
	if _, err := create(t, p); !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "10-creator") {
		t.Errorf("created: %v", err)
	}
}

func TestWithoutARequiredPluginNoContainerIsMade(t *testing.T) {
	p, socket := started(t, &runtime{}, func(o *Options) { o.RequiredPlugins = []string{"creator"} })
	if _, err := create(t, p); !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "creator") {
		t.Errorf("created without it: %v", err)
	}
	connect(t, p, socket, &creator{create: func() (*api.ContainerAdjustment, []*api.ContainerUpdate, error) { return nil, nil, nil }})
	if _, err := create(t, p); err != nil {
		t.Errorf("not created with it: %v", err)
	}
}

func TestTheUpdateOfAnotherContainerFailsTheCreationUnlessItMayFail(t *testing.T) {
	r := &runtime{fail: errors.New("gone")}
	p, socket := started(t, r, nil)
	u := &api.ContainerUpdate{}
	u.SetContainerId("other")
	u.SetLinuxCPUShares(5)
	connect(t, p, socket, &creator{create: func() (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, []*api.ContainerUpdate{u}, nil
	}})
	if _, err := create(t, p); !errors.Is(err, r.fail) {
		t.Errorf("created: %v", err)
	}
	u.IgnoreFailure = true
	if _, err := create(t, p); err != nil {
		t.Errorf("a failure that does not matter: %v", err)
	}
	if !slices.Equal(r.updated, []engine.ContainerID{"other", "other"}) {
		t.Errorf("updated %q", r.updated)
	}
}

func TestTheSocketOfAnotherRuntimeIsLeftAlone(t *testing.T) {
	first, socket := started(t, &runtime{}, nil)
	second, err := New(first.opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(&runtime{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("started beside another: %v", err)
	}
	connect(t, first, socket, &creator{create: func() (*api.ContainerAdjustment, []*api.ContainerUpdate, error) { return nil, nil, nil }})
	if _, err := create(t, first); err != nil {
		t.Errorf("the first one: %v", err)
	}
}

// A path that is a file's by a slip in the settings.
func TestAFileInThePlaceOfTheSocketIsLeftAlone(t *testing.T) {
	first, socket := started(t, &runtime{}, nil)
	opts := first.opts
	opts.SocketPath = socket + ".json"
	if err := os.WriteFile(opts.SocketPath, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	second, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(&runtime{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("started: %v", err)
		second.Stop()
	}
	if data, err := os.ReadFile(opts.SocketPath); string(data) != "{}" {
		t.Errorf("the file has %q, %v", data, err)
	}
}

// TestMain makes the test's binary a plugin where the adaptation starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv(api.PluginSocketEnvVar) == "" {
		os.Exit(m.Run())
	}
	s, err := stub.New(&launched{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		os.Exit(1)
	}
}

// launched writes its configuration into each container.
type launched struct{ config string }

func (l *launched) Configure(_ context.Context, config, _, _ string) (api.EventMask, error) {
	l.config = config
	return 0, nil
}

func (l *launched) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	a := &api.ContainerAdjustment{}
	a.AddEnv("CONFIG", l.config)
	return a, nil, nil
}

func TestInstalledPluginsAreStartedWithTheirConfiguration(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, _ := started(t, &runtime{}, func(o *Options) {
		for _, dir := range []string{o.PluginPath, o.PluginConfigPath} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("cp", self, filepath.Join(o.PluginPath, "10-own")).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := os.WriteFile(filepath.Join(o.PluginConfigPath, "own.conf"), []byte("blue"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if s, err := create(t, p); err != nil || !slices.Contains(s.Process.Env, "CONFIG=blue") {
		t.Errorf("created with %q, %v", s.Process.Env, err)
	}
}
