package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/state"
	"crishim/translator"
)

// eventBuffer is how many events a subscriber may be behind before it is cut off to relist (≤ 4 MiB of views).
const eventBuffer = 1000

// GetContainerEvents streams what happens to pods and containers from now on, for the kubelet's evented PLEG. A client
// that stops reading is disconnected with ResourceExhausted and disturbs nobody else. Before recovery has ended it waits: a
// kubelet that is refused asks again a few times at once, and then never until its next start.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	select {
	case <-s.recovered:
	case <-stream.Context().Done():
		return stream.Context().Err()
	case <-s.ended:
		return context.Canceled
	}
	sub := s.store.Subscribe(eventBuffer)
	defer sub.Close()
	for {
		select {
		case ev, open := <-sub.Events():
			if !open {
				return sub.Err()
			}
			if err := stream.Send(eventReply(ev)); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.ended:
			return context.Canceled
		}
	}
}

// eventReply: an event of the sandbox itself carries the sandbox's id as container_id, as containerd's do.
func eventReply(ev state.Event) *runtimeapi.ContainerEventResponse {
	id := string(ev.Container)
	if id == "" {
		id = string(ev.Pod)
	}
	var pod *translator.PodView
	if ev.PodFound {
		pod = new(podView(&ev.PodView))
	}
	containers := make([]translator.ContainerView, 0, len(ev.Containers))
	for i := range ev.Containers {
		if ev.Containers[i].ID == "" {
			continue // an intent: nothing that a caller could name
		}
		containers = append(containers, containerView(&ev.Containers[i]))
	}
	return translator.EventReply(eventTypes[ev.Type], id, ev.Time, pod, containers)
}

var eventTypes = map[state.EventType]runtimeapi.ContainerEventType{
	state.EventCreated: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
	state.EventStarted: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	state.EventStopped: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	state.EventDeleted: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}
