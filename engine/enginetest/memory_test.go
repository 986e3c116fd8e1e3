package enginetest

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
)

func memoryFixture(t *testing.T) Fixture {
	m := NewMemory(Options{
		Images: []engine.Image{NewImage("test")}, Registry: []engine.Image{NewImage("registry.test/pulled:1")}, NetNSDir: t.TempDir(),
	})
	t.Cleanup(func() {
		if pods, containers := m.PodIDs(), m.ContainerIDs(); len(pods)+len(containers) != 0 {
			t.Errorf("left: %v, %v", pods, containers)
		}
		m.Close()
	})
	return Fixture{
		Engine: m, Image: "test", Commands: MemoryCommands(), Pullable: "registry.test/pulled:1",
		Resources: func(_ *testing.T, id engine.ContainerID) engine.Resources {
			r, _ := m.Resources(id)
			return r
		},
		Forget: func(_ *testing.T, id engine.ContainerID) { m.Forget(string(id)) },
		Gap:    func(_ *testing.T, during func()) { m.Gap(during) },
	}
}

func TestMemoryKeepsTheContract(t *testing.T) {
	Run(t, memoryFixture)
}

func TestFaultsHappenOnceAndAtTheirStep(t *testing.T) {
	m := NewMemory(Options{})
	broken := errors.New("broken")
	m.FailOnce("CreatePod", broken)
	m.FailOnce("CreatePod.after", broken)
	spec := &engine.PodSpec{Key: engine.PodKey{Name: "p"}}
	for i, left := range []int{0, 1} {
		if _, err := m.CreatePod(t.Context(), spec); err != broken || len(m.PodIDs()) != left {
			t.Errorf("call %d: %v, %d pods", i, err, len(m.PodIDs()))
		}
	}
	id, err := m.CreatePod(t.Context(), spec)
	if err != nil || len(m.PodIDs()) != 1 {
		t.Errorf("third call: %v, %d pods", err, len(m.PodIDs()))
	}
	release := m.Block("PodStatus")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := m.PodStatus(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("blocked: %v", err)
	}
	done := make(chan error, 1)
	go func() { _, err := m.PodStatus(t.Context(), id); done <- err }()
	release()
	release()
	if err := <-done; err != nil {
		t.Errorf("released: %v", err)
	}
	m.Delay("PodStatus", time.Hour)
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := m.PodStatus(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("delayed: %v", err)
	}
	if m.Calls("CreatePod") != 3 {
		t.Errorf("%d calls", m.Calls("CreatePod"))
	}
}

func TestAnEngineThatIsAwayAnswersUnavailableAndComesBackTrue(t *testing.T) {
	s := &suite{T: t, Fixture: memoryFixture(t), seen: newRecorder()}
	s.start()
	m := s.Engine.(*Memory)
	id := s.runContainer(s.containerSpec([]string{"run"}))
	m.SetHealth(false)
	s.eventually("the absence is told", func() bool { return !s.seen.ready() })
	if _, err := m.ContainerStatus(t.Context(), id); !errdefs.IsUnavailable(err) {
		t.Errorf("status: %v", err)
	}
	m.SetOOM(id)
	m.Exit(id, 137)
	if c, _ := s.seen.container(id); c.State == engine.ContainerExited {
		t.Error("an event came while the engine was away")
	}
	m.SetHealth(true)
	s.eventually("the exit is told", func() bool {
		c, _ := s.seen.container(id)
		return c.State == engine.ContainerExited && c.ExitCode == 137 && c.Reason == engine.ReasonOOMKilled
	})
}

func TestAPodThatDiesIsTold(t *testing.T) {
	s := &suite{T: t, Fixture: memoryFixture(t), seen: newRecorder()}
	s.start()
	id, _ := s.runPod()
	s.Engine.(*Memory).KillPod(id)
	s.eventually("the pod is not ready", func() bool { p, _ := s.seen.pod(id); return p.State == engine.PodNotReady })
}

func TestWordsOfTheFakeShell(t *testing.T) {
	s := &suite{T: t, Fixture: memoryFixture(t), seen: newRecorder()}
	s.start()
	id := s.runContainer(s.containerSpec(nil)) // the image's own entrypoint
	for _, c := range []struct {
		argv []string
		code int
		out  string
	}{
		{[]string{"true"}, 0, ""},
		{[]string{"/bin/false"}, 1, ""},
		{[]string{"echo", "a", "b"}, 0, "a b\n"},
		{[]string{"sh", "-c", "echo a; exit 4; echo b"}, 4, "a\n"},
		{[]string{"/bin/sh", "-c", "nothing"}, 127, ""},
		{[]string{"sleep", "0.01"}, 0, ""},
	} {
		out := &lockedBuffer{}
		code, err := s.Engine.Exec(t.Context(), id, &engine.ExecSpec{Command: c.argv, Streams: engine.Streams{Stdout: out}})
		if err != nil || code != c.code || out.String() != c.out {
			t.Errorf("%q: %d, %v, %q", c.argv, code, err, out)
		}
	}
	m := s.Engine.(*Memory)
	m.opts.Info.Features.Checkpoint = true
	if err := m.CheckpointContainer(t.Context(), id, filepath.Join(t.TempDir(), "c")); err != nil {
		t.Errorf("checkpoint: %v", err)
	}
}
