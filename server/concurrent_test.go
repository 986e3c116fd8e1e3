package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// soakTime is how long a test of random work runs: short in `make test`, E2E_SOAK in `make counts`.
func soakTime(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("E2E_SOAK")
	if text == "" {
		return short
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("E2E_SOAK: %v", err)
	}
	return d
}

// waitLimit is how long one call may take. Each step of the engine takes at most 10 ms here; the rest is the race
// detector, and that 64 clients share a few pods on a small machine.
const waitLimit = 30 * time.Second

var errInjected = fmt.Errorf("injected: %w", errdefs.ErrInternal)

// R12: 64 clients do random things to the same few pods and containers while the engine and the network are slow and fail
// at random. Every answer is one that CRI's state machine allows, given what else was under way (see stage); no call waits
// long; and when all is quiet the answers are exactly the engine's truth.
func TestR12RandomCallsAreLinearizable(t *testing.T) {
	captureLog(t, 0) // thousands of calls fail on purpose
	f := newFixture(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := &world{f: f, slots: make([]slot, 6)}
	for i := range w.slots {
		w.slots[i].name = fmt.Sprintf("p%d", i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soakTime(t, 4*time.Second))
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { w.faults(ctx, rand.New(rand.NewPCG(seed, 1<<32))) })
	for i := range uint64(64) {
		c := &modelClient{w: w, random: rand.New(rand.NewPCG(seed, i))}
		all.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				began := time.Now()
				if what, err := c.step(); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				} else if took := time.Since(began); took > waitLimit && w.slow.CompareAndSwap(false, true) {
					var stacks strings.Builder
					_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
					t.Errorf("seed %d: %s took %s\n%s", seed, what, took, stacks.String())
				}
				w.calls.Add(1)
			}
		})
	}
	all.Wait()
	w.calm()
	if t.Failed() {
		return
	}
	w.exact(t)
	t.Logf("%d calls, %d of them failed by injection or at their deadline", w.calls.Load(), w.spoiled.Load())
	f.nothingLeft()
}

// world is the pods that all clients share.
type world struct {
	f              *fixture
	calls, spoiled atomic.Int64
	slow           atomic.Bool

	mu    sync.Mutex // also that of every model
	slots []slot
}

// slot is one pod's key; the pods that have had it are models.
type slot struct {
	name string
	pods []*model // the last is the newest
}

var faultSteps = []string{
	"CreatePod", "StartPod", "StopPod", "ReleaseNetNS", "RemovePod", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer",
	"UpdateContainer", "ReopenLog", "ContainerStatus", "Exec",
}

// faults makes steps slow and has some fail, before or after they did their work.
func (w *world) faults(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		step := faultSteps[r.IntN(len(faultSteps))]
		switch r.IntN(4) {
		case 0:
			w.f.engine.FailOnce(step, errInjected)
		case 1:
			w.f.engine.FailOnce(step+".after", errInjected)
		case 2:
			w.f.engine.Delay(step, time.Duration(r.IntN(10))*time.Millisecond)
		case 3:
			w.f.network.mu.Lock()
			if r.IntN(2) == 0 {
				w.f.network.failAdd = append(w.f.network.failAdd, errInjected)
			} else {
				w.f.network.failDel = append(w.f.network.failDel, errInjected)
			}
			w.f.network.mu.Unlock()
		}
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
	}
}

// calm ends the delays; faults that nobody met yet stay, and are met by the clean-up.
func (w *world) calm() {
	for _, step := range faultSteps {
		w.f.engine.Delay(step, 0)
	}
}

// excused says that the call failed by an injected fault, or because its own caller left: it may have been done or not.
func (w *world) excused(ctx context.Context, err error) bool {
	code := status.Code(err)
	_, leaves := ctx.Deadline()
	if leaves && (code == codes.DeadlineExceeded || code == codes.Canceled) || err != nil && strings.Contains(err.Error(), "injected") {
		w.spoiled.Add(1)
		return true
	}
	return false
}

// pod finds the model of a pod that a call returned, or makes it.
func (w *world) pod(s int, id string) (m *model, isNew bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.slots[s].pods {
		if m.id == id {
			return m, false
		}
	}
	m = &model{mu: &w.mu, id: id, name: w.slots[s].name + " " + id[:8], known: running, containers: map[string]*model{}}
	w.slots[s].pods = append(w.slots[s].pods, m)
	return m, true
}

