package docker

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"crishim/engine"
)

// Another shim links the log of a container a moment after it has started it, in the place of whatever is there: what we write
// before would be lost. Its log is begun once it is linked, also where the container is adopted meanwhile.
func TestTheLogOfAnotherShimsContainerWaitsForItsLink(t *testing.T) {
	dir := t.TempDir()
	id := engine.ContainerID(testContainer)
	json, path := dockersLog(t, dir, id, "one"), filepath.Join(dir, "0.log")
	var recorded atomic.Bool
	e := &Engine{opts: Options{RootDir: dir, ContainerLog: ContainerLogCRI, Recorded: func(string) bool { return recorded.Load() }}}
	l, err := newLogs(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	e.logs.Store(l)
	defer l.close()
	in := &container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{ID: testContainer, LogPath: json, HostConfig: &container.HostConfig{LogConfig: container.LogConfig{Type: "json-file"}}},
		Config:            &container.Config{Labels: map[string]string{labelLogPath: path, labelLogDirectory: dir}},
	}
	status := &engine.ContainerStatus{ID: id, State: engine.ContainerRunning, StartedAt: time.Now()}
	begun := func() bool {
		t.Helper()
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
			return false
		}
		if err := l.finish(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.HasSuffix(string(text), " stdout F one\n")
	}
	if !l.follow(t.Context(), in, status) || begun() {
		t.Error("its log was begun before it was linked")
	}
	recorded.Store(true)
	if !l.follow(t.Context(), in, status) || begun() {
		t.Error("its log was begun when it was adopted, and not linked yet")
	}
	if err := os.Symlink(json, path); err != nil {
		t.Fatal(err)
	}
	if l.follow(t.Context(), in, status) || !begun() {
		t.Error("its log was not begun when it was linked")
	}

	// One of an old start, and one of our own, wait for nobody.
	for _, row := range []struct {
		started  time.Time
		recorded bool
	}{{time.Now().Add(-time.Hour), false}, {time.Now(), true}} {
		if err := l.forget(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		recorded.Store(row.recorded)
		status.StartedAt = row.started
		if l.follow(t.Context(), in, status) || !begun() {
			t.Errorf("the log of %+v was not begun", row)
		}
	}
}
