package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/system"

	"crishim/engine"
)

// fakeEngine speaks as much of the Engine API as watching needs, and fails as a test wants.
type fakeEngine struct {
	socket string
	stop   chan struct{}

	mu         sync.Mutex
	api        string
	info       system.Info
	containers map[string]container.InspectResponse
	hang       map[string]bool                      // path prefixes that get no answer
	fail       map[string]func(http.ResponseWriter) // path prefixes that are answered by the test
	asked      []string                             // "METHOD path" of every request
	streams    []chan string
}

func newFake(t *testing.T) *fakeEngine {
	t.Helper()
	f := newAbsentFake(t)
	f.listen(t)
	return f
}

// newAbsentFake is an engine that is not there before listen.
func newAbsentFake(t *testing.T) *fakeEngine {
	t.Helper()
	dir, err := os.MkdirTemp("", "fake")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeEngine{
		socket: filepath.Join(dir, "d.sock"), api: "1.51", stop: make(chan struct{}),
		info:       system.Info{ServerVersion: "28.5.2", OSType: "linux", DockerRootDir: dir, CgroupDriver: "cgroupfs", CgroupVersion: "1", Driver: "overlay2", SecurityOptions: []string{"name=seccomp,profile=builtin"}},
		containers: map[string]container.InspectResponse{}, hang: map[string]bool{}, fail: map[string]func(http.ResponseWriter){},
	}
	t.Cleanup(func() {
		close(f.stop)
		_ = os.RemoveAll(dir)
	})
	return f
}

// listen serves on the socket until the test ends or the engine is shut down.
func (f *fakeEngine) listen(t *testing.T) (shutDown func()) {
	t.Helper()
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f}
	go func() { _ = server.Serve(listener) }()
	shutDown = func() { _ = server.Close() }
	t.Cleanup(shutDown)
	return shutDown
}

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if parts := strings.SplitN(path, "/", 3); len(parts) == 3 && strings.HasPrefix(parts[1], "v1.") {
		path = "/" + parts[2]
	}
	f.mu.Lock()
	f.asked = append(f.asked, r.Method+" "+path)
	for prefix, answer := range f.fail {
		if strings.HasPrefix(path, prefix) {
			f.mu.Unlock()
			answer(w)
			return
		}
	}
	for prefix, hangs := range f.hang {
		if hangs && strings.HasPrefix(path, prefix) {
			f.mu.Unlock()
			_, _ = io.Copy(io.Discard, r.Body) // a server sees its client leave only then
			select {
			case <-r.Context().Done():
			case <-f.stop:
			}
			return
		}
	}
	defer f.mu.Unlock()
	answer := func(value any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(value)
	}
	switch {
	case path == "/_ping":
		w.Header().Set("Api-Version", f.api)
	case path == "/info":
		answer(f.info)
	case path == "/events":
		stream := make(chan string, 100)
		f.streams = append(f.streams, stream)
		f.mu.Unlock()
		f.serveEvents(w, r, stream)
		f.mu.Lock()
	case path == "/containers/json":
		list := []container.Summary{}
		for _, c := range f.containers {
			list = append(list, container.Summary{ID: c.ID, Names: []string{c.Name}, Labels: c.Config.Labels, State: c.State.Status, Created: 1})
		}
		answer(list)
	case strings.HasPrefix(path, "/containers/") && strings.HasSuffix(path, "/json"):
		id := strings.Split(path, "/")[2]
		c, ok := f.containers[id]
		if !ok {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			answer(map[string]string{"message": "No such container"})
			return
		}
		answer(c)
	case strings.HasPrefix(path, "/images/") && strings.HasSuffix(path, "/json") && path != "/images/json":
		answer(map[string]any{"Id": strings.Split(path, "/")[2], "Config": map[string]any{}})
	default:
		answer([]string{})
	}
}

func (f *fakeEngine) serveEvents(w http.ResponseWriter, r *http.Request, stream <-chan string) {
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case text, ok := <-stream:
			if !ok {
				return
			}
			_, _ = fmt.Fprint(w, text)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		case <-f.stop:
			return
		}
	}
}

// put makes or changes a container without an event.
func (f *fakeEngine) put(id string, state container.State) {
	name, _ := containerName(engine.PodKey{Name: "p", Namespace: "n", UID: "u"}, engine.ContainerKey{Name: "c" + id[:4]})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers[id] = container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{ID: id, Name: "/" + name, State: &state, HostConfig: &container.HostConfig{}, Created: "2026-01-01T00:00:00Z"},
		Config:            &container.Config{Labels: map[string]string{labelType: typeContainer, labelSandbox: testPod, labelLogPath: ""}},
	}
}

