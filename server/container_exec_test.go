package server

import (
	"context"
	"io"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/engine/enginetest"
	"crishim/streaming"
)

// attachSpy tells how an engine is asked to attach.
type attachSpy struct {
	engine.Engine
	asked chan engine.Streams
}

func (s attachSpy) Attach(_ context.Context, _ engine.ContainerID, streams *engine.Streams) error {
	s.asked <- *streams
	return nil
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

// An engine's output is taken for what it is: one of a terminal has no frames, whatever the client thinks.
func TestAnAttachIsAsTheContainerIs(t *testing.T) {
	spy := attachSpy{asked: make(chan engine.Streams, 1)}
	f := &fixture{t: t, root: t.TempDir(), network: &fakeNetwork{attached: map[string]bool{}}}
	f.engine = enginetest.NewMemory(enginetest.Options{})
	t.Cleanup(f.engine.Close)
	f.engine.AddImage(enginetest.NewImage(testImage))
	f.wrap = func(e engine.Engine) engine.Engine { spy.Engine = e; return spy }
	f.start()
	t.Cleanup(func() { f.stop() })
	pod := f.runPod("p")
	for name, terminal := range map[string]bool{"terminal": true, "plain": false} {
		config := containerConfig(name, "sleep", "100")
		config.Tty = terminal
		reply, err := f.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: f.podConfig("p")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: reply.ContainerId}); err != nil {
			t.Fatal(err)
		}
		// The client takes it for the other kind.
		streams := streaming.Streams{Stdout: discard{io.Discard}, TTY: !terminal}
		if terminal {
			streams.Stderr = discard{io.Discard}
		} else {
			streams.Resize = make(chan streaming.TerminalSize)
		}
		if err := f.server.StreamRuntime().Attach(t.Context(), reply.ContainerId, streams); err != nil {
			t.Fatal(err)
		}
		if got := <-spy.asked; got.TTY != terminal || got.Stderr != nil || got.Resize != nil || got.Stdout == nil {
			t.Errorf("%s: attached with %+v", name, got)
		}
	}
}

// Of a container that its engine could only list so far nobody here knows whether it has a terminal: the client's word counts.
func TestAnAttachToWhatWasOnlyListedIsAsTheClientAsks(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	pod := f.runPod("old")
	config := containerConfig("c", "sleep", "100")
	config.Tty = true
	made, err := f.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: f.podConfig("old")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.corruptRecord("pods", "uid-old")
	f.corruptRecord("containers", pod)
	look := make(chan struct{})
	t.Cleanup(func() { close(look) })
	spy := attachSpy{asked: make(chan engine.Streams, 1)}
	f.wrap = func(e engine.Engine) engine.Engine { spy.Engine = &listedFirst{e, look}; return spy }
	f.start()
	if err := f.server.StreamRuntime().Attach(t.Context(), made.ContainerId, streaming.Streams{Stdout: discard{io.Discard}, TTY: true}); err != nil {
		t.Fatal(err)
	}
	if got := <-spy.asked; !got.TTY {
		t.Errorf("attached with %+v", got)
	}
}
