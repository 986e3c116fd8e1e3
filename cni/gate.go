package cni

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// gate lets any number of ADD, DEL and CHECK pass, or one GC alone: the CNI specification wants GC exclusive. The zero
// value is open.
type gate struct {
	mu     sync.Mutex
	inside int
	closed chan struct{} // non-nil while a GC is alone inside; closed when it ends
}

// enter waits while a GC runs.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	for {
		g.mu.Lock()
		wait := g.closed
		if wait == nil {
			g.inside++
			g.mu.Unlock()
			return g.leave, nil
		}
		g.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
}

// enterAlone never waits.
func (g *gate) enterAlone() (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside > 0 || g.closed != nil {
		return nil, fmt.Errorf("pods are being attached or detached: %w", errdefs.ErrUnavailable)
	}
	g.closed = make(chan struct{})
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(g.closed)
		g.closed = nil
	}, nil
}
