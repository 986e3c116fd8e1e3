package docker

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"k8s.io/klog/v2"

	"crishim/engine"
)

// TestPeerFaultNN are the faults that were seen in cri-dockerd, by number; see server/peerfaults_test.go.

// 10: the state was read from Docker's text for people.
func TestPeerFault10TheStateIsNotReadFromText(t *testing.T) {
	for name, test := range map[string]struct {
		state container.State
		want  engine.ContainerState
	}{
		"paused":               {container.State{Status: "paused", Running: true, Paused: true, StartedAt: "2026-01-01T00:00:01Z"}, engine.ContainerRunning},
		"restarting":           {container.State{Status: "restarting", Running: true, Restarting: true, StartedAt: "2026-01-01T00:00:01Z"}, engine.ContainerRunning},
		"text of another time": {container.State{Status: "exited", Running: true, StartedAt: "2026-01-01T00:00:01Z"}, engine.ContainerRunning},
		"no text":              {container.State{ExitCode: 3, StartedAt: "2026-01-01T00:00:01Z", FinishedAt: "2026-01-01T00:00:02Z"}, engine.ContainerExited},
		"being removed":        {container.State{Status: "removing", ExitCode: 3, StartedAt: "2026-01-01T00:00:01Z", FinishedAt: "2026-01-01T00:00:02Z"}, engine.ContainerExited},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.put(testContainer, test.state)
			e, sink := watched(t, f.socket, nil)
			sink.waitReady(t)
			got, err := e.ContainerStatus(t.Context(), testContainer)
			if err != nil || got.State != test.want || sink.container(testContainer).State != test.want {
				t.Errorf("asked %s, told %s, %v; want %s", got.State, sink.container(testContainer).State, err, test.want)
			}
		})
	}
}

// 11: "not found" was looked for in the text of errors.
func TestPeerFault11NotFoundIsAClassWhateverTheWords(t *testing.T) {
	f := newFake(t)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	for _, words := range []string{"No such container: name with _", "Kein solcher Container", "", "no such image", "NO SUCH CONTAINER: ABCDEF"} {
		f.setFail("/containers/"+testContainer, http.StatusNotFound, fmt.Sprintf(`{"message":%q}`, words))
		if _, err := e.ContainerStatus(t.Context(), testContainer); !errdefs.IsNotFound(err) {
			t.Errorf("%q as 404: %v", words, err)
		}
		if err := e.RemoveContainer(t.Context(), testContainer); err != nil {
			t.Errorf("removal with %q as 404: %v", words, err)
		}
		f.setFail("/containers/"+testContainer, http.StatusInternalServerError, fmt.Sprintf(`{"message":"%s No such container: %s"}`, words, testContainer))
		if _, err := e.ContainerStatus(t.Context(), testContainer); err == nil || errdefs.IsNotFound(err) {
			t.Errorf("%q as 500: %v", words, err)
		}
		if err := e.RemoveContainer(t.Context(), testContainer); err == nil {
			t.Errorf("a removal that failed with %q was hidden", words)
		}
	}
}

// 12: calls dropped their caller's context and piled up goroutines on a hung engine.
// Rows: R08
func TestPeerFault12CallersLeaveAHungRequest(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, running)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	f.setHang("/containers/"+testContainer, true) // pings are answered: the engine counts as there
	before := runtime.NumGoroutine()
	var callers sync.WaitGroup
	for range 20 {
		for name, call := range map[string]func(context.Context) error{
			"status": func(ctx context.Context) error { _, err := e.ContainerStatus(ctx, testContainer); return err },
			"stop":   func(ctx context.Context) error { return e.StopContainer(ctx, testContainer, 24*time.Hour) },
			"kill":   func(ctx context.Context) error { return e.StopContainer(ctx, testContainer, 0) },
			"remove": func(ctx context.Context) error { return e.RemoveContainer(ctx, testContainer) },
			"exec": func(ctx context.Context) error {
				_, err := e.Exec(ctx, testContainer, &engine.ExecSpec{Command: []string{"x"}, Streams: engine.Streams{Stdout: &bytes.Buffer{}}})
				return err
			},
		} {
			callers.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				start := time.Now()
				if err := call(ctx); !errdefs.IsDeadlineExceeded(err) {
					t.Errorf("%s: %v", name, err)
				}
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("%s left after %s", name, took)
				}
			})
		}
	}
	callers.Wait()
	// Those of the fake's own handlers end with their requests.
	eventually(t, 10*time.Second, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+10 })
	if !sink.last().Ready {
		t.Error("one hanging container made the engine unready")
	}
}

