package logpump

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"crishim/crilog"

	"github.com/containerd/errdefs"
)

// apiSource reads a container's output from the Engine API's log stream, where Docker's file cannot be read. A goroutine
// follows the stream and opens it again where it ends early; its place is a time and how many entries of that time were
// read, because the parts of a long line share theirs.
//
// With a TTY the stream has no frames, so the time stamps that Docker puts before the later parts of lines over 16 KiB
// stay in the content there.
//
// That Docker cannot read a log is no error of read, which would keep the log from being reopened: failed is told it.
type apiSource struct {
	render  renderer
	failed  func(error)
	entries chan entry
	place   apiOffset // after what read gave
	ending  atomic.Bool
	kick    chan struct{}
	cancel  context.CancelFunc
	done    chan struct{} // closed when the goroutine has ended
}

// reopenDelay is the pause before the stream is opened again.
const reopenDelay = time.Second

func newAPISource(ctx context.Context, open Source, render renderer, resume *apiOffset, wake chan<- struct{}, failed func(error)) *apiSource {
	s := &apiSource{render: render, failed: failed, entries: make(chan entry, 64), kick: make(chan struct{}, 1), done: make(chan struct{})}
	if resume != nil {
		s.place = *resume
	} else {
		s.place.Time = render.from
	}
	ctx, s.cancel = context.WithCancel(ctx)
	f := follower{apiSource: s, open: open, wake: wake, place: s.place}
	go f.run(ctx)
	return s
}

func (s *apiSource) look() error { return nil }

func (s *apiSource) read(buf *buffers) (batch, error) {
	b := batch{out: buf.out[:0]}
	for len(b.out) < readSize {
		select {
		case e := <-s.entries:
			s.place.pass(e.time)
			s.render.append(&b, e)
			continue
		default:
		}
		break
	}
	return b, nil
}

func (o *apiOffset) pass(t time.Time) {
	if !t.Equal(o.Time) {
		*o = apiOffset{Time: t}
	}
	o.Count++
}

func (s *apiSource) fill(pos *position) error {
	place := s.place
	pos.From = s.render.from
	pos.API = &place
	return nil
}

func (s *apiSource) finish() {
	if !s.ending.Swap(true) {
		s.kick <- struct{}{}
	}
}

func (s *apiSource) drained() bool {
	select {
	case <-s.done:
		return len(s.entries) == 0
	default:
		return false
	}
}

func (s *apiSource) close() {
	s.cancel()
	<-s.done
}

// follower is the goroutine's side.
type follower struct {
	*apiSource
	open  Source
	wake  chan<- struct{}
	place apiOffset // after what was sent
	// within is the time of a terminal's line of which a part was read.
	within time.Time
	// refused is how often in a row the stream could not be opened, told says that failed was told since the last entry.
	refused int
	told    bool
}

func (f *follower) run(ctx context.Context) {
	defer f.signal()
	defer close(f.done)
	for {
		// Only a stream that was opened after the exit is known to be whole when it ends.
		last := f.ending.Load()
		err := f.stream(ctx)
		if ctx.Err() != nil || err == nil && last || errdefs.IsNotImplemented(err) { // the last: of this log driver nothing is read, ever
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-f.kick:
		case <-time.After(reopenDelay):
		}
	}
}

func (f *follower) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// tell tells failed, once until there is an entry again.
func (f *follower) tell(err error) {
	if !f.told {
		f.told = true
		f.failed(err)
	}
}

// refuse tells of a log that cannot be opened. What is over at the second attempt is not told, nor that the engine is away, which its
// watcher tells.
func (f *follower) refuse(err error) {
	f.refused++
	if errdefs.IsNotImplemented(err) || f.refused > 1 && !errdefs.IsUnavailable(err) {
		f.tell(err)
	}
}

// stream opens the log once and sends its entries.
func (f *follower) stream(ctx context.Context) error {
	body, err := f.open(ctx, f.place.Time)
	if err != nil {
		if ctx.Err() == nil {
			f.refuse(err)
		}
		return err
	}
	f.refused = 0
	stop := context.AfterFunc(ctx, func() { _ = body.Close() })
	defer func() {
		if stop() {
			_ = body.Close()
		}
	}()
	resume := f.place
	f.within = time.Time{}
	r := bufio.NewReaderSize(body, 64<<10)
	for {
		e, err := f.readEntry(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errdefs.IsDataLoss(err) {
			f.tell(err)
		}
		if errors.Is(err, errUnreadable) {
			continue
		}
		if err != nil {
			return err
		}
		if e.time.Before(resume.Time) {
			continue
		}
		if e.time.Equal(resume.Time) && resume.Count > 0 {
			resume.Count--
			continue
		}
		resume = apiOffset{}
		f.told = false
		f.place.pass(e.time)
		select {
		case f.entries <- e:
			f.signal()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errUnreadable is what Docker says in the place of entries that it cannot read. What comes behind it is read.
var errUnreadable = fmt.Errorf("read log stream of Docker: it has not all of the log: %w", errdefs.ErrDataLoss)

// unreadable is how Docker begins that: in a frame of its own, but for a TTY.
const unreadable = "Error grabbing logs: "

// readEntry reads one frame (Engine API, "Stream format": stream, three zeros, length in big endian), or one line with a TTY.
func (f *follower) readEntry(r *bufio.Reader) (entry, error) {
	if f.render.tty {
		line, err := r.ReadSlice('\n') // a longer line comes in parts as long as r's buffer
		if len(line) == 0 || err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return entry{}, err
		}
		e := entry{time: f.within, stream: crilog.Stdout, text: bytes.Clone(line)}
		if f.within.IsZero() {
			if bytes.HasPrefix(line, []byte(unreadable)) {
				return entry{}, fmt.Errorf("%w: %s", errUnreadable, bytes.TrimSpace(line))
			}
			if e, err = parseStamped(crilog.Stdout, e.text); err != nil {
				return entry{}, err
			}
		}
		if f.within = e.time; line[len(line)-1] == '\n' {
			f.within = time.Time{}
		}
		return e, nil
	}
	var header [8]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return entry{}, err
	}
	length := binary.BigEndian.Uint32(header[4:])
	if length > maxLine || header[0] == 0 || header[0] > 3 {
		return entry{}, fmt.Errorf("read log stream of Docker: unknown frame: %w", errdefs.ErrDataLoss)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(r, text); err != nil {
		return entry{}, io.ErrUnexpectedEOF
	}
	stream := crilog.Stdout
	switch header[0] {
	case 2:
		stream = crilog.Stderr
	case 3: // Docker's own words
		return entry{}, fmt.Errorf("%w: %s", errUnreadable, bytes.TrimSpace(text))
	}
	return parseStamped(stream, text)
}

// parseStamped splits off the time stamp that the API puts before each message.
func parseStamped(stream crilog.Stream, text []byte) (entry, error) {
	stamp, content, ok := bytes.Cut(text, []byte{' '})
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if !ok || err != nil {
		return entry{}, fmt.Errorf("read log stream of Docker: no time stamp: %w", errdefs.ErrDataLoss)
	}
	return entry{time: t, stream: stream, text: content}, nil
}
