package image

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// syncer makes what was written to the store's file system durable. Callers at once share a flush: one that begins after
// they asked is for all of them. The zero value is ready.
type syncer struct {
	// failed counts the flushes that failed. Each may have told of writes whose own flush was to come, which succeeds then:
	// Linux tells once what it lost.
	failed atomic.Uint64

	turn sync.Mutex // held while flushing

	mu   sync.Mutex
	next *flush
}

type flush struct {
	done chan struct{}
	err  error
}

// sync makes durable what the caller has written to the file system of dir since failed was before.
func (y *syncer) sync(dir string, before uint64) error {
	if err := y.flush(dir); err != nil {
		return err
	}
	if y.failed.Load() != before {
		return fmt.Errorf("flush the layers to disk: another flush failed while this layer was written; try again: %w", errdefs.ErrUnavailable)
	}
	return nil
}

// flush flushes the file system of dir (syncfs(2), which reports write errors since Linux 5.8).
func (y *syncer) flush(dir string) error {
	y.mu.Lock()
	f := y.next
	if f != nil {
		y.mu.Unlock()
		<-f.done
		return f.err
	}
	f = &flush{done: make(chan struct{})}
	y.next = f
	y.mu.Unlock()

	y.turn.Lock()
	defer y.turn.Unlock()
	y.mu.Lock()
	y.next = nil // from now on it is too late to share this one
	y.mu.Unlock()
	if f.err = syncFS(dir); f.err != nil {
		y.failed.Add(1)
	}
	close(f.done)
	return f.err
}

func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("flush the layers to disk: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return diskError("flush the layers to disk", err)
	}
	return nil
}
