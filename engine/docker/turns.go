package docker

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// turnWait is how long without a turn given back it takes until turns are no longer waited for.
const turnWait = time.Second

// turns bounds how many pause containers dockerd starts beside each other. Each start keeps a processor busy: more than there are
// processors end no sooner, and meanwhile hold up the pods that are further, whose containers are to be created and started.
// A dockerd or a disk that is stuck makes nobody wait longer than turnWait.
type turns struct {
	free  *semaphore.Weighted
	given atomic.Int64 // how many were given back so far
}

func newTurns() *turns { return &turns{free: semaphore.NewWeighted(int64(max(2, runtime.NumCPU())))} }

// take waits for a turn, first come, first served, and returns what gives it back. It returns without one when ctx ends or
// nothing goes on.
func (t *turns) take(ctx context.Context) (giveBack func()) {
	giveBack = func() {
		t.given.Add(1)
		t.free.Release(1)
	}
	if t.free.TryAcquire(1) {
		return giveBack
	}
	waiting, goOn := context.WithCancel(ctx)
	defer goOn()
	taken := make(chan error, 1)
	go func() { taken <- t.free.Acquire(waiting, 1) }()
	before := t.given.Load()
	look := time.NewTicker(turnWait)
	defer look.Stop()
	for {
		select {
		case err := <-taken:
			if err != nil {
				return func() {}
			}
			return giveBack
		case <-look.C:
			now := t.given.Load()
			if now == before {
				goOn()
			}
			before = now
		}
	}
}
