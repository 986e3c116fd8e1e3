package server

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// slowToList is an engine that is well and has not yet told what it holds.
type slowToList struct {
	engine.Engine
	list chan struct{}
}

func (e slowToList) Watch(ctx context.Context, sink engine.Sink) error {
	return e.Engine.Watch(ctx, heldSink{sink, ctx, e.list})
}

type heldSink struct {
	engine.Sink
	ctx  context.Context
	list chan struct{}
}

func (s heldSink) Resync(snapshot engine.Snapshot) {
	select {
	case <-s.list:
		s.Sink.Resync(snapshot)
	case <-s.ctx.Done():
	}
}

// Who is told that the runtime is ready is not refused by his next call.
func TestRuntimeIsNotReadyBeforeCallsAreAnswered(t *testing.T) {
	f := newFixture(t)
	f.stop()
	list := make(chan struct{})
	f.wrap = func(e engine.Engine) engine.Engine { return slowToList{e, list} }
	f.begin()
	ready := func() *runtimeapi.RuntimeCondition {
		st, err := f.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return st.Status.Conditions[0]
	}
	eventually(t, "the engine to be well", func() error {
		if h := f.store.Health(f.engine.Name()); !h.Ready {
			return fmt.Errorf("%v", h)
		}
		return nil
	})
	if c := ready(); c.Status || c.Reason != "Recovering" {
		t.Errorf("while what runs is not known, RuntimeReady is %v", c)
	}
	_, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	wantCode(t, "ListPodSandbox", err, codes.Unavailable)
	// Which metrics there are depends on the host alone. A kubelet asks once, at its own start, and has none of any container
	// until its next one where it gets no answer.
	if d, err := f.runtime.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{}); err != nil || len(d.Descriptors) == 0 {
		t.Errorf("the metrics that there are: %v, %v", d, err)
	}
	// A kubelet asks for events at its start, five times in a row, and then never again. There is nothing to tell yet.
	events, err := f.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 1)
	happened := make(chan *runtimeapi.ContainerEventResponse, 10)
	go func() {
		for {
			ev, err := events.Recv()
			if err != nil {
				refused <- err
				return
			}
			happened <- ev
		}
	}()
	select {
	case err := <-refused:
		t.Fatalf("the stream of events: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if closed(f.server.Settled()) {
		t.Error("the start is over before the engine has told what it holds")
	}
	close(list)
	eventually(t, "RuntimeReady", func() error {
		if c := ready(); !c.Status {
			return fmt.Errorf("%v", c)
		}
		return nil
	})
	if _, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil {
		t.Error(err)
	}
	for n, told := 0, false; !told; n++ {
		f.runPod(fmt.Sprintf("pod%d", n)) // until the stream, which nothing says that it has begun, tells of one
		select {
		case <-happened:
			told = true
		case err := <-refused:
			t.Fatalf("the stream of events: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A unit whose start waits for dockerd would be ended and started anew for as long.
func TestTheStartIsOverWhenEveryEngineSaysThatItIsAway(t *testing.T) {
	b := newBoth(t)
	pod := b.runOn("pod", "")
	b.stop()
	b.engine.SetHealth(false)
	b.second.SetHealth(false)
	b.begin()
	eventually(t, "the end of the start", func() error {
		if !closed(b.server.Settled()) {
			return errors.New("it goes on")
		}
		return nil
	})
	if closed(b.server.Recovered()) {
		t.Error("what no engine has told is known")
	}
	_, err := b.states()
	wantCode(t, "ListPodSandbox", err, codes.Unavailable)
	_, err = b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: b.podConfig("early")})
	wantCode(t, "RunPodSandbox", err, codes.Unavailable)
	if c := b.conditions()[runtimeapi.RuntimeReady]; c.Status {
		t.Errorf("%v", c)
	}
	b.engine.SetHealth(true)
	b.waitRecovered()
	if states, err := b.states(); err != nil || states[pod] != ready {
		t.Errorf("%v, %v", states, err)
	}
}
