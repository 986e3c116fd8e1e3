package image

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// flights joins work on the same thing. The zero value is ready.
type flights[T any] struct {
	mu    sync.Mutex
	byKey map[string]*flight[T]
	// running counts work that has not ended, also such that nobody waits for any more.
	running sync.WaitGroup
}

// flight is one piece of work with everybody who waits for it. It ends when it is done, or when nobody waits any more.
type flight[T any] struct {
	progress *progress
	cancel   context.CancelFunc
	waiters  int // guarded by flights.mu

	done  chan struct{} // closed when value and err are set
	value T
	err   error
}

// do joins the work of key, or starts it. It outlives the caller that started it while others wait. Each caller leaves
// when its context ends, or after noProgress without progress if that is not 0; parent, if any, takes part in the
// progress and, if it is the last to leave, waits for the end. started says that the work was this caller's, with what it brought.
func (f *flights[T]) do(ctx context.Context, key string, noProgress time.Duration, parent *progress, work func(context.Context, *progress) (T, error)) (value T, started bool, err error) {
	joined, started := f.join(ctx, key, work)
	if parent != nil {
		parent.attach(joined.progress)
	}
	err = joined.wait(ctx, noProgress)
	if last := f.leave(key, joined); last && parent != nil {
		<-joined.done // it clears up after itself, and that is part of the parent's work
	}
	if err != nil {
		return value, started, err
	}
	return joined.value, started, joined.err
}

func (f *flights[T]) join(ctx context.Context, key string, work func(context.Context, *progress) (T, error)) (joined *flight[T], started bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if joined := f.byKey[key]; joined != nil {
		joined.waiters++
		return joined, false
	}
	joined = &flight[T]{progress: newProgress(), waiters: 1, done: make(chan struct{})}
	if f.byKey == nil {
		f.byKey = map[string]*flight[T]{}
	}
	f.byKey[key] = joined
	ctx, joined.cancel = context.WithCancel(context.WithoutCancel(ctx))
	f.running.Go(func() {
		defer joined.cancel()
		joined.value, joined.err = work(ctx, joined.progress)
		f.forget(key, joined) // first, so that whoever sees the end and tries again starts anew
		close(joined.done)
	})
	return joined, true
}

// wait waits for the end of the work. An error is the caller's own reason to leave before it.
func (f *flight[T]) wait(ctx context.Context, noProgress time.Duration) error {
	var idle <-chan time.Time // never, without a limit
	var timer *time.Timer
	if noProgress > 0 {
		timer = time.NewTimer(f.progress.left(noProgress))
		defer timer.Stop()
		idle = timer.C
	}
	for {
		select {
		case <-f.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-idle:
			left := f.progress.left(noProgress)
			if left <= 0 {
				return fmt.Errorf("nothing came for %v: %w", noProgress, context.DeadlineExceeded)
			}
			timer.Reset(left)
		}
	}
}

// leave takes one waiter off; the last one ends the work, which nobody can join from then on.
func (f *flights[T]) leave(key string, joined *flight[T]) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if joined.waiters--; joined.waiters == 0 {
		joined.cancel()
		if f.byKey[key] == joined {
			delete(f.byKey, key)
		}
	}
	return joined.waiters == 0
}

func (f *flights[T]) forget(key string, joined *flight[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byKey[key] == joined {
		delete(f.byKey, key)
	}
}