// exact checks, when nothing is under way, that lists, statuses and the engine agree and what they say is what calls brought about.
func (w *world) exact(t *testing.T) {
	f := w.f
	podList, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	list, err2 := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	pods, containers := map[string]bool{}, map[string]bool{}
	for _, p := range podList.Items {
		pods[p.Id] = true
		truth, err := f.engine.PodStatus(t.Context(), engine.PodID(p.Id))
		if ready := err == nil && truth.State == engine.PodReady; !ready && p.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("pod %s is listed READY; the engine: %v, %v", p.Id, truth.State, err)
		}
	}
	for _, c := range list.Containers {
		containers[c.Id] = true
		if !pods[c.PodSandboxId] {
			t.Errorf("container %s is of pod %s, which is gone", c.Id, c.PodSandboxId)
		}
		eventually(t, "the list says what the engine says", func() error {
			truth, err := f.engine.ContainerStatus(t.Context(), engine.ContainerID(c.Id))
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			now := f.containerStatus(c.Id).State
			if want := engineStates[truth.State]; err == nil && now != want || err != nil && now != runtimeapi.ContainerState_CONTAINER_EXITED {
				return fmt.Errorf("container %s is %s; the engine: %v, %v", c.Id, now, truth.State, err)
			}
			return nil
		})
	}
	// A creation whose caller left may be on its way still: then it is listed, or taken back, in time.
	eventually(t, "the engine has no pod that is not listed", func() error {
		reply, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		for _, id := range f.engine.PodIDs() {
			if !slices.ContainsFunc(reply.Items, func(p *runtimeapi.PodSandbox) bool { return p.Id == string(id) }) {
				return fmt.Errorf("it has %s", id)
			}
		}
		return nil
	})
	for _, id := range f.engine.ContainerIDs() {
		if !containers[string(id)] {
			t.Errorf("the engine still has container %s, which is not listed", id)
		}
	}
	for _, s := range w.slots {
		for _, p := range s.pods {
			if p.known == removed && pods[p.id] || p.possible() < removed && !pods[p.id] {
				t.Errorf("pod %s: listed %v, known to be %s, at most %s", p.name, pods[p.id], p.known, p.possible())
			}
			for _, c := range p.containers {
				if least, most := c.least(), c.possible(); least == removed && containers[c.id] || most < removed && !containers[c.id] {
					t.Errorf("container %s: listed %v, known to be %s, at most %s", c.name, containers[c.id], least, most)
				} else if containers[c.id] {
					now, err := containerStage(f.containerStatus(c.id).State)
					err = errors.Join(err, c.saw("the status in the end", c.before(), now))
					if err != nil {
						t.Error(err)
					}
				}
			}
		}
	}
}

var engineStates = map[engine.ContainerState]runtimeapi.ContainerState{
	engine.ContainerCreated: runtimeapi.ContainerState_CONTAINER_CREATED,
	engine.ContainerRunning: runtimeapi.ContainerState_CONTAINER_RUNNING,
	engine.ContainerExited:  runtimeapi.ContainerState_CONTAINER_EXITED,
}

// R12: a start that is under way when its pod is stopped does not leave a container running in a stopped pod.
//
// Rows: R12 (part)
func TestAStartUnderWayEndsWithItsPod(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	id, err := f.create(pod, "web", "main", "run")
	_, err2 := f.create(pod, "web", "unused", "run")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	start, stop := f.engine.Block("StartContainer"), f.engine.Block("StopPod")
	started, stopped := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
		started <- err
	}()
	eventually(t, "the start reaches the engine", func() error {
		if f.engine.Calls("StartContainer") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	go func() { stopped <- f.stopPod(pod) }()
	eventually(t, "the stop begins", func() error {
		if st := f.podStatus(pod); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			return fmt.Errorf("%s", st.State)
		}
		return nil
	})
	wantCode(t, "the start, which began before the stop and hangs", <-started, codes.FailedPrecondition)
	start()
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if st := f.containerStatus(id); st.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s in a stopped pod", st.State)
	}
	_, err = f.create(pod, "web", "unused", "run")
	wantCode(t, "the same creation in a stopped pod", err, codes.FailedPrecondition)
	f.nothingLeft()
}
