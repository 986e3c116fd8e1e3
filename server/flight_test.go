package server

import (
	"context"
	"errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Rows: R10 (part)
func TestARepeatedCreationJoinsTheWorkInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string, int]
		var runs atomic.Int32
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				got, err := f.do(t.Context(), "key", "hash", func(context.Context, func() bool) (int, error) {
					time.Sleep(time.Second)
					return int(runs.Add(1)), nil
				})
				if got != 1 || err != nil {
					t.Errorf("got %d, %v", got, err)
				}
			})
		}
		wg.Wait()
		if runs.Load() != 1 {
			t.Errorf("the work ran %d times", runs.Load())
		}
	})
}

// Rows: R10 (part)
func TestTheWorkOutlivesACallerWhoLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string, int]
		finished, awaitedAtEnd := false, true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := f.do(ctx, "key", "hash", func(ctx context.Context, awaited func() bool) (int, error) {
			time.Sleep(time.Minute)
			finished, awaitedAtEnd = ctx.Err() == nil, awaited()
			return 1, nil
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the caller got %v", err)
		}
		if err := f.wait(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
		if !finished || awaitedAtEnd {
			t.Errorf("finished %v, awaited %v; want the work done and nobody waiting", finished, awaitedAtEnd)
		}
	})
}

func TestAnotherConfigWaitsForTheFirstAndThenRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string, string]
		var order []string
		work := func(name string) func(context.Context, func() bool) (string, error) {
			return func(context.Context, func() bool) (string, error) {
				time.Sleep(time.Second)
				order = append(order, name)
				return name, nil
			}
		}
		go func() { _, _ = f.do(t.Context(), "key", "one", work("one")) }()
		synctest.Wait()
		got, err := f.do(t.Context(), "key", "two", work("two"))
		if got != "two" || err != nil || len(order) != 2 || order[0] != "one" {
			t.Errorf("got %q, %v in order %v", got, err, order)
		}
	})
}

// Rows: S53 (part)
func TestAPanicInTheWorkIsAnErrorForAllWhoWait(t *testing.T) {
	var f flights[string, int]
	_, err := f.do(t.Context(), "key", "hash", func(context.Context, func() bool) (int, error) { panic("boom") })
	if err == nil {
		t.Fatal("no error")
	}
	if got, err := f.do(t.Context(), "key", "hash", func(context.Context, func() bool) (int, error) { return 7, nil }); got != 7 || err != nil {
		t.Errorf("afterwards %d, %v", got, err)
	}
}

// Rows: S53 (part)
func TestAPanicInALaterTaskEndsOnlyThat(t *testing.T) {
	s := &Server{ended: make(chan struct{})}
	s.later(t.Context(), 0, func(context.Context) { panic("boom") })
	s.background.Wait()
}

// Rows: R13 (part)
func TestAShorterStopKillsWhileALongerOneWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s stops
		start := time.Now()
		killed := make(chan struct{})
		act := func(grace time.Duration) error {
			if grace <= 0 {
				close(killed)
				return nil
			}
			select {
			case <-killed:
			case <-time.After(grace):
				t.Error("the long grace ran out")
			}
			return nil
		}
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.stop(t.Context(), "id", time.Hour, act) })
		synctest.Wait()
		if err := s.stop(t.Context(), "id", 2*time.Second, act); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// Rows: R13 (part)
func TestAStopWhoseCallerLeavesIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s stops
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_ = s.stop(ctx, "id", time.Hour, func(time.Duration) error { <-ctx.Done(); return ctx.Err() })
		}()
		synctest.Wait()
		var graceLeft time.Duration
		done := make(chan error)
		go func() {
			done <- s.stop(t.Context(), "id", time.Minute, func(g time.Duration) error { graceLeft = g; return nil })
		}()
		time.Sleep(10 * time.Second)
		cancel()
		if err := <-done; err != nil || graceLeft != 50*time.Second {
			t.Errorf("taken over with %v of grace left, %v", graceLeft, err)
		}
	})
}

// A creation whose caller has left keeps its engine and its records until it ends, or the grace does.
func TestAnEndWaitsForCreationsWhoseCallersHaveLeft(t *testing.T) {
	f := newFixture(t)
	release := f.engine.Block("CreatePod")
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := f.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("p")})
		left <- err
	}()
	eventually(t, "creation", func() error {
		if f.engine.Calls("CreatePod") == 0 {
			return context.DeadlineExceeded
		}
		return nil
	})
	cancel()
	<-left
	stopped := make(chan struct{})
	go func() { f.server.Stop(10 * time.Second); close(stopped) }()
	select {
	case <-stopped:
		t.Error("Stop has returned while a creation is under way")
	case <-time.After(time.Second):
	}
	release()
	<-stopped
	f.stop = func() {}
}
