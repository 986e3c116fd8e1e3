package serve

import (
	"runtime/debug"
	"sync"
	"time"
)

const (
	// tidyDelay after work the memory that it took is given back, at most once in tidyPause: hundreds of monitors stand
	// idle on a node, and what a create took would stay theirs.
	tidyDelay = 2 * time.Second
	tidyPause = time.Minute
)

// tidy gives memory back.
type tidy struct {
	mu   sync.Mutex
	due  bool
	last time.Time
}

// worked says that there was work.
func (t *tidy) worked() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.due {
		return
	}
	t.due = true
	time.AfterFunc(max(tidyDelay, tidyPause-time.Since(t.last)), func() {
		debug.FreeOSMemory()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.due, t.last = false, time.Now()
	})
}
