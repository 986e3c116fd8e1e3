package streaming

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// Frames of SPDY/3.1: eight bytes of header (of a control frame, the type in bytes 2 and 3; the payload's length in bytes
// 5 to 7), then the payload, which in the control frames below begins with the stream's id.
const (
	frameHeader    = 8
	frameSynStream = 1
	frameSynReply  = 2
	frameRstStream = 3
)

const (
	// maxDataFrame bounds what a client can have us hold: spdystream queues 50 whole frames of up to 16 MiB for each of its
	// workers when nobody reads the stream. Clients send 32 KiB at a time.
	maxDataFrame    = 1 << 20
	maxControlFrame = 64 << 10
	// maxSizes bounds what a client sends to streams other than its input, in a session: its terminal's sizes, some 30 bytes each.
	// cri-streaming keeps one that does not end.
	maxSizes = 4 << 20
	// maxUnanswered bounds the streams that a client opens before it has our answers.
	maxUnanswered = 4096
	// answerTimeout bounds the wait for answers at the client's end.
	answerTimeout = 2 * time.Second
	// coalesce is up to how many bytes of a frame are sent with one system call: spdystream writes a frame in pieces.
	coalesce = 32<<10 + frameHeader
)

// spdyConn stands between spdystream and the client, and follows the frames in both directions. It refuses frames and streams
// beyond a bound, sends each frame in one piece, and keeps three traps shut that a client opens by leaving early:
//   - cri-streaming stops taking streams at the connection's end, and a worker of spdystream that still hands one over waits
//     for ever, with all its connection's goroutines. So the end is held back until every stream has been answered.
//   - A stream whose answer could not be written makes each later write to it wait for ever. So answers never fail.
//   - Data of a stream that nobody reads makes a worker wait for ever, with the connection's goroutines and what is queued behind
//     it. So it is not handed on; see intake.
type spdyConn struct {
	net.Conn
	ctx        context.Context // the session's
	maxStreams int             // 0: no bound
	intake     *intake
	// The rest up to mu is the reader's.
	opened int
	sizes  int
	in     frameScanner
	fresh  []uint32 // streams that the bytes just read open
	held   []byte   // read, and not handed on
	unread uint32   // the stream that held waits for, 0 for none

	mu       sync.Mutex // over writing
	out      frameScanner
	current  frame // the last one begun
	pending  []byte
	writeErr error

	answerMu   sync.Mutex
	unanswered map[uint32]bool
	answered   chan struct{} // made by the reader that waits, closed when none is unanswered
}

// newSPDYConn is for a connection of the session whose context is given.
func newSPDYConn(ctx context.Context, conn net.Conn, maxStreams int) *spdyConn {
	return &spdyConn{Conn: conn, ctx: ctx, maxStreams: maxStreams, intake: intakeOf(ctx), unanswered: map[uint32]bool{}}
}

func (c *spdyConn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if n > 0 {
		c.fresh = c.fresh[:0]
		rest, err := c.in.scan(p[:n], c.received)
		if errors.Is(err, errUnread) {
			c.held = append(bytes.Clone(rest), c.held...)
			return n - len(rest), nil
		}
		if err != nil {
			c.answer(c.fresh...) // nobody else hears of these
			c.awaitAnswers()
			klog.InfoS("Streaming client cut off", "peer", c.RemoteAddr(), "reason", err)
			_ = c.Conn.Close() // ends the session
			return 0, err
		}
		return n, nil // an error comes again
	}
	if err != nil {
		c.awaitAnswers()
	}
	return n, err
}

