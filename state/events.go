package state

import (
	"fmt"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
)

// EventType is CRI ContainerEventType.
type EventType string

// The types of events.
const (
	EventCreated EventType = "CREATED"
	EventStarted EventType = "STARTED"
	EventStopped EventType = "STOPPED"
	EventDeleted EventType = "DELETED"
)

// Event is one change of a pod (Container is "") or of a container.
type Event struct {
	Type      EventType
	Pod       engine.PodID
	Container engine.ContainerID
	// Time is when the store learnt of it.
	Time time.Time
	// PodView and Containers are the pod and all its containers right after the change, what was deleted left out
	// (CRI ContainerEventResponse wants both). PodFound is false where the pod is gone or unknown.
	PodView    PodView
	PodFound   bool
	Containers []ContainerView
}

// Subscription is one reader of events, in order and without gaps from Subscribe on.
type Subscription struct {
	store  *Store
	events chan Event
	err    error // guarded by store.mu
}

// Subscribe adds a reader that may fall buffer events behind; one that falls further behind is closed with an error, so
// that it relists, and disturbs nobody else. Close it when done.
func (s *Store) Subscribe(buffer int) *Subscription {
	sub := &Subscription{store: s, events: make(chan Event, max(buffer, 1))}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		sub.err = fmt.Errorf("subscribe to events: the store is closed: %w", errdefs.ErrUnavailable)
		close(sub.events)
		return sub
	}
	s.subscriptions[sub] = struct{}{}
	return sub
}

// Events is closed when the subscription ends; Err then says why.
func (sub *Subscription) Events() <-chan Event { return sub.events }

// Err is nil while the subscription is open and after Close; ErrResourceExhausted after it fell behind, ErrUnavailable
// after the store was closed.
func (sub *Subscription) Err() error {
	sub.store.mu.RLock()
	defer sub.store.mu.RUnlock()
	return sub.err
}

// Close ends the subscription.
func (sub *Subscription) Close() {
	sub.store.mu.Lock()
	defer sub.store.mu.Unlock()
	sub.end(nil)
}

// end requires store.mu.
func (sub *Subscription) end(err error) {
	if _, open := sub.store.subscriptions[sub]; !open {
		return
	}
	delete(sub.store.subscriptions, sub)
	sub.err = err
	close(sub.events)
}

// emit requires mu.
func (s *Store) emit(typ EventType, pod engine.PodID, container engine.ContainerID) {
	if len(s.subscriptions) == 0 {
		return
	}
	ev := Event{Type: typ, Pod: pod, Container: container, Time: time.Now(), Containers: s.containersOf(pod)}
	if e := s.pods.byID[string(pod)]; e != nil {
		ev.PodView, ev.PodFound = podView(e), true
	}
	for sub := range s.subscriptions {
		select {
		case sub.events <- ev:
		default:
			sub.end(fmt.Errorf("the reader fell %d events behind; list and subscribe again: %w", cap(sub.events), errdefs.ErrResourceExhausted))
		}
	}
}

// stage is what events are made of: the last thing a reader was told of an object.
type stage int

const (
	stageNone stage = iota
	stageCreated
	stageStarted
	stageStopped
)

// emitStages tells what happened between two stages. ran says that the object was started, also where that was not seen.
// It requires mu.
func (s *Store) emitStages(from, to stage, ran bool, pod engine.PodID, container engine.ContainerID) {
	if from < stageCreated && to >= stageCreated {
		s.emit(EventCreated, pod, container)
	}
	if from < stageStarted && (to == stageStarted || to == stageStopped && ran) {
		s.emit(EventStarted, pod, container)
	}
	if from < stageStopped && to == stageStopped {
		s.emit(EventStopped, pod, container)
	}
}
