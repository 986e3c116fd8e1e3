package docker

import (
	"testing"
	"time"

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
}
