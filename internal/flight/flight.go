// Package flight joins callers who want the same work done: it is done once, for all of them.
//
// A Group has the work of one kind, by key. Work goes on while anybody waits for it, also after the caller who began it has left,
// and ends when nobody does. Each caller leaves by its own context, or when the work makes no progress for longer than it is
// willing to wait.
package flight

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

// Progress is what a piece of work last did; it is made at its start.
type Progress interface {
	// Left is how long the work may still go on without progress under the limit; 0 or less when it was too long already.
	Left(limit time.Duration) time.Duration
}

// Group joins work that has progress P and a result T.
type Group[P Progress, T any] struct {
	begin func() P

	mu    sync.Mutex
	byKey map[string]*flight[P, T]
	// running counts work that has not ended, also such that nobody waits for any more.
	running sync.WaitGroup
}

// New is a group without work; begin makes the progress of each new one.
func New[T any, P Progress](begin func() P) *Group[P, T] {
	return &Group[P, T]{begin: begin, byKey: map[string]*flight[P, T]{}}
}

// Work is what is done. Its context has the values of the first caller's, and ends when nobody waits any more.
type Work[P Progress, T any] func(context.Context, P) (T, error)

// flight is one piece of work with everybody who waits for it.
type flight[P Progress, T any] struct {
	progress P
	cancel   context.CancelFunc
	waiters  int // guarded by Group.mu

	done  chan struct{} // closed when value and err are set
	value T
	err   error
}

// Do joins the work of key, or starts it. The caller leaves when its context ends, or after noProgress without progress if that
// is not 0.
func (g *Group[P, T]) Do(ctx context.Context, key string, noProgress time.Duration, work Work[P, T]) (T, error) {
	joined, _ := g.join(ctx, key, work)
	err := joined.wait(ctx, noProgress)
	g.leave(key, joined)
	return joined.result(err)
}

// DoPart is Do of what is a part of the caller's own work: take gets its progress, and a caller who is the last to leave waits
// until it has cleared up after itself. started says that the work was this caller's, with what it brought.
func (g *Group[P, T]) DoPart(ctx context.Context, key string, take func(P), work Work[P, T]) (value T, started bool, err error) {
	joined, started := g.join(ctx, key, work)
	take(joined.progress)
	err = joined.wait(ctx, 0)
	if last := g.leave(key, joined); last {
		<-joined.done
	}
	value, err = joined.result(err)
	return value, started, err
}

// Wait waits until all work has ended, also such that nobody waits for.
func (g *Group[P, T]) Wait() { g.running.Wait() }

// Waiting is how many callers wait.
func (g *Group[P, T]) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, f := range g.byKey {
		n += f.waiters
	}
	return n
}

func (g *Group[P, T]) join(ctx context.Context, key string, work Work[P, T]) (joined *flight[P, T], started bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if joined := g.byKey[key]; joined != nil {
		joined.waiters++
		return joined, false
	}
	joined = &flight[P, T]{progress: g.begin(), waiters: 1, done: make(chan struct{})}
	g.byKey[key] = joined
	ctx, joined.cancel = context.WithCancel(context.WithoutCancel(ctx))
	g.running.Go(func() {
		defer joined.cancel()
		func() {
			defer Caught(&joined.err)
			joined.value, joined.err = work(ctx, joined.progress)
		}()
		g.forget(key, joined) // first, so that whoever sees the end and tries again starts anew
		close(joined.done)
	})
	return joined, true
}

// Caught is deferred by who works for others on a goroutine of its own, where no caller recovers: a panic becomes its error. It would
// end the program, for what one registry or archive has in it.
func Caught(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("the work panicked: %v; this is a bug, please report it with the log: %w", p, errdefs.ErrInternal)
		klog.ErrorS(*err, "Recovered from a panic", "stack", string(debug.Stack()))
	}
}

// wait waits for the end of the work. An error is the caller's own reason to leave before it.
func (f *flight[P, T]) wait(ctx context.Context, noProgress time.Duration) error {
	var idle <-chan time.Time // never, without a limit
	var timer *time.Timer
	if noProgress > 0 {
		timer = time.NewTimer(f.progress.Left(noProgress))
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
			left := f.progress.Left(noProgress)
			if left <= 0 {
				return fmt.Errorf("nothing came for %v: %w", noProgress, context.DeadlineExceeded)
			}
			timer.Reset(left)
		}
	}
}

// result is what a caller gets who waited, or left for a reason of its own.
func (f *flight[P, T]) result(left error) (value T, err error) {
	if left != nil {
		return value, left
	}
	return f.value, f.err
}

// leave takes one waiter off; the last one ends the work, which nobody can join from then on.
func (g *Group[P, T]) leave(key string, joined *flight[P, T]) (last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if joined.waiters--; joined.waiters == 0 {
		joined.cancel()
		if g.byKey[key] == joined {
			delete(g.byKey, key)
		}
	}
	return joined.waiters == 0
}

func (g *Group[P, T]) forget(key string, joined *flight[P, T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byKey[key] == joined {
		delete(g.byKey, key)
	}
}
