package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/state"
)

// awaitAbandoned waits until nobody waits for the work that is under way.
func awaitAbandoned[K comparable, R any](t testing.TB, works *flights[K, R], key K) {
	t.Helper()
	eventually(t, "nobody to wait for the work", func() error {
		works.mu.Lock()
		defer works.mu.Unlock()
		if fl := works.flights[key]; fl == nil || fl.waiters > 0 {
			return errors.New("somebody does")
		}
		return nil
	})
}

// abandonedPod makes a pod whose caller leaves before it is ready, and returns once it is.
func (f *fixture) abandonedPod(name string) (key engine.PodKey) {
	f.t.Helper()
	f.network.slow = make(chan struct{})
	ctx, leave := context.WithCancel(f.t.Context())
	gone := make(chan error, 1)
	adds := f.network.adds.Load()
	go func() {
		_, err := f.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: f.podConfig(name)})
		gone <- err
	}()
	eventually(f.t, "the pod's network to be made", func() error {
		if f.network.adds.Load() == adds {
			return errors.New("it is not")
		}
		return nil
	})
	leave()
	if err := <-gone; status.Code(err) != codes.Canceled {
		f.t.Fatal(err)
	}
	spec, err := f.server.podSpec(f.server.order[0], Handler{}, &runtimeapi.RunPodSandboxRequest{Config: f.podConfig(name)})
	if err != nil {
		f.t.Fatal(err)
	}
	key = spec.Key
	awaitAbandoned(f.t, &f.server.podFlights, key)
	close(f.network.slow)
	if err := f.server.podFlights.wait(f.t.Context(), key); err != nil {
		f.t.Fatal(err)
	}
	f.network.slow = nil
	return key
}

// parked is the key of a pod that is ready, and whose caller left before it was.
func (f *fixture) parked(name string) (id string, key engine.PodKey) {
	f.t.Helper()
	key = f.abandonedPod(name)
	pod, ok := f.store.PodByKey(key)
	if !ok || pod.Phase != state.PhaseRunning || pod.Returned {
		f.t.Fatalf("the pod is %+v", pod.Pod)
	}
	return string(pod.ID), key
}

// Rows: R10 (part)
// A kubelet that was restarted finds a pod in the list that it had asked for, and uses it without asking again.
func TestAPodThatIsUsedIsNotTakenBack(t *testing.T) {
	f := newFixture(t)
	for name, use := range map[string]func(id string) error{
		"its-status": func(id string) error {
			_, err := f.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"a-container": func(id string) error {
			_, err := f.create(id, "a-container", "main", "run")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			id, key := f.parked(name)
			if err := use(id); err != nil {
				t.Fatal(err)
			}
			f.server.takeBackParkedPod(t.Context(), key, engine.PodID(id))
			if got := f.podStatus(id); got.State != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Errorf("it is %v", got.State)
			}
			if err := f.removePod(id); err != nil {
				t.Fatal(err)
			}
		})
	}
	f.nothingLeft()
}

