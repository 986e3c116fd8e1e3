package docker

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"crishim/engine"
)

// startAnswer has the start of testContainer send its event, and reply once the watcher has read that.
func startAnswer(t *testing.T, f *fakeEngine, sink *record, after container.State, status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail["/containers/"+testContainer+"/start"] = func(w http.ResponseWriter) {
		f.put(testContainer, after)
		f.send(f.event(testContainer, events.ActionStart))
		f.put(otherContainer, exited)
		f.send(f.event(otherContainer, events.ActionDie))
		eventually(t, 30*time.Second, "the later event is told", func() bool { return sink.container(otherContainer).State == engine.ContainerExited })
		w.WriteHeader(status)
	}
}

func TestAStartOfOursIsLookedAtOnce(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, created)
	f.put(otherContainer, running)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	looks := f.requests("/containers/" + testContainer + "/json")
	startAnswer(t, f, sink, running, http.StatusNoContent)
	status, err := e.StartContainer(t.Context(), testContainer, &engine.ContainerSpec{})
	if err != nil || status.State != engine.ContainerRunning {
		t.Fatalf("start: %v, %v", status.State, err)
	}
	eventually(t, time.Second, "the start is told", func() bool { return sink.container(testContainer).State == engine.ContainerRunning })
	if n := f.requests("/containers/"+testContainer+"/json") - looks; n != 1 {
		t.Errorf("%d inspects of a container that was started, want 1", n)
	}

	gone := f.event(testContainer, events.ActionDestroy)
	f.send(gone)
	eventually(t, time.Second, "the removal is told", func() bool { return sink.container(testContainer).ID == "" })
	if n := f.requests("/containers/"+testContainer+"/json") - looks; n != 1 {
		t.Errorf("%d inspects, one of them of a container that was removed", n)
	}
}

func TestAStartThatFailedIsLeftToTheWatcher(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, created)
	f.put(otherContainer, running)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	startAnswer(t, f, sink, running, http.StatusInternalServerError)
	if _, err := e.StartContainer(t.Context(), testContainer, &engine.ContainerSpec{}); err == nil {
		t.Fatal("the start succeeded")
	}
	// It runs although dockerd said otherwise: that must not stay unknown until the next comparison.
	eventually(t, 30*time.Second, "what became of it is told", func() bool { return sink.container(testContainer).State == engine.ContainerRunning })
}

// Rows: R11 (part)
func TestAContainerWhoseCreationWasNotAnsweredIsRemoved(t *testing.T) {
	f := newFake(t)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	f.put(testContainer, created)
	f.mu.Lock()
	made := f.containers[testContainer]
	body := &createBody{Name: made.Name[1:], Config: made.Config, HostConfig: made.HostConfig}
	f.containers[body.Name] = made // it is asked for by name
	f.fail["/containers/create"] = func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
	f.mu.Unlock()
	if _, err := e.create(t.Context(), body); !errdefs.IsUnavailable(err) {
		t.Errorf("error %v", err)
	}
	if n := f.requests("DELETE /containers/" + testContainer); n != 1 {
		t.Errorf("%d requests to remove it", n)
	}
}

// madeEarly is a sink that is slow to hear that the engine is ready: by then calls make containers.
type madeEarly struct {
	record
	ready, taken time.Time
}

func (m *madeEarly) Health(h engine.Health) {
	if h.Ready {
		m.ready = time.Now()
	}
	m.record.Health(h)
}

func (m *madeEarly) Resync(s engine.Snapshot) {
	m.taken = s.Taken
	m.record.Resync(s)
}

// What is made as soon as the engine is ready is not in the snapshot, which may be taken in later: it is not gone.
func TestASnapshotIsOlderThanWhatItsSessionMakes(t *testing.T) {
	f := newFake(t)
	dir := t.TempDir()
	e, err := New(Options{Socket: "unix://" + f.socket, RunDir: filepath.Join(dir, "run"), RootDir: filepath.Join(dir, "root")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	sink := &madeEarly{}
	ended := make(chan error, 1)
	go func() { ended <- e.Watch(ctx, sink) }()
	eventually(t, 20*time.Second, "the snapshot is told", func() bool {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		return sink.resyncs > 0
	})
	cancel()
	<-ended
	if sink.taken.IsZero() || sink.taken.After(sink.ready) {
		t.Errorf("the snapshot is of %v, and the engine was ready at %v", sink.taken, sink.ready)
	}
}

// Docker's names have the pod's uid and not the sandbox, so that two sandboxes of a pod may ask for the same one.
func TestAContainerThatRunsInAnotherSandboxIsNoLeftover(t *testing.T) {
	for _, test := range []struct {
		what     string
		state    container.State
		recorded bool
		removed  bool
	}{{"recorded and running", running, true, false}, {"recorded, and it has exited", exited, true, true}, {"running without a record", running, false, true}} {
		f := newFake(t)
		f.put(testContainer, test.state)
		name := strings.TrimPrefix(f.containers[testContainer].Name, "/")
		f.mu.Lock()
		f.containers[name] = f.containers[testContainer] // it is asked for by its name
		f.fail["/containers/create"] = func(w http.ResponseWriter) { w.WriteHeader(http.StatusConflict) }
		f.mu.Unlock()
		e, sink := watched(t, f.socket, func(o *Options) { o.Recorded = func(string) bool { return test.recorded } })
		sink.waitReady(t)
		_, err := e.create(t.Context(), &createBody{Name: name, HostConfig: &container.HostConfig{}, Config: &container.Config{
			Labels: map[string]string{labelType: typeContainer, labelSandbox: otherContainer},
		}})
		if removed := f.requests("DELETE /containers/"+testContainer) > 0; err == nil || removed != test.removed || !test.removed && !errdefs.IsAlreadyExists(err) {
			t.Errorf("%s: removed is %v, %v", test.what, removed, err)
		}
	}
}
