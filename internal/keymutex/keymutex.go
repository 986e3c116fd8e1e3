// Package keymutex is a mutex per key, whose waiters can leave when their context ends.
package keymutex

import (
	"context"
	"sync"
)

// Mutex locks by key. The zero value is ready; keys nobody holds or waits for take no memory.
type Mutex[K comparable] struct {
	mu   sync.Mutex
	keys map[K]*entry
}

type entry struct {
	token chan struct{} // holds one value while unlocked
	users int           // holders and waiters
}

// Lock waits for the key and returns its unlock function, or ctx's error.
func (m *Mutex[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	m.mu.Lock()
	if m.keys == nil {
		m.keys = map[K]*entry{}
	}
	e := m.keys[key]
	if e == nil {
		e = &entry{token: make(chan struct{}, 1)}
		e.token <- struct{}{}
		m.keys[key] = e
	}
	e.users++
	m.mu.Unlock()

	select {
	case <-e.token:
		return func() {
			e.token <- struct{}{}
			m.leave(key, e)
		}, nil
	case <-ctx.Done():
		m.leave(key, e)
		return nil, ctx.Err()
	}
}

func (m *Mutex[K]) leave(key K, e *entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(m.keys, key)
	}
}
