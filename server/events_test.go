package server

import (
	"context"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An event about one container must not carry the status of another that has no id yet.
func TestEventsLeaveOutWhatIsBeingMade(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("p")
	a := f.startContainer(pod, "p", "a", "sleep", "100")
	stream, err := f.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
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
		ev, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
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
