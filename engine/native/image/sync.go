package image

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// syncer makes what was written to the store's file system durable. Callers at once share a flush: one that begins after
// they asked is for all of them. The zero value is ready.
type syncer struct {
	turn sync.Mutex // held while flushing

	mu   sync.Mutex
	next *flush
}

type flush struct {
	done chan struct{}
	err  error
}

// sync flushes the file system of dir (syncfs(2), which reports write errors since Linux 5.8).
func (y *syncer) sync(dir string) error {
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
	f.err = syncFS(dir)
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
