package docker

import (
	"maps"
	"os"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"

	"crishim/engine"
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