// read is what was held back, once its stream is read, and then the connection.
func (c *spdyConn) read(p []byte) (int, error) {
	if c.unread != 0 {
		if err := c.intake.await(c.ctx, c.unread); err != nil {
			return 0, err
		}
		c.unread = 0
	}
	if len(c.held) > 0 {
		n := copy(p, c.held)
		c.held = c.held[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// receivedData checks a data frame of the client's. Its head may be handed on in any case.
func (c *spdyConn) receivedData(f frame) error {
	if f.length > maxDataFrame {
		return fmt.Errorf("the client sent a data frame of %d bytes, above %d", f.length, maxDataFrame)
	}
	if f.length == 0 {
		if f.fin {
			c.intake.drop(f.stream) // more of it is nothing to spdystream
		}
		return nil
	}
	input, unread := c.intake.look(f.stream)
	if unread {
		c.unread = f.stream
		return errUnread
	}
	if !input {
		if c.sizes += f.length; c.sizes > maxSizes {
			return fmt.Errorf("the client sent more than %d bytes of terminal sizes", maxSizes)
		}
	}
	return nil
}

// received checks a frame of the client's.
func (c *spdyConn) received(f frame) error {
	switch {
	case !f.control:
		return c.receivedData(f)
	case f.length > maxControlFrame:
		return fmt.Errorf("the client sent a control frame of %d bytes, above %d", f.length, maxControlFrame)
	case f.kind != frameSynStream:
		return nil
	}
	c.intake.open(f.stream)
	c.opened++
	if c.maxStreams > 0 && c.opened > c.maxStreams {
		return fmt.Errorf("the client opened more than the %d streams of its request", c.maxStreams)
	}
	c.answerMu.Lock()
	defer c.answerMu.Unlock()
	if len(c.unanswered) >= maxUnanswered {
		return errors.New("the client opened too many streams at once")
	}
	c.unanswered[f.stream] = true
	c.fresh = append(c.fresh, f.stream)
	return nil
}

func (c *spdyConn) awaitAnswers() {
	c.answerMu.Lock()
	if len(c.unanswered) == 0 {
		c.answerMu.Unlock()
		return
	}
	answered := make(chan struct{})
	c.answered = answered
	c.answerMu.Unlock()
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	select {
	case <-answered:
	case <-timeout.C:
	}
}

// Write keeps the pieces of a frame until it is whole or large. It fails at the end of a frame, when it is known to be no answer.
func (c *spdyConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.out.scan(p, c.sent)
	switch {
	case c.writeErr != nil:
	case len(c.pending)+len(p) > coalesce:
		c.flush()
		if c.writeErr == nil {
			_, c.writeErr = c.Conn.Write(p)
		}
	default:
		c.pending = append(c.pending, p...)
		if !c.out.within() {
			c.flush()
		}
	}
	if c.writeErr != nil && !c.out.within() && !(c.current.control && c.current.kind == frameSynReply) {
		return 0, c.writeErr
	}
	return len(p), nil
}

func (c *spdyConn) flush() {
	if len(c.pending) > 0 {
		_, c.writeErr = c.Conn.Write(c.pending)
		c.pending = c.pending[:0]
	}
}

func (c *spdyConn) sent(f frame) error {
	c.current = f
	if f.control && (f.kind == frameSynReply || f.kind == frameRstStream) {
		c.answer(f.stream)
	}
	if f.control && f.kind == frameRstStream {
		c.intake.drop(f.stream) // spdystream drops what still comes of it
	}
	return nil
}

func (c *spdyConn) answer(streams ...uint32) {
	c.answerMu.Lock()
	defer c.answerMu.Unlock()
	for _, id := range streams {
		delete(c.unanswered, id)
	}
	if len(c.unanswered) == 0 && c.answered != nil {
		close(c.answered)
		c.answered = nil
	}
}

// frame is what is known of a frame before its payload. The stream is set for data, and for control frames of the three kinds that
// name one.
type frame struct {
	control bool
	fin     bool // the last of its stream in this direction
	kind    uint16
	length  int
	stream  uint32
}

// frameScanner finds the frames in one direction's bytes, however they are cut.
type frameScanner struct {
	head [frameHeader + 4]byte
	have int // bytes in head
	left int // bytes of the payload still to come, the stream id in head not counted
}

// scan calls found for every frame whose head p completes, and stops at its error, with what follows the head.
func (s *frameScanner) scan(p []byte, found func(frame) error) (rest []byte, err error) {
	for len(p) > 0 {
		if s.have == 0 && s.left > 0 {
			skip := min(s.left, len(p))
			s.left -= skip
			p = p[skip:]
			continue
		}
		n := copy(s.head[s.have:s.headSize()], p)
		s.have += n
		p = p[n:]
		if s.have < s.headSize() {
			continue
		}
		f := s.frame()
		s.left = f.length - (s.have - frameHeader)
		s.have = 0
		if err := found(f); err != nil {
			return p, err
		}
	}
	return nil, nil
}

// within says whether a frame is begun and not complete.
func (s *frameScanner) within() bool { return s.have > 0 || s.left > 0 }

func (s *frameScanner) headSize() int {
	if s.have < frameHeader || s.head[0]&0x80 == 0 || s.length() < 4 {
		return frameHeader
	}
	switch s.kind() {
	case frameSynStream, frameSynReply, frameRstStream:
		return len(s.head)
	}
	return frameHeader
}

func (s *frameScanner) kind() uint16 { return binary.BigEndian.Uint16(s.head[2:4]) }
func (s *frameScanner) length() int  { return int(binary.BigEndian.Uint32(s.head[4:8]) & 0xffffff) }

func (s *frameScanner) frame() frame {
	f := frame{control: s.head[0]&0x80 != 0, length: s.length(), fin: s.head[4]&1 != 0}
	switch {
	case !f.control:
		f.stream = binary.BigEndian.Uint32(s.head[:]) // whose first bit is 0
		return f
	case s.headSize() > frameHeader:
		f.stream = binary.BigEndian.Uint32(s.head[frameHeader:]) & 0x7fffffff
	}
	f.kind = s.kind()
	return f
}
