package registry

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

var errStalled = errors.New("no byte came for too long")

// StallReader ends a body that sends nothing for a while by cancelling its request.
type StallReader struct {
	body    io.ReadCloser
	timeout time.Duration
	timer   *time.Timer

	mu      sync.Mutex
	stalled bool
}

// NewStallReader reads body; cancel ends its request after timeout without a byte.
func NewStallReader(body io.ReadCloser, timeout time.Duration, cancel context.CancelFunc) *StallReader {
	r := &StallReader{body: body, timeout: timeout}
	r.timer = time.AfterFunc(timeout, func() {
		r.mu.Lock()
		r.stalled = true
		r.mu.Unlock()
		cancel()
	})
	return r
}

// Read implements io.Reader.
func (r *StallReader) Read(p []byte) (int, error) {
	// The timer runs only while waiting for the endpoint: a reader that takes its time is no stall.
	r.timer.Reset(r.timeout)
	n, err := r.body.Read(p)
	r.timer.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && r.stalled {
		err = errStalled
	}
	return n, err
}

// Close implements io.Closer.
func (r *StallReader) Close() error {
	r.timer.Stop()
	return r.body.Close()
}
