package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// events subscribes, and returns what waits for the next event. The subscription, which begins when its call arrives, has no answer of
// its own: there is one once a pod is told of. Events of such pods may come first.
func (f *fixture) events() (next func() *runtimeapi.ContainerEventResponse) {
	f.t.Helper()
	stream, err := f.runtime.GetContainerEvents(f.t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	told, ended := make(chan *runtimeapi.ContainerEventResponse, 1000), make(chan error, 1)
	go func() {
		for {
			ev, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			told <- ev
		}
	}()
	for n := 0; len(told) == 0; n++ {
		if err := f.removePod(f.runPod(fmt.Sprintf("subscribed-%d", n))); err != nil {
			f.t.Fatal(err)
		}
		select {
		case err := <-ended:
			f.t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return func() *runtimeapi.ContainerEventResponse {
		f.t.Helper()
		select {
		case ev := <-told:
			return ev
		case err := <-ended:
			f.t.Fatal(err)
		case <-time.After(time.Minute):
			f.t.Fatal("no event comes")
		}
		return nil
	}
}

// An event about one container must not carry the status of another that has no id yet.
func TestEventsLeaveOutWhatIsBeingMade(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("p")
	a := f.startContainer(pod, "p", "a", "sleep", "100")
	next := f.events()
	release := f.engine.Block("CreateContainer")
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = f.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: containerConfig("b", "sleep", "1"), SandboxConfig: f.podConfig("p")})
	}()
	eventually(t, "intent", func() error {
		if len(f.store.Containers()) < 2 {
			return context.DeadlineExceeded
		}
		return nil
	})
	if _, err := f.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: a}); err != nil {
		t.Fatal(err)
	}
	for {
		ev := next()
		for _, c := range ev.ContainersStatuses {
			if c.Id == "" {
				t.Errorf("event %s of %s carries a status without id: %v", ev.ContainerEventType, ev.ContainerId, c)
			}
		}
		if ev.ContainerId == a && ev.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
			return
		}
	}
}