func (f *fakeEngine) event(id string, action events.Action) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[id]
	attributes := map[string]string{"name": strings.TrimPrefix(c.Name, "/"), labelType: typeContainer, labelSandbox: testPod}
	data, _ := json.Marshal(events.Message{Type: events.ContainerEventType, Action: action, Actor: events.Actor{ID: id, Attributes: attributes}})
	return string(data) + "\n"
}

// send writes to every stream of events; end cuts them.
func (f *fakeEngine) send(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.streams {
		s <- text
	}
}

func (f *fakeEngine) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.streams {
		close(s)
	}
	f.streams = nil
}

func (f *fakeEngine) setHang(prefix string, hangs bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang[prefix] = hangs
}

// setFail has requests of the prefix answered with the status and a message; 0 ends that.
func (f *fakeEngine) setFail(prefix string, status int, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.fail, prefix)
	if status == 0 {
		return
	}
	f.fail[prefix] = func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

// requests are those whose "METHOD path" holds the text.
func (f *fakeEngine) requests(text string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.asked {
		if strings.Contains(r, text) {
			n++
		}
	}
	return n
}

var (
	created = container.State{Status: "created"}
	running = container.State{Status: "running", Running: true, StartedAt: "2026-01-01T00:00:01Z"}
	exited  = container.State{Status: "exited", ExitCode: 4, StartedAt: "2026-01-01T00:00:01Z", FinishedAt: "2026-01-01T00:00:02Z"}
)

const otherContainer = "2222222222222222222222222222222222222222222222222222222222222222"

func TestEventsLeadToStatuses(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, running)
	_, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	if sink.container(testContainer).State != engine.ContainerRunning {
		t.Fatal("the snapshot lacks the container")
	}
	f.put(otherContainer, created)
	f.send(f.event(otherContainer, events.ActionCreate))
	eventually(t, time.Second, "the new one is told", func() bool { return sink.container(otherContainer).State == engine.ContainerCreated })
	f.put(testContainer, exited)
	f.send(f.event(testContainer, events.ActionDie))
	eventually(t, time.Second, "the exit is told", func() bool { return sink.container(testContainer).ExitCode == 4 })
	gone := f.event(testContainer, events.ActionDestroy)
	f.mu.Lock()
	delete(f.containers, testContainer)
	f.mu.Unlock()
	f.send(gone)
	eventually(t, time.Second, "the removal is told", func() bool { return sink.container(testContainer).ID == "" })
	f.send(`{"Type":"image","Action":"pull","Actor":{"ID":"x"}}`)
	eventually(t, time.Second, "images have changed", func() bool { sink.mu.Lock(); defer sink.mu.Unlock(); return sink.images > 0 })
}

// Rows: R47 (part)
func TestEveryGapEndsInAResync(t *testing.T) {
	for name, gap := range map[string]func(*fakeEngine){
		"the stream ends":        func(f *fakeEngine) { f.end() },
		"the stream is garbled":  func(f *fakeEngine) { f.send("{]") },
		"an event is half there": func(f *fakeEngine) { f.send(`{"Type":"contai`); f.end() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.put(testContainer, running)
			_, sink := watched(t, f.socket, nil)
			sink.waitReady(t)
			f.put(testContainer, exited) // its event is lost
			gap(f)
			eventually(t, 30*time.Second, "a resync with the exit", func() bool {
				return sink.resynced() > 1 && sink.container(testContainer).State == engine.ContainerExited && sink.last().Ready
			})
			sink.mu.Lock()
			defer sink.mu.Unlock()
			if len(sink.health) < 3 || sink.health[1].Ready || sink.health[1].Reason != reasonUnavailable || sink.health[1].Message == "" {
				t.Errorf("health %+v", sink.health)
			}
		})
	}
}

// Rows: R08 (part)
func TestHangingContainerHoldsNobody(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, running)
	f.put(otherContainer, running)
	f.setHang("/containers/"+testContainer, true)
	_, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	if sink.container(testContainer).State != engine.ContainerRunning || sink.container(otherContainer).State != engine.ContainerRunning {
		t.Error("the list's state is not used")
	}
	f.put(otherContainer, exited)
	f.send(f.event(otherContainer, events.ActionDie))
	eventually(t, time.Second, "the other's exit is told", func() bool { return sink.container(otherContainer).State == engine.ContainerExited })
	f.put(testContainer, exited)
	f.setHang("/containers/"+testContainer, false)
	eventually(t, 15*time.Second, "it is looked at again", func() bool { return sink.container(testContainer).State == engine.ContainerExited })
}

