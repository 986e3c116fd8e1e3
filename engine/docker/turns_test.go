package docker

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"
)

// Who comes first goes first, each when another is through.
func TestTurnsGoRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := &turns{free: semaphore.NewWeighted(1)}
		giveBack := turns.take(t.Context())
		var order []int
		var all sync.WaitGroup
		for i := range 5 {
			all.Go(func() {
				defer turns.take(t.Context())()
				order = append(order, i)
				time.Sleep(turnWait / 2)
			})
			synctest.Wait()
		}
		if len(order) != 0 {
			t.Fatalf("%v went before their turn", order)
		}
		time.Sleep(turnWait / 2)
		giveBack()
		all.Wait()
		for i, who := range order {
			if who != i {
				t.Fatalf("they went in the order %v", order)
			}
		}
		if len(order) != 5 {
			t.Errorf("only %v went", order)
		}
	})
}

// A start that never ends holds up nobody for long, and no turn is lost or won by it.
func TestTurnsAreNotWaitedForWhereNothingGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := &turns{free: semaphore.NewWeighted(1)}
		stuck := turns.take(t.Context())
		began := time.Now()
		without := turns.take(t.Context())
		if took := time.Since(began); took != turnWait {
			t.Errorf("waited %v", took)
		}
		without()
		if turns.free.TryAcquire(1) {
			t.Error("who had no turn gave one back")
		}
		ctx, cancel := context.WithTimeout(t.Context(), turnWait/10)
		defer cancel()
		began = time.Now()
		turns.take(ctx)()
		if took := time.Since(began); took != turnWait/10 {
			t.Errorf("a caller who left waited %v", took)
		}
		stuck()
		turns.take(t.Context())()
		if !turns.free.TryAcquire(1) {
			t.Error("the turn is lost")
		}
	})
}