// Before StartContainer noted it, and CreateContainer, a daemon left records of containers that run, or of their pods, as if nobody had
// been given them.
func TestWhatRunsIsNotTakenBackAfterAnUpgrade(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	container := f.startContainer(pod, "web", "main", "run")
	view, _ := f.store.Pod(engine.PodID(pod))
	of, _ := f.store.Container(engine.ContainerID(container))
	err := errors.Join(
		f.store.UpdatePodByKey(view.Spec.Key, func(p *state.Pod) error { p.Returned = false; return nil }),
		f.store.UpdateContainerByKey(of.PodID, of.Spec.Key, func(c *state.Container) error { c.Returned = false; return nil }))
	if err != nil {
		t.Fatal(err)
	}
	f.restart()
	f.server.takeBackParkedPod(t.Context(), view.Spec.Key, view.ID)
	for range 20 { // recovery takes back in the background
		if got := f.containerStatus(container); got.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("the container is %v", got.State)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := f.removePod(pod); err != nil {
		t.Fatal(err)
	}
}

// takenBack waits until there is neither a container nor, but for the one that is given, a pod. Nobody asks for that.
func (f *fixture) takenBack(kept ...string) {
	f.t.Helper()
	eventually(f.t, "what nobody came for to be taken back", func() error {
		pods, containers := f.engine.PodIDs(), f.engine.ContainerIDs()
		if len(pods) != len(kept) || len(containers) > 0 || len(f.store.Pods()) != len(kept) || len(f.store.Containers()) > 0 {
			return fmt.Errorf("there are pods %v and containers %v", pods, containers)
		}
		return nil
	})
}

// Rows: R10 (part)
// A caller who never comes back asks for no removal either.
func TestWhatNobodyComesForIsTakenBackByItself(t *testing.T) {
	long := parkedFor
	t.Cleanup(func() { parkedFor = long })
	soon := time.Millisecond
	for name, abandon := range map[string]func(f *fixture) (kept []string){
		"a pod": func(f *fixture) []string {
			parkedFor = soon
			f.abandonedPod("web")
			return nil
		},
		"a pod, after a restart": func(f *fixture) []string {
			f.parked("web")
			f.stop()
			parkedFor = soon
			f.start()
			return nil
		},
		"a container": func(f *fixture) []string {
			slow := &slowCreation{begin: make(chan struct{})}
			f.wrap = func(e engine.Engine) engine.Engine { slow.Engine = e; return slow }
			f.stop()
			parkedFor = soon
			f.start()
			pod := f.runPod("web")
			ctx, leave := context.WithCancel(t.Context())
			gone := make(chan error, 1)
			go func() {
				_, err := f.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
					PodSandboxId: pod, Config: containerConfig("main", "run"), SandboxConfig: f.podConfig("web")})
				gone <- err
			}()
			eventually(t, "the engine to make the container", func() error {
				if slow.creations.Load() == 0 {
					return errors.New("it does not")
				}
				return nil
			})
			leave()
			if err := <-gone; status.Code(err) != codes.Canceled {
				t.Fatal(err)
			}
			creation := containerCreation{engine.PodID(pod), engine.ContainerKey{Name: "main"}}
			awaitAbandoned(t, &f.server.containerFlights, creation)
			close(slow.begin)
			if err := f.server.containerFlights.wait(t.Context(), creation); err != nil {
				t.Fatal(err)
			}
			return []string{pod}
		},
		"a container, after a restart": func(f *fixture) []string {
			pod := f.runPod("web")
			id, err := f.create(pod, "web", "main", "run")
			if err != nil {
				t.Fatal(err)
			}
			c, _ := f.store.Container(engine.ContainerID(id))
			err = f.store.UpdateContainerByKey(c.PodID, c.Spec.Key, func(c *state.Container) error { c.Returned = false; return nil })
			if err != nil {
				t.Fatal(err)
			}
			f.stop()
			parkedFor = soon
			f.start()
			return []string{pod}
		},
	} {
		t.Run(name, func(t *testing.T) {
			parkedFor = long
			f := newFixture(t)
			f.takenBack(abandon(f)...)
			f.nothingLeft()
		})
	}
}

func TestAPodThatNobodyComesForIsTakenBack(t *testing.T) {
	f := newFixture(t)
	id, key := f.parked("web")
	f.server.takeBackParkedPod(t.Context(), key, engine.PodID(id))
	if err := f.server.markPodReturned(engine.PodID(id)); !errdefs.IsUnavailable(err) {
		t.Errorf("who comes when it is gone: %v", err)
	}
	f.nothingLeft()
}

