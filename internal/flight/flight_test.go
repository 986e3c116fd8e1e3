package flight

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// pace is a progress that may end.
type pace struct{ stuck atomic.Bool }

func (p *pace) Left(limit time.Duration) time.Duration {
	if p.stuck.Load() {
		return 0
	}
	return limit
}

func begin() *pace { return &pace{} }

// waitFor polls: who joins cannot be told from outside but by Waiting.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

func TestWorkIsDoneOnceForAll(t *testing.T) {
	g := New[int](begin)
	var times atomic.Int32
	goOn := make(chan struct{})
	work := func(ctx context.Context, _ *pace) (int, error) {
		<-goOn
		return int(times.Add(1)), ctx.Err()
	}
	leaving, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := g.Do(leaving, "a", 0, work)
		first <- err
	}()
	waitFor(t, "the first", func() bool { return g.Waiting() == 1 })
	var others sync.WaitGroup
	for range 5 {
		others.Go(func() {
			if n, err := g.Do(t.Context(), "a", time.Hour, work); n != 1 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
	waitFor(t, "all", func() bool { return g.Waiting() == 6 })
	if _, err := g.Do(t.Context(), "another", 0, func(context.Context, *pace) (int, error) { return 0, errors.ErrUnsupported }); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	leave() // it was the first's work, and goes on
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(goOn)
	others.Wait()
	if n, err := g.Do(t.Context(), "a", 0, work); n != 2 || err != nil {
		t.Errorf("anew: %d, %v", n, err)
	}
	g.Wait()
}

func TestWorkEndsWhenNobodyWaits(t *testing.T) {
	g := New[int](begin)
	ended := make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			_, err := g.Do(ctx, "a", 0, func(ctx context.Context, _ *pace) (int, error) {
				<-ctx.Done()
				close(ended)
				return 0, nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	waitFor(t, "all", func() bool { return g.Waiting() == 3 })
	leave()
	all.Wait()
	<-ended
	if n := g.Waiting(); n != 0 {
		t.Errorf("%d wait", n)
	}
	g.Wait()
}

// Work that nobody waits for any more is joined by nobody, although it has not ended yet.
func TestAbandonedWorkIsNotJoined(t *testing.T) {
	g := New[string](begin)
	goOn := make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, err := g.Do(ctx, "a", 0, func(context.Context, *pace) (string, error) {
		<-goOn
		return "old", nil
	}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if got, err := g.Do(t.Context(), "a", 0, func(context.Context, *pace) (string, error) { return "new", nil }); got != "new" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	close(goOn)
	g.Wait()
}

func TestNoProgressEndsACallersPatience(t *testing.T) {
	g := New[int](begin)
	_, err := g.Do(t.Context(), "a", time.Millisecond, func(ctx context.Context, p *pace) (int, error) {
		p.stuck.Store(true)
		<-ctx.Done()
		return 0, nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	g.Wait()
}

// Who leaves a part of its own work as the last one waits until that has cleared up.
func TestAPartIsWaitedFor(t *testing.T) {
	g := New[int](begin)
	ctx, leave := context.WithCancel(t.Context())
	var taken *pace
	cleared := false
	_, started, err := g.DoPart(ctx, "a", func(p *pace) { taken = p }, func(ctx context.Context, _ *pace) (int, error) {
		leave()
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond)
		cleared = true
		return 0, nil
	})
	if !started || !errors.Is(err, context.Canceled) || !cleared || taken == nil {
		t.Errorf("started %v, %v, cleared %v, progress %v", started, err, cleared, taken)
	}
}

// Rows: S53 (part)
func TestAPanicIsAnErrorForAllWhoWait(t *testing.T) {
	g := New[int](begin)
	goOn := make(chan struct{})
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := g.Do(t.Context(), "a", 0, func(context.Context, *pace) (int, error) {
				<-goOn
				panic("boom")
			}); !errdefs.IsInternal(err) {
				t.Error(err)
			}
		})
	}
	waitFor(t, "all", func() bool { return g.Waiting() == 3 })
	close(goOn)
	all.Wait()
	if n, err := g.Do(t.Context(), "a", 0, func(context.Context, *pace) (int, error) { return 7, nil }); n != 7 || err != nil {
		t.Errorf("anew: %d, %v", n, err)
	}
	g.Wait()
}