// Rows: R08 (part)
func TestHungEngineIsAway(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, running)
	e, sink := watched(t, f.socket, func(o *Options) { o.pingLimit = time.Second })
	sink.waitReady(t)
	f.setHang("/", true)
	start := time.Now()
	_, err := e.ContainerStatus(t.Context(), testContainer)
	if took := time.Since(start); !errdefs.IsUnavailable(err) || took > 30*time.Second {
		t.Errorf("a call in flight: %v after %s", err, took)
	}
	eventually(t, time.Second, "the hang is told", func() bool { return sink.last().Reason == reasonNotResponding })
	start = time.Now()
	for what, call := range map[string]func() error{
		"create": func() error { _, err := e.CreatePod(t.Context(), fullPod()); return err },
		"exec": func() error {
			_, err := e.Exec(t.Context(), testContainer, &engine.ExecSpec{Command: []string{"x"}})
			return err
		},
		"stop":   func() error { return e.StopContainer(t.Context(), testContainer, time.Hour) },
		"remove": func() error { return e.RemoveContainer(t.Context(), testContainer) },
		"attach": func() error { return e.Attach(t.Context(), testContainer, &engine.Streams{}) },
	} {
		if err := call(); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("calls to an engine that is away take %s", took)
	}
	f.setHang("/", false)
	eventually(t, 15*time.Second, "it is back", func() bool { return sink.last().Ready })
}

// Rows: S66
func TestUnusableEngineIsRefused(t *testing.T) {
	for want, spoil := range map[string]func(*fakeEngine){
		"1.41":         func(f *fakeEngine) { f.api = "1.40" },
		"rootless":     func(f *fakeEngine) { f.info.SecurityOptions = []string{"name=rootless"} },
		"userns-remap": func(f *fakeEngine) { f.info.SecurityOptions = []string{"name=seccomp", "name=userns"} },
		"swarm":        func(f *fakeEngine) { f.info.Swarm.LocalNodeState = "active" },
		"this host":    func(f *fakeEngine) { f.info.DockerRootDir = "/no/such/folder" },
		"windows":      func(f *fakeEngine) { f.info.OSType = "windows" },
	} {
		t.Run(want, func(t *testing.T) {
			f := newFake(t)
			spoil(f)
			dir := t.TempDir()
			e, err := New(Options{Socket: "unix://" + f.socket, RunDir: dir + "/run", RootDir: dir + "/root"})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			sink := &record{}
			if err := e.Watch(ctx, sink); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
				t.Errorf("Watch returned %v", err)
			}
			if h := sink.last(); h != (engine.Health{}) {
				t.Errorf("it was said to be away, as if it could come back: %+v", h)
			}
		})
	}
}

// What answers is logged at each connect, what it lacks once.
func TestTheLogSaysWhatAnswers(t *testing.T) {
	log := captureLog(t)
	f := newFake(t)
	f.info.SecurityOptions = nil
	_, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	f.end()
	eventually(t, 30*time.Second, "a second connect", func() bool { return strings.Count(log.String(), `"Docker Engine answers"`) >= 2 })
	for text, want := range map[string]int{`version="` + f.info.ServerVersion + `"`: 2, `cgroupDriver="cgroupfs"`: 2, "every container runs unconfined by it": 1} {
		if got := strings.Count(log.String(), text); got < want || want == 1 && got > 1 {
			t.Errorf("%s is logged %d times, want %d:\n%s", text, got, want, log)
		}
	}
}

// An engine that comes back and is of no use yet is away for another cause than before, under the same reason: an operator who started it
// is not told any more that nothing listens on its socket.
func TestWhyAnEngineIsAwayIsToldAnew(t *testing.T) {
	f := newAbsentFake(t)
	f.setFail("/info", http.StatusInternalServerError, `{"message":"no space left on device"}`)
	_, sink := watched(t, f.socket, nil)
	eventually(t, 30*time.Second, "it is told", func() bool { return sink.last().Reason == reasonUnavailable })
	f.listen(t)
	eventually(t, 30*time.Second, "the new cause is told", func() bool {
		h := sink.last()
		return h.Reason == reasonUnavailable && strings.Contains(h.Message, "no space left on device")
	})
	f.setFail("/info", 0, "")
	sink.waitReady(t)
}

// Rows: R09
func TestChangedEngineIsNotReady(t *testing.T) {
	f := newFake(t)
	_, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	f.mu.Lock()
	f.info.CgroupDriver = "systemd"
	f.mu.Unlock()
	f.end()
	eventually(t, 30*time.Second, "the change is told", func() bool { return sink.last().Reason == reasonChanged })
	f.mu.Lock()
	f.info.CgroupDriver = "cgroupfs"
	f.mu.Unlock()
	sink.waitReady(t)
}

func TestAbsentEngineIsWaitedFor(t *testing.T) {
	e, sink := watched(t, filepath.Join(t.TempDir(), "absent.sock"), nil)
	eventually(t, 30*time.Second, "it is told", func() bool { return sink.last().Reason == reasonUnavailable })
	if _, err := e.PodStatus(t.Context(), testPod); !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
