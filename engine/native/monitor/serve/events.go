package serve

import (
	"sync"

	"crishim/engine/native/monitor"
)

// eventQueue is how far a subscriber may lag behind, beside the states at its start.
const eventQueue = 256

// events hands changes to subscribers.
type events struct {
	states func() []monitor.State

	mu   sync.Mutex
	subs map[chan monitor.Event]struct{}
}

// publish reads the container's state with mu held, so that events of one container are in order.
func (e *events) publish(kind monitor.EventType, state func() monitor.State) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.subs) == 0 {
		return
	}
	event := monitor.Event{Type: kind, State: state()}
	for sub := range e.subs {
		select {
		case sub <- event:
		default:
			// It subscribes again and gets the states.
			delete(e.subs, sub)
			close(sub)
		}
	}
}

func (e *events) subscribe() chan monitor.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	states := e.states()
	sub := make(chan monitor.Event, eventQueue+len(states))
	for _, state := range states {
		sub <- monitor.Event{Type: monitor.EventState, State: state}
	}
	sub <- monitor.Event{Type: monitor.EventSynced}
	if e.subs == nil {
		e.subs = map[chan monitor.Event]struct{}{}
	}
	e.subs[sub] = struct{}{}
	return sub
}

func (e *events) unsubscribe(sub chan monitor.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.subs, sub)
}

func (c *call) subscribe() (any, error) {
	gone := c.gone(nil)
	sub := c.server.events.subscribe()
	defer c.server.events.unsubscribe(sub)
	for {
		select {
		case <-gone.Done():
			return nil, errAnswered
		case event, ok := <-sub:
			if !ok || c.reply(event, nil) != nil {
				return nil, errAnswered
			}
		}
	}
}