// 13: a reply that could not be decoded leaked its connection, and statistics were asked of Docker.
func TestPeerFault13GarbledRepliesHoldNoConnection(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, running)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	f.setFail("/containers/"+testContainer, http.StatusOK, `{"Id": 7, "garbage`)
	before := runtime.NumGoroutine()
	for range 100 {
		if _, err := e.ContainerStatus(t.Context(), testContainer); err == nil {
			t.Fatal("garbage was taken for a status")
		}
	}
	eventually(t, 30*time.Second, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+10 })
	if n := f.requests("/stats"); n > 0 {
		t.Errorf("statistics were asked of Docker %d times", n)
	}
}

// 15: at trace level whole requests were logged, the secrets of the environment among them.
// Rows: S33
func TestPeerFault15TheEnvironmentIsNotLogged(t *testing.T) {
	const secret = "s3cr3t-canary"
	log := captureLog(t)

	f := newFake(t)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	f.setFail("/containers/create", http.StatusInternalServerError, `{"message":"disk on fire"}`)
	spec := fullContainer()
	spec.Env = []engine.EnvVar{{Name: "TOKEN", Value: []byte(secret)}}
	spec.Args = []string{secret}
	spec.Security.UID, spec.Security.GID = new(int64), new(int64)
	spec.Mounts, spec.Security.AppArmor = nil, engine.Profile{}
	e.users.learnChecked(spec.Image.ID) // else the look into the image fails before
	_, err := e.CreateContainer(t.Context(), spec)
	if f.requests("POST /containers/create") == 0 {
		t.Fatalf("Docker was not asked: %v", err)
	}
	if err == nil || !strings.Contains(err.Error(), "disk on fire") || strings.Contains(err.Error(), secret) {
		t.Errorf("error %v", err)
	}
	f.end() // something to log
	eventually(t, 30*time.Second, "the loss is logged", func() bool { klog.Flush(); return strings.Contains(log.String(), "Docker Engine is away") })
	if strings.Contains(log.String(), secret) {
		t.Error("the log holds the secret")
	}
}

// 16: Docker had to be up at the start, and its API version was asked once.
// Rows: R09
func TestPeerFault16AnUpgradedEngineIsNegotiatedAgain(t *testing.T) {
	f := newAbsentFake(t)
	f.api, f.info.ServerVersion = "1.41", "20.10.24"
	f.put(testContainer, running)
	e, sink := watched(t, f.socket, nil)
	eventually(t, 30*time.Second, "its absence is told", func() bool { return sink.last().Reason == reasonUnavailable })
	shutDown := f.listen(t)
	sink.waitReady(t)
	if got := e.Info(); got.APIVersion != "1.41" || got.Version != "20.10.24" {
		t.Errorf("first %+v", got)
	}
	shutDown()
	eventually(t, 30*time.Second, "the loss is told", func() bool { return !sink.last().Ready })
	f.mu.Lock()
	f.api, f.info.ServerVersion = "1.51", "28.5.2"
	f.mu.Unlock()
	f.listen(t)
	sink.waitReady(t)
	if got := e.Info(); got.APIVersion != "1.51" || got.Version != "28.5.2" {
		t.Errorf("after the upgrade %+v", got)
	}
	if st, err := e.ContainerStatus(t.Context(), testContainer); err != nil || st.State != engine.ContainerRunning {
		t.Errorf("%v, %v", st, err)
	}
}

// captureLog catches what is logged until the test ends. It comes before watched, so that nobody logs while the log is
// switched.
func captureLog(t *testing.T) *lockedBuffer {
	t.Helper()
	before := klog.CaptureState()
	t.Cleanup(before.Restore)
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for name, value := range map[string]string{"logtostderr": "false", "stderrthreshold": "FATAL", "one_output": "true", "v": "10"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	log := &lockedBuffer{}
	klog.SetOutput(log)
	return log
}

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	klog.Flush()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
