package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// flightTimeout bounds a creation whose caller has left: longer than the kubelet's own deadline for RunPodSandbox (4 min)
// is of no use to anyone, and the CNI budget (200 s) must fit.
const flightTimeout = 225 * time.Second

// flights makes a repeated creation meet the work in flight. The work outlives the caller who began it: a caller that
// comes back with the same request gets the result instead of a "name is reserved" error (CRI says nothing of it;
// containerd fails, CRI-O parks the result, and the kubelet retries for ever).
type flights[K comparable, R any] struct {
	mu      sync.Mutex
	flights map[K]*flight[R]
	running sync.WaitGroup // works, also those whose callers have left
}

type flight[R any] struct {
	hash     string
	done     chan struct{}
	waiters  int                     // guarded by flights.mu
	replaced bool                    // work of another hash waits for its end; guarded by flights.mu
	abort    context.CancelCauseFunc // of the work's context

	// Written before done is closed.
	result R
	err    error
}

// do runs work for key, or joins work of the same key and hash. Work of another hash is waited for, or aborted as soon as
// nobody else waits for it, and then this call begins anew. work is told how to ask whether anybody still waits for its result.
func (f *flights[K, R]) do(ctx context.Context, key K, hash string, work func(ctx context.Context, awaited func() bool) (R, error)) (R, error) {
	var none R
	for {
		f.mu.Lock()
		fl, running := f.flights[key]
		if !running {
			if f.flights == nil {
				f.flights = map[K]*flight[R]{}
			}
			ctx, abort := context.WithCancelCause(context.WithoutCancel(ctx))
			fl = &flight[R]{hash: hash, done: make(chan struct{}), abort: abort}
			f.flights[key] = fl
			f.running.Go(func() { f.run(ctx, key, fl, work) })
		}
		same := fl.hash == hash
		if same {
			fl.waiters++
		} else {
			fl.replaced = true
		}
		fl.abortIfUnwanted()
		f.mu.Unlock()

		select {
		case <-fl.done:
			if same {
				return fl.result, fl.err
			}
		case <-ctx.Done():
			if same {
				f.mu.Lock()
				fl.waiters--
				fl.abortIfUnwanted()
				f.mu.Unlock()
			}
			return none, ctx.Err()
		}
	}
}

// abortIfUnwanted requires flights.mu.
func (fl *flight[R]) abortIfUnwanted() {
	if fl.replaced && fl.waiters == 0 {
		fl.abort(errReplaced)
	}
}

func (f *flights[K, R]) run(ctx context.Context, key K, fl *flight[R], work func(context.Context, func() bool) (R, error)) {
	defer fl.abort(nil)
	ctx, cancel := context.WithTimeout(ctx, flightTimeout)
	defer cancel()
	// Recovered here because the interceptor's recover is on another goroutine.
	defer func() {
		if p := recover(); p != nil {
			fl.err = panicError(p)
		}
		f.mu.Lock()
		delete(f.flights, key)
		f.mu.Unlock()
		close(fl.done)
	}()
	fl.result, fl.err = work(ctx, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return fl.waiters > 0
	})
	fl.err = abortedBy(ctx, fl.err)
}

// abort ends the contexts of the works in flight whose key matches. They take back what they made, and fail with cause.
// While matches is asked no work begins or ends.
func (f *flights[K, R]) abort(cause error, matches func(K) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, fl := range f.flights {
		if matches(key) {
			fl.abort(cause)
		}
	}
}

// underWay says whether the key has a work.
func (f *flights[K, R]) underWay(key K) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.flights[key] != nil
}

// errEnds is why a work was aborted. It is no error of the caller's whose work it is: that one may come back.
var errEnds = fmt.Errorf("it is being stopped: %w", errdefs.ErrFailedPrecondition)

// errReplaced is why a work was aborted for which nobody waited any more. Who asks for it again meets what replaced it.
var errReplaced = fmt.Errorf("another config was asked for under the same name: %w", errdefs.ErrAborted)

// abortedBy puts the cause of an abort in the place of the class of what broke because of it.
func abortedBy(ctx context.Context, err error) error {
	if !errors.Is(err, context.Canceled) {
		return err
	}
	for _, cause := range []error{errEnds, errReplaced} {
		if errors.Is(context.Cause(ctx), cause) {
			return fmt.Errorf("given up: %w (%v)", cause, err)
		}
	}
	return err
}

// wait returns when no work is in flight for key.
func (f *flights[K, R]) wait(ctx context.Context, key K) error {
	for {
		f.mu.Lock()
		fl, running := f.flights[key]
		f.mu.Unlock()
		if !running {
			return nil
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// starts are the starts of containers under way, which a stop aborts.
type starts struct {
	mu sync.Mutex
	m  map[engine.ContainerID]context.CancelCauseFunc
}

// begin makes the context of a start, which requires the container's lock; end is called before that is given back.
func (s *starts) begin(ctx context.Context, id engine.ContainerID) (_ context.Context, end func()) {
	ctx, cancel := context.WithTimeout(ctx, flightTimeout)
	ctx, abort := context.WithCancelCause(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[engine.ContainerID]context.CancelCauseFunc{}
	}
	s.m[id] = abort
	return ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.m, id)
		abort(nil)
		cancel()
	}
}

// abort says whether there was one. It is over when the container's lock can be had.
func (s *starts) abort(id engine.ContainerID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	abort, ok := s.m[id]
	if ok {
		abort(errEnds)
	}
	return ok
}
