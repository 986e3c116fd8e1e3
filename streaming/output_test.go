package streaming

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"
)

// stuck is a stream whose opening was never answered, as spdystream has it: whatever is done with it waits for ever.
type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) { <-s.release; return len(p), nil }
func (s stuck) Close() error                { <-s.release; return nil }

func TestAStreamThatWasNeverAnsweredHoldsUpNobodyWhoseClientIsGone(t *testing.T) {
	s := stuck{make(chan struct{})}
	defer close(s.release)
	ctx, cancel := context.WithCancelCause(t.Context())
	o := &output{WriteCloser: s, ctx: ctx, cancel: cancel}
	time.AfterFunc(50*time.Millisecond, func() { cancel(errClientGone) })
	if _, err := o.Write([]byte("x")); !errors.Is(err, errClientGone) {
		t.Errorf("write: %v", err)
	}
	if err := o.Close(); !errors.Is(err, errClientGone) {
		t.Errorf("close: %v", err)
	}
}

type buffer struct {
	bytes.Buffer
	closed bool
}

func (b *buffer) Close() error { b.closed = true; return nil }

func TestOutputIsWrittenInOrderAndClosed(t *testing.T) {
	b := &buffer{}
	ctx, cancel := context.WithCancelCause(t.Context())
	o := &output{WriteCloser: b, ctx: ctx, cancel: cancel}
	for _, word := range []string{"one ", "two ", "three"} {
		if n, err := o.Write([]byte(word)); n != len(word) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := o.Close(); err != nil || !b.closed || b.String() != "one two three" {
		t.Errorf("%v, closed %v, %q", err, b.closed, b)
	}
}
