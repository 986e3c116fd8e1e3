package native

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// events hands what happens to the sink that watches, in order. Nobody who reports waits for the sink.
type events struct {
	mu    sync.Mutex
	watch bool
	queue []func(engine.Sink)
	more  chan struct{}
}

// push is for changes; without a watcher they are dropped, its first snapshot has them.
func (ev *events) push(event func(engine.Sink)) {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	if !ev.watch {
		return
	}
	ev.queue = append(ev.queue, event)
	select {
	case ev.more <- struct{}{}:
	default:
	}
}

// deliver says that the engine is ready, tells the snapshot and then what is pushed, until ctx ends.
func (ev *events) deliver(ctx context.Context, sink engine.Sink, snapshot func() engine.Snapshot) error {
	ev.mu.Lock()
	if ev.watch {
		ev.mu.Unlock()
		return fmt.Errorf("watch: somebody watches already: %w", errdefs.ErrFailedPrecondition)
	}
	ev.watch, ev.queue, ev.more = true, nil, make(chan struct{}, 1)
	ev.mu.Unlock()
	defer func() {
		ev.mu.Lock()
		defer ev.mu.Unlock()
		ev.watch, ev.queue = false, nil
	}()
	sink.Health(engine.Health{Ready: true})
	// What changes while the snapshot is taken is queued, and told after it once more.
	sink.Resync(snapshot())
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ev.more:
		}
		ev.mu.Lock()
		queue := ev.queue
		ev.queue = nil
		ev.mu.Unlock()
		for _, event := range queue {
			event(sink)
		}
	}
}
