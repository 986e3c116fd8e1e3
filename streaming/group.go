package streaming

import "sync"

// group counts what runs and can be closed: what has not begun by then does not begin any more. The zero value is open.
type group struct {
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // added to under mu while open
}

// begin counts one in and returns true, unless the group is closed. The caller then calls done.
func (g *group) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.running.Add(1)
	return true
}

func (g *group) done() { g.running.Done() }

func (g *group) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// wait waits for all that has begun. The group is closed before.
func (g *group) wait() { g.running.Wait() }

// waited is closed once wait has returned.
func (g *group) waited() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.wait()
	}()
	return done
}
