package imagestore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"crishim/engine"
)

// pulls joins pulls of the same thing. The zero value is ready.
type pulls struct {
	mu     sync.Mutex
	flight map[string]*flight
}

// flight is one pull with everybody who waits for it. It ends when it is done, or when nobody waits any more.
type flight struct {
	progress *progress
	cancel   context.CancelFunc
	waiters  int // guarded by pulls.mu

	done  chan struct{} // closed when image and err are set
	image *engine.Image
	err   error
}

// do joins the pull of key, or starts it with work. The pull outlives the caller that started it while others wait.
// Each caller leaves when its context ends, or after noProgress without progress if that is not 0.
func (p *pulls) do(ctx context.Context, key string, noProgress time.Duration, work func(context.Context, *progress) (*engine.Image, error)) (*engine.Image, error) {
	f := p.join(ctx, key, work)
	err := f.wait(ctx, noProgress)
	p.leave(key, f)
	if err != nil {
		return nil, err
	}
	return f.image, f.err
}

func (p *pulls) join(ctx context.Context, key string, work func(context.Context, *progress) (*engine.Image, error)) *flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flight[key]; f != nil {
		f.waiters++
		return f
	}
	f := &flight{progress: newProgress(), waiters: 1, done: make(chan struct{})}
	if p.flight == nil {
		p.flight = map[string]*flight{}
	}
	p.flight[key] = f
	ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer f.cancel()
		f.image, f.err = work(ctx, f.progress)
		close(f.done)
		p.forget(key, f)
	}()
	return f
}

// wait waits for the end of the pull. An error is the caller's own reason to leave before it.
func (f *flight) wait(ctx context.Context, noProgress time.Duration) error {
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

// leave takes one waiter off; the last one ends the pull, which nobody can join from then on.
func (p *pulls) leave(key string, f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		if p.flight[key] == f {
			delete(p.flight, key)
		}
	}
}

func (p *pulls) forget(key string, f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flight[key] == f {
		delete(p.flight, key)
	}
}
