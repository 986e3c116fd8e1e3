package docker

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"crishim/engine"
	"crishim/internal/process"
)

// A container that was restarted before anybody looked is told to have exited as its event said, once.
func TestAnEndBeforeTheLookIsTold(t *testing.T) {
	w := &watcher{died: map[string]death{}}
	at := time.Now()
	w.noteDeath("c", "3", at)
	running := &engine.ContainerStatus{ID: "c", State: engine.ContainerRunning, PID: 5, StartedAt: at.Add(time.Second)}
	ended, ok := w.endBefore(running)
	if !ok || ended.State != engine.ContainerExited || ended.ExitCode != 3 || ended.Reason != engine.ReasonError || !ended.FinishedAt.Equal(at) {
		t.Errorf("got %+v, %v", ended, ok)
	}
	if _, again := w.endBefore(running); again {
		t.Error("it is told twice")
	}
	// The end that the look itself shows needs no telling, nor one after which nothing was started.
	w.noteDeath("c", "0", at)
	if _, ok := w.endBefore(&engine.ContainerStatus{ID: "c", State: engine.ContainerExited}); ok || len(w.died) != 0 {
		t.Error("an exit that was seen is told again")
	}
	w.noteDeath("c", "0", at.Add(2*time.Second))
	if _, ok := w.endBefore(running); ok {
		t.Error("a death after the start is told as one before it")
	}
	// That look was older than the end, and the next one finds the container started anew.
	again := &engine.ContainerStatus{ID: "c", State: engine.ContainerRunning, PID: 6, StartedAt: at.Add(3 * time.Second)}
	if ended, ok := w.endBefore(again); !ok || !ended.FinishedAt.Equal(at.Add(2*time.Second)) || len(w.died) != 0 {
		t.Errorf("the end is lost that came while a look was under way: %+v, %v", ended, ok)
	}
}

// Docker writes a container's labels, which may be its image's, over what its events tell.
func TestALabelIsNotTakenForAnExitCode(t *testing.T) {
	for _, labels := range []map[string]string{nil, {"exitCode": "0"}, {"execID": "theirs"}} {
		f := newFake(t)
		runs := running
		runs.Pid = os.Getpid()
		f.put(testContainer, runs)
		f.mu.Lock()
		maps.Copy(f.containers[testContainer].Config.Labels, labels)
		f.mu.Unlock()
		e, sink := watched(t, f.socket, nil)
		sink.waitReady(t)
		attributes := map[string]string{"exitCode": "42", "execID": "theirs"}
		maps.Copy(attributes, labels)
		ended := e.execs.expect("theirs")
		e.current.Load().watch.note(&events.Message{Type: events.ContainerEventType, Action: events.ActionExecDie, Actor: events.Actor{ID: testContainer, Attributes: attributes}})
		select {
		case code := <-ended:
			if labels != nil {
				t.Errorf("%v: told %d", labels, code)
			}
		default:
			if labels == nil {
				t.Error("the event of a container without such labels is not believed")
			}
		}
	}
}

// lastLook is a sink that notes whether a pod's process had ended by the time that the pod was told not to be ready.
type lastLook struct {
	record
	pid   int
	ticks uint64
	over  atomic.Bool
	told  atomic.Bool
}

func (l *lastLook) PodChanged(p engine.PodStatus) {
	if p.State != engine.PodReady {
		l.told.Store(true)
		if process.Gone(l.pid, l.ticks) {
			l.over.Store(true)
		}
	}
	l.record.PodChanged(p)
}

// The index does not believe that a pod is over whose process runs, as it may where dockerd has forgotten it: the end of that
// process is in no event, and was never told.
func TestAPodWhoseProcessOutlivesItIsToldOfAgain(t *testing.T) {
	cmd, own := sleeper(t)
	f := newFake(t)
	key := engine.PodKey{Name: "p", Namespace: "n", UID: "u"}
	name, _ := podName(key)
	labels := map[string]string{labelType: typeSandbox}
	put := func(state container.State) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.containers[testPod] = container.InspectResponse{
			ContainerJSONBase: &container.ContainerJSONBase{ID: testPod, Name: "/" + name, State: &state, HostConfig: &container.HostConfig{NetworkMode: "host"}},
			Config:            &container.Config{Labels: labels},
		}
	}
	runs := running
	runs.Pid = own.pid
	put(runs)
	dir := t.TempDir()
	e, err := New(Options{Socket: "unix://" + f.socket, RunDir: filepath.Join(dir, "run"), RootDir: filepath.Join(dir, "root")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	sink := &lastLook{pid: own.pid, ticks: own.startTicks}
	ended := make(chan error, 1)
	go func() { ended <- e.Watch(ctx, sink) }()
	defer func() { cancel(); <-ended }()
	sink.waitReady(t)
	put(exited)
	event, err := json.Marshal(events.Message{Type: events.ContainerEventType, Action: events.ActionDie, Actor: events.Actor{
		ID: testPod, Attributes: map[string]string{"name": name, labelType: typeSandbox},
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.send(string(event) + "\n")
	eventually(t, 20*time.Second, "the end is told", sink.told.Load)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, 20*time.Second, "it is told once its process has ended", sink.over.Load)
	looks := f.requests("/containers/" + testPod + "/json")
	time.Sleep(2500 * time.Millisecond)
	if now := f.requests("/containers/" + testPod + "/json"); now > looks+1 {
		t.Errorf("it is looked at for ever: %d times and then %d", looks, now)
	}
}
