package docker

import "sync"

// ownActions are the creations and starts under way that this process asked for. Their events need no look: the one who
// asked inspects the container once the request is answered, and tells the watcher what it saw.
type ownActions struct {
	mu sync.Mutex
	// expected maps the name of a container to be created, or the id of one to be started, to the id in its event, "" until
	// that comes.
	expected map[string]string
}

// begin expects the event of an action on a container.
func (a *ownActions) begin(nameOrID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.expected == nil {
		a.expected = map[string]string{}
	}
	a.expected[nameOrID] = ""
}

// covers says whether an event is of an action under way, and remembers its container.
func (a *ownActions) covers(nameOrID, id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.expected[nameOrID]
	if ok {
		a.expected[nameOrID] = id
	}
	return ok
}

// underWay says whether an action on a container is.
func (a *ownActions) underWay(nameOrID string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.expected[nameOrID]
	return ok
}

// end returns the container whose event was kept from the watcher, "" where none was.
func (a *ownActions) end(nameOrID string) (id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id = a.expected[nameOrID]
	delete(a.expected, nameOrID)
	return id
}
