package docker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// unreadable is a container whose log cannot be begun before mend: Docker's file is in a folder that cannot be looked into, as
// any cannot be where descriptors or space are gone.
func unreadable(t *testing.T, f *fakeEngine, id string, state container.State) (logPath string, mend func()) {
	t.Helper()
	dir := t.TempDir()
	docker := filepath.Join(dir, "docker")
	if err := os.WriteFile(docker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	json := jsonPath(&facts{rootDir: docker}, engine.ContainerID(id))
	if _, err := os.Stat(json); !errors.Is(err, unix.ENOTDIR) {
		t.Fatal(err)
	}
	logPath = filepath.Join(dir, "pod", "0.log")
	f.put(id, state)
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.containers[id]
	in.LogPath, in.HostConfig.LogConfig.Type, in.Config.Labels[labelLogPath] = json, "json-file", logPath
	return logPath, func() {
		t.Helper()
		if err := os.Remove(docker); err != nil {
			t.Fatal(err)
		}
		dockersLog(t, docker, engine.ContainerID(id), "one", "two")
	}
}

// bothLines says whether the log is the two lines that mend gives the container.
func bothLines(logPath string) bool {
	text, _ := os.ReadFile(logPath)
	return strings.Count(string(text), " F one\n") == 1 && strings.HasSuffix(string(text), " F two\n")
}

// A log that cannot be begun when a container is first seen is tried again at each comparison, though nothing happens to the
// container, and its trouble is told once.
// Rows: R19 (part), R49 (part)
func TestALogThatCouldNotBeBegunIsTriedAgain(t *testing.T) {
	for name, state := range map[string]container.State{"running": running, "exited": exited} {
		t.Run(name, func(t *testing.T) {
			told := captureLog(t)
			f := newFake(t)
			logPath, mend := unreadable(t, f, testContainer, state)
			e, sink := watched(t, f.socket, nil)
			sink.waitReady(t)
			l, id := e.logs.Load(), engine.ContainerID(testContainer)
			if !l.owes(id) || l.complete(id) {
				t.Fatal("the log was begun")
			}
			for range 2 {
				looks := f.requests("/containers/" + testContainer + "/json")
				e.current.Load().watch.reconcile() // as each reconcileEvery
				eventually(t, time.Second, "it is looked at again", func() bool { return f.requests("/containers/"+testContainer+"/json") > looks })
			}
			mend()
			eventually(t, time.Second, "its log is written", func() bool {
				e.current.Load().watch.reconcile()
				return bothLines(logPath) && !l.owes(id)
			})
			if state.Running {
				if err := e.ReopenLog(t.Context(), id); err != nil {
					t.Errorf("its log cannot be rotated: %v", err)
				}
			} else {
				eventually(t, time.Second, "its log is complete", func() bool { return l.complete(id) })
			}
			if n := strings.Count(told.String(), "Cannot write a container's log"); n != 1 {
				t.Errorf("the trouble was told %d times:\n%s", n, told)
			}
		})
	}
}

// A path that is not safe is not mended by time.
func TestALogWhosePathIsNotSafeIsNotTriedAgain(t *testing.T) {
	f := newFake(t)
	logPath, mend := unreadable(t, f, testContainer, running)
	mend()
	if err := os.Symlink("/", filepath.Dir(logPath)); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.containers[testContainer].Config.Labels[labelLogDirectory] = filepath.Dir(filepath.Dir(logPath))
	f.mu.Unlock()
	told := captureLog(t)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	if e.logs.Load().owes(testContainer) || !strings.Contains(told.String(), "Cannot write a container's log") {
		t.Errorf("it is to be tried again, or not told of:\n%s", told)
	}
}

// Docker's file goes with the container: what was not written before is, or that is told, and the container goes all the same.
// Rows: R19 (part)
func TestALogThatCouldNotBeBegunIsWrittenBeforeTheContainerIsRemoved(t *testing.T) {
	remove := func(t *testing.T, f *fakeEngine, e *Engine) {
		t.Helper()
		f.setFail("/containers/"+testContainer+"/kill", 409, `{"message":"it is not running"}`)
		if err := e.RemoveContainer(t.Context(), testContainer); err != nil {
			t.Error(err)
		}
		if n := f.requests("DELETE /containers/" + testContainer); n != 1 {
			t.Errorf("%d requests to remove it", n)
		}
		if e.logs.Load().owes(testContainer) || e.logs.Load().complete(testContainer) {
			t.Error("it is not forgotten")
		}
	}
	const incomplete = "A container is removed before its log is complete"

	t.Run("when it can be", func(t *testing.T) {
		told := captureLog(t)
		f := newFake(t)
		logPath, mend := unreadable(t, f, testContainer, exited)
		e, sink := watched(t, f.socket, nil)
		sink.waitReady(t)
		mend()
		remove(t, f, e)
		if !bothLines(logPath) || strings.Contains(told.String(), incomplete) {
			t.Errorf("its log is not what Docker had:\n%s", told)
		}
	})
	t.Run("when it still cannot be", func(t *testing.T) {
		told := captureLog(t)
		f := newFake(t)
		unreadable(t, f, testContainer, exited)
		e, sink := watched(t, f.socket, nil)
		sink.waitReady(t)
		remove(t, f, e)
		if !strings.Contains(told.String(), incomplete) {
			t.Errorf("that output is lost is not told:\n%s", told)
		}
	})
	t.Run("as a link, which goes too", func(t *testing.T) {
		f := newFake(t)
		e, sink := watched(t, f.socket, func(o *Options) { o.ContainerLog = ContainerLogJSONFile })
		sink.waitReady(t)
		logPath, _ := unreadable(t, f, testContainer, exited)
		remove(t, f, e)
		if _, err := os.Lstat(logPath); !os.IsNotExist(err) {
			t.Errorf("it is left: %v", err)
		}
	})
	t.Run("of one that never ran there is none", func(t *testing.T) {
		f := newFake(t)
		logPath, mend := unreadable(t, f, testContainer, created)
		mend()
		e, sink := watched(t, f.socket, nil)
		sink.waitReady(t)
		remove(t, f, e)
		if _, err := os.Lstat(filepath.Dir(logPath)); !os.IsNotExist(err) {
			t.Errorf("a folder or a log was made: %v", err)
		}
	})
}

// What an action answers is told to the kubelet as the watcher's looks are: a container that it shows exited has its whole log,
// which is read for the termination message, and after which a follower of the log ends.
func TestAnExitThatAnActionTellsHasItsWholeLog(t *testing.T) {
	for name, ask := range map[string]func(*testing.T, *Engine) (engine.ContainerStatus, error){
		"status": func(t *testing.T, e *Engine) (engine.ContainerStatus, error) {
			t.Helper()
			return e.ContainerStatus(t.Context(), testContainer)
		},
		"start": func(t *testing.T, e *Engine) (engine.ContainerStatus, error) {
			t.Helper()
			return e.StartContainer(t.Context(), testContainer, &engine.ContainerSpec{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.setFail("/containers/"+testContainer+"/start", 204, "")
			logPath, mend := unreadable(t, f, testContainer, running)
			mend()
			e, sink := watched(t, f.socket, nil)
			sink.waitReady(t)
			f.mu.Lock()
			f.containers[testContainer].State = &container.State{Status: "exited", ExitCode: 4, StartedAt: exited.StartedAt, FinishedAt: exited.FinishedAt}
			f.mu.Unlock() // and no event comes
			status, err := ask(t, e)
			if err != nil || status.State != engine.ContainerExited {
				t.Fatal(status, err)
			}
			if err := e.ReopenLog(t.Context(), testContainer); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("its log is still being written: %v", err)
			}
			if !bothLines(logPath) {
				t.Error("its log is not what Docker had")
			}
		})
	}
}
