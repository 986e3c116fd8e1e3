package docker

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"crishim/engine"
)

// A running pod of another shim is seen, its log and network namespace are let be, and whatever is asked for, the engine gets
// no request but GET and HEAD.
func TestAnObserverOnlyReads(t *testing.T) {
	f := newFake(t)
	logs := t.TempDir()
	link := filepath.Join(logs, "0.log")
	if err := os.Symlink("/var/lib/docker/containers/x-json.log", link); err != nil {
		t.Fatal(err)
	}
	f.put(testContainer, running)
	f.mu.Lock()
	in := f.containers[testContainer]
	in.Config.Labels[labelLogPath] = link
	in.State.Pid = os.Getpid()
	in.HostConfig.LogConfig = container.LogConfig{Type: "json-file"}
	f.containers[testContainer] = in
	f.mu.Unlock()
	var opts Options
	e, sink := watched(t, f.socket, func(o *Options) { o.Observe = true; opts = *o })
	sink.waitReady(t)
	if got := sink.container(testContainer); got.State != engine.ContainerRunning {
		t.Fatalf("the container is %v", got.State)
	}
	for name, change := range map[string]func() error{
		"CreatePod": func() error {
			_, err := e.CreatePod(t.Context(), &engine.PodSpec{Key: engine.PodKey{Name: "a", Namespace: "b", UID: "c"}})
			return err
		},
		"RemoveContainer": func() error { return e.RemoveContainer(t.Context(), testContainer) },
		"StopContainer":   func() error { return e.StopContainer(t.Context(), testContainer, time.Second) },
	} {
		if err := change(); err == nil {
			t.Errorf("%s succeeded", name)
		}
	}
	end := f.event(testContainer, events.ActionDie)
	f.mu.Lock()
	delete(f.containers, testContainer)
	f.mu.Unlock()
	f.send(end)
	eventually(t, 30*time.Second, "the removal is told", func() bool { return sink.container(testContainer).ID == "" })

	f.mu.Lock()
	defer f.mu.Unlock()
	for _, request := range f.asked {
		if !strings.HasPrefix(request, "GET ") && !strings.HasPrefix(request, "HEAD ") {
			t.Errorf("the engine was asked to %s", request)
		}
	}
	if target, err := os.Readlink(link); err != nil || !strings.HasSuffix(target, "x-json.log") {
		t.Errorf("the log's link leads to %q, %v", target, err)
	}
	for _, dir := range []string{opts.RunDir, opts.RootDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				t.Errorf("%s was written", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestAnObserversConnectionRefusesChanges(t *testing.T) {
	f := newFake(t)
	e, sink := watched(t, f.socket, func(o *Options) { o.Observe = true })
	sink.waitReady(t)
	s, err := e.session()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cli.ContainerRemove(t.Context(), testContainer, container.RemoveOptions{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("err = %v", err)
	}
}
