package streaming

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// errUnread says that nobody reads a stream yet.
var errUnread = errors.New("nobody reads the stream")

// intake knows which of a SPDY client's streams are read in a session. Whoever reads one resets it when he is done, which lets go what
// spdystream still has for it; of others it would wait for a reader when the connection has ended, too.
type intake struct {
	patience time.Duration // for a reader

	mu      sync.Mutex
	begun   bool   // an exec or attach: all its streams are reset at its end
	stdin   uint32 // its input, 0 without
	unread  map[uint32]struct{}
	changed chan struct{} // closed when a stream leaves unread; nil where nobody waits
}

type intakeKey struct{}

// intakeOf is the session's.
func intakeOf(ctx context.Context) *intake {
	in, _ := ctx.Value(intakeKey{}).(*intake)
	return in
}

// open notes a stream that the client opens.
func (in *intake) open(stream uint32) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.begun {
		return
	}
	if in.unread == nil {
		in.unread = map[uint32]struct{}{}
	}
	in.unread[stream] = struct{}{}
}

// begin says that an exec or attach has all its streams.
func (in *intake) begin(stdin any) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.begun = true
	if s, ok := stdin.(interface{ Identifier() uint32 }); ok {
		in.stdin = s.Identifier()
	}
	clear(in.unread)
	in.wake()
}

func (in *intake) hasBegun() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.begun
}

// drop says that a stream is read, or that no data of it is kept.
func (in *intake) drop(stream uint32) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, ok := in.unread[stream]; ok {
		delete(in.unread, stream)
		in.wake()
	}
}

func (in *intake) wake() {
	if in.changed != nil {
		close(in.changed)
		in.changed = nil
	}
}

// look says whether a stream is input of which there may be any amount, and whether it waits for a reader.
func (in *intake) look(stream uint32) (input, unread bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	_, unread = in.unread[stream]
	return !in.begun || stream == in.stdin, unread
}

// await returns once a stream is read, or with an error at the end of ctx or of the patience: clients send nothing to a stream before
// they have opened those that go with it.
func (in *intake) await(ctx context.Context, stream uint32) error {
	late := time.NewTimer(in.patience)
	defer late.Stop()
	for {
		in.mu.Lock()
		if _, unread := in.unread[stream]; !unread {
			in.mu.Unlock()
			return nil
		}
		if in.changed == nil {
			in.changed = make(chan struct{})
		}
		changed := in.changed
		in.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return fmt.Errorf("stream %d: %w", stream, errUnread)
		}
	}
}
