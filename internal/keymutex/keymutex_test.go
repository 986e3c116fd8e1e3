package keymutex

import (
	"context"
	"sync"
	"testing"
	"time"
)

func TestOneHolderPerKey(t *testing.T) {
	var m Mutex[string]
	var wg sync.WaitGroup
	counts := map[string]*int{"a": new(int), "b": new(int)}
	for i := range 200 {
		key := []string{"a", "b"}[i%2]
		wg.Go(func() {
			unlock, err := m.Lock(context.Background(), key)
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			*counts[key]++ // the race detector watches
		})
	}
	wg.Wait()
	if *counts["a"] != 100 || *counts["b"] != 100 {
		t.Errorf("counts %d %d", *counts["a"], *counts["b"])
	}
	if len(m.keys) != 0 {
		t.Errorf("%d keys kept", len(m.keys))
	}
}

func TestWaiterLeavesWithItsContext(t *testing.T) {
	var m Mutex[int]
	unlock, err := m.Lock(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.Lock(ctx, 1); err == nil {
		t.Fatal("got a held lock")
	}
	unlock()
	unlock, err = m.Lock(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if len(m.keys) != 0 {
		t.Errorf("%d keys kept", len(m.keys))
	}
}
