package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// logged is a container that has said two lines, and the path of its log.
func logged(t *testing.T, f *fakeEngine, id string, state container.State) (logPath string) {
	t.Helper()
	dir := t.TempDir()
	json := dockersLog(t, filepath.Join(dir, "docker"), engine.ContainerID(id), "one", "two")
	logPath = filepath.Join(dir, "pod", "0.log")
	if err := os.Mkdir(filepath.Dir(logPath), 0o700); err != nil {
		t.Fatal(err)
	}
	f.put(id, state)
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.containers[id]
	in.LogPath, in.HostConfig.LogConfig.Type, in.Config.Labels[labelLogPath] = json, "json-file", logPath
	return logPath
}

// frozen makes an empty log of which no open returns before thaw, as on a frozen disk: somebody has a lease on it.
func frozen(t *testing.T, logPath string) (thaw func()) {
	t.Helper()
	file, err := os.OpenFile(logPath, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() { _ = file.Close() })
	t.Cleanup(thaw)
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	return thaw
}

func briefly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// The disk of a container's log hangs, and the container goes: what happens to others is told all the same, also after a loss of the
// engine, and when the disk answers nothing is left of it.
// Rows: R28
func TestTheLogOfARemovedContainerThatHangsHoldsUpNobody(t *testing.T) {
	f := newFake(t)
	logPath := logged(t, f, testContainer, running)
	f.put(otherContainer, running)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	eventually(t, time.Second, "its log is written", func() bool { return bothLines(logPath) })
	if err := os.Rename(logPath, logPath+".1"); err != nil {
		t.Fatal(err)
	}
	thaw := frozen(t, logPath)
	if err := e.ReopenLog(briefly(t), testContainer); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("its log does not hang: %v", err)
	}

	gone := f.event(testContainer, events.ActionDestroy)
	f.mu.Lock()
	delete(f.containers, testContainer)
	f.mu.Unlock()
	f.send(gone)
	eventually(t, time.Second, "the removal is told", func() bool { return sink.container(testContainer).ID == "" })
	f.put(otherContainer, exited)
	f.send(f.event(otherContainer, events.ActionDie))
	eventually(t, time.Second, "another's exit is told", func() bool { return sink.container(otherContainer).ExitCode == 4 })
	f.end()
	eventually(t, 30*time.Second, "a resync", func() bool { return sink.resynced() > 1 && sink.last().Ready })
	f.setFail("/containers/"+testContainer+"/kill", 404, `{"message":"No such container"}`)
	if err := e.RemoveContainer(t.Context(), testContainer); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
	known := func() bool {
		t.Helper()
		ids, err := e.logs.Load().pumps.Known()
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(ids, testContainer)
	}
	if !known() {
		t.Error("it does not hang any more")
	}
	thaw()
	eventually(t, time.Second, "nothing is left of it", func() bool { return !known() })
}

// The logs of many containers cannot be begun, as their disk hangs: a daemon that is started then serves, and tells what happens to
// others. What asks for one of those logs ends with its context. When the disk answers they are begun, but of who is gone.
// Rows: R28
func TestLogsThatCannotBeOpenedHoldUpNobody(t *testing.T) {
	f := newFake(t)
	var ids, paths []string
	var thaws []func()
	for i := range inspectors + 1 {
		id := fmt.Sprintf("%064x", 0xa0+i)
		path := logged(t, f, id, running)
		ids, paths, thaws = append(ids, id), append(paths, path), append(thaws, frozen(t, path))
	}
	f.put(otherContainer, running)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	l := e.logs.Load()
	for _, id := range ids {
		if !l.owes(engine.ContainerID(id)) {
			t.Errorf("the log of %s does not hang, or is not to be tried again", id)
		}
	}
	e.current.Load().watch.reconcile() // as each reconcileEvery
	f.put(otherContainer, exited)
	f.send(f.event(otherContainer, events.ActionDie))
	eventually(t, finishLimit/20, "another's exit is told before a look at one of them would end", func() bool {
		return sink.container(otherContainer).ExitCode == 4
	})

	gone, stays := engine.ContainerID(ids[0]), engine.ContainerID(ids[1])
	_, err := e.StartContainer(briefly(t), stays, &engine.ContainerSpec{LogPath: paths[1], LogDirectory: filepath.Dir(paths[1])})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a start: %v", err)
	}
	f.setFail("/containers/"+ids[1]+"/kill", 409, `{"message":"it is not running"}`)
	if err := e.RemoveContainer(briefly(t), stays); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a removal: %v", err)
	}
	destroyed := f.event(ids[0], events.ActionDestroy)
	f.mu.Lock()
	delete(f.containers, ids[0])
	f.mu.Unlock()
	f.send(destroyed)
	eventually(t, time.Second, "a removal is told", func() bool { return sink.container(gone).ID == "" })
	time.Sleep(forgetLimit + 100*time.Millisecond) // nobody waits for it any more
	for _, thaw := range thaws {
		thaw()
	}
	eventually(t, time.Second, "their logs are written", func() bool {
		e.current.Load().watch.reconcile()
		return !slices.ContainsFunc(ids[1:], func(id string) bool { return l.owes(engine.ContainerID(id)) }) && !slices.ContainsFunc(paths[1:], func(path string) bool { return !bothLines(path) })
	})
	eventually(t, time.Second, "nothing is left of who is gone", func() bool {
		_, opens := l.opening.Load(gone)
		return !opens && !l.pumps.Knows(ids[0]) && errdefs.IsFailedPrecondition(l.pumps.Reopen(t.Context(), ids[0]))
	})
}
