package state

import (
	"testing"
	"time"

	"crishim/engine"
)

// Rows: S67 (part)
func TestAContainerThatSomebodyStartsAgainIsTold(t *testing.T) {
	s := newTestStore(t)
	c := sampleContainer("pod-a", "a")
	must(t, s.PutPod(samplePod("a")))
	must(t, s.PutContainer(c))
	var told []engine.ContainerID
	s.OnRestarted(func(_ string, id engine.ContainerID) { told = append(told, id) })
	sink := s.Sink(c.Engine)
	began := time.Now()
	running := engine.ContainerStatus{ID: c.ID, State: engine.ContainerRunning, StartedAt: began, PID: 1 << 30}
	exited := engine.ContainerStatus{ID: c.ID, State: engine.ContainerExited, StartedAt: began, FinishedAt: began.Add(time.Second), ExitCode: 3}
	again := running
	again.StartedAt = began.Add(2 * time.Second)
	for _, step := range []struct {
		what   string
		status engine.ContainerStatus
		want   int
	}{{"start", running, 0}, {"exit", exited, 0}, {"a late start", running, 0}, {"another start", again, 1}} {
		sink.ContainerChanged(step.status)
		if len(told) != step.want {
			t.Fatalf("after %s %v was told, want %d", step.what, told, step.want)
		}
	}
	sink.Resync(engine.Snapshot{Pods: []engine.PodStatus{{ID: "pod-a", State: engine.PodReady}}, Containers: []engine.ContainerStatus{again}})
	if len(told) != 2 {
		t.Errorf("after a resync %v was told, want 2", told)
	}
	if v, _ := s.Container(c.ID); v.State != engine.ContainerExited || v.Status.ExitCode != 3 {
		t.Errorf("it is %v with exit code %d, want EXITED with 3", v.State, v.Status.ExitCode)
	}
	if !s.Recorded(string(c.ID)) || !s.Recorded("pod-a") || s.Recorded("other") {
		t.Error("Recorded is wrong")
	}
}

// Rows: S67 (part)
func TestAnExitThatAQuickRestartHidIsNoted(t *testing.T) {
	s := newTestStore(t)
	c := sampleContainer("pod-a", "a")
	must(t, s.PutPod(samplePod("a")))
	must(t, s.PutContainer(c))
	told := 0
	s.OnRestarted(func(string, engine.ContainerID) { told++ })
	sink := s.Sink(c.Engine)
	began := time.Now()
	running := engine.ContainerStatus{ID: c.ID, State: engine.ContainerRunning, StartedAt: began, PID: 1 << 30}
	sink.ContainerChanged(running)
	sink.ContainerChanged(running)
	if told != 0 {
		t.Fatalf("told %d times of what did not happen", told)
	}
	again := running
	again.PID, again.StartedAt = 1<<30+1, began.Add(time.Second)
	sink.ContainerChanged(again)
	if v, _ := s.Container(c.ID); told != 1 || v.State != engine.ContainerExited || v.Status.ExitCode != ExitUnknown || v.Status.Reason != ReasonUnknown {
		t.Errorf("told %d times; it is %v with exit code %d, %s", told, v.State, v.Status.ExitCode, v.Status.Reason)
	}
	// Whoever was told could do nothing while the engine was away: it is told again.
	sink.Resync(engine.Snapshot{Pods: []engine.PodStatus{{ID: "pod-a", State: engine.PodReady}}, Containers: []engine.ContainerStatus{again}})
	if told != 2 {
		t.Errorf("told %d times after a resync that still shows it running, want 2", told)
	}
}