// From the decision on who comes is told, and gets another pod when he asks again.
func TestWhoComesTooLateForAPodIsTold(t *testing.T) {
	f := newFixture(t)
	id, key := f.parked("web")
	err := f.store.UpdatePodByKey(key, func(p *state.Pod) error { p.Phase = state.PhaseStopping; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.create(id, "web", "main", "run"); status.Code(err) != codes.Unavailable {
		t.Errorf("CreateContainer in it: %v", err)
	}
	if err := f.server.markPodReturned(engine.PodID(id)); err == nil {
		t.Error("it counts as returned")
	}
	if again := f.runPod("web"); again == id {
		t.Error("a pod that is being removed was returned")
	}
}

// A container that somebody started is his, whoever asked for its creation.
func TestAContainerThatIsStartedIsNotTakenBack(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	for name, started := range map[string]bool{"started": true, "forgotten": false} {
		id, err := f.create(pod, "web", name, "run")
		if err != nil {
			t.Fatal(err)
		}
		c, _ := f.store.Container(engine.ContainerID(id))
		err = f.store.UpdateContainerByKey(c.PodID, c.Spec.Key, func(c *state.Container) error { c.Returned = false; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if started {
			if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
		}
		f.server.takeBackParkedContainer(t.Context(), containerCreation{c.PodID, c.Spec.Key}, c.ID)
		if _, there := f.store.Container(c.ID); there != started {
			t.Errorf("container %s is there: %v", name, there)
		}
	}
}

// slowCreation is an engine that makes containers when it is told to.
type slowCreation struct {
	engine.Engine
	creations atomic.Int32
	begin     chan struct{}
}

func (e *slowCreation) CreateContainer(ctx context.Context, spec *engine.ContainerSpec) (engine.ContainerStatus, error) {
	e.creations.Add(1)
	select {
	case <-e.begin:
		return e.Engine.CreateContainer(ctx, spec)
	case <-ctx.Done():
		return engine.ContainerStatus{}, ctx.Err()
	}
}

// Rows: R10 (part)
// A kubelet makes a new file for the termination message at each attempt.
func TestAKubeletThatComesBackForItsContainerGetsIt(t *testing.T) {
	f := newFixture(t)
	slow := &slowCreation{begin: make(chan struct{})}
	f.wrap = func(e engine.Engine) engine.Engine { slow.Engine = e; return slow }
	f.restart()
	pod := f.runPod("web")
	attempt := func(ctx context.Context, n int, command string) (string, error) {
		c := containerConfig("main", command)
		c.Annotations = map[string]string{"io.kubernetes.container.terminationMessagePath": "/dev/termination-log"}
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/dev/termination-log", HostPath: fmt.Sprintf("%s/%08x", f.root, n)}}
		resp, err := f.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: f.podConfig("web")})
		return resp.GetContainerId(), err
	}
	begun := func(n int32) {
		t.Helper()
		eventually(t, "the engine to make the container", func() error {
			if got := slow.creations.Load(); got != n {
				return fmt.Errorf("it began %d times", got)
			}
			return nil
		})
	}
	leaves := func(n int, command string, creations int32) {
		t.Helper()
		ctx, leave := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := attempt(ctx, n, command)
			gone <- err
		}()
		begun(creations)
		leave()
		if err := <-gone; status.Code(err) != codes.Canceled {
			t.Fatal(err)
		}
	}
	leaves(1, "run", 1)
	// Another config does not wait for what nobody wants any more.
	leaves(2, "other", 2)
	got := make(chan error, 1)
	go func() {
		_, err := attempt(t.Context(), 3, "other")
		got <- err
	}()
	eventually(t, "the retry to wait", func() error {
		f.server.containerFlights.mu.Lock()
		defer f.server.containerFlights.mu.Unlock()
		for _, fl := range f.server.containerFlights.flights {
			if fl.waiters == 1 {
				return nil
			}
		}
		return errors.New("it does not")
	})
	close(slow.begin)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if n := slow.creations.Load(); n != 2 {
		t.Errorf("the engine made it %d times, want the retry to get the second", n)
	}
}
