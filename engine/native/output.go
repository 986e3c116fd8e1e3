package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// copyOutput moves a process's output until it ends. A client that takes no more ends nothing: the rest is thrown away, as
// the process may need its output read to go on.
func copyOutput(to io.Writer, from *os.File) error {
	if to == nil {
		to = io.Discard
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	// The writer is hidden from io.CopyBuffer's shortcuts, which would move smaller pieces.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, &gatherer{from: from, nap: nap}, *buffer)
	switch {
	case err == nil, errors.Is(err, os.ErrClosed), isHangup(err):
		return nil
	}
	_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{from}, *buffer)
	return fmt.Errorf("deliver output: %w", err)
}

var buffers = sync.Pool{New: func() any { return new(make([]byte, 64<<10)) }}

// gatherer reads a pipe that is written in small pieces in larger ones, once they come one upon the other: a reader that gets
// up for each KiB makes the writer wait for it, and a frame of each, which costs both ends of the stream more than its bytes.
type gatherer struct {
	from *os.File
	nap  func()
	last time.Time // when a read was done
	row  int       // of small pieces, each soon after the one before
	over bool      // its time is over
	rest int       // what is read of it nevertheless
}

const (
	smallPiece = 16 << 10
	soonAfter  = time.Millisecond
	manyInARow = 8
)

func (g *gatherer) Read(p []byte) (int, error) {
	n, err := g.from.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return g.readRest(p)
	}
	if err != nil || n >= smallPiece || time.Since(g.last) > soonAfter {
		g.row = 0
	} else if g.row++; g.row > manyInARow {
		g.nap()
		n += readMore(g.from, p[n:])
	}
	g.last = time.Now()
	return n, err
}

// readRest reads what is there when the time is over, and no more than a pipe holds: children may write on without end.
func (g *gatherer) readRest(p []byte) (int, error) {
	if !g.over {
		g.over, g.rest = true, capacity(g.from)
	}
	n := readMore(g.from, p[:min(len(p), g.rest)])
	g.rest -= n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// readMore reads what is there; an end or an error comes again.
func readMore(from *os.File, p []byte) (n int) {
	raw, err := from.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // not Read, which reads nothing once the time is over
		for {
			if n, err = unix.Read(int(fd), p); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return 0
	}
	return n
}

// capacity is how much a pipe holds. A terminal holds less.
func capacity(pipe *os.File) int {
	size := 64 << 10
	if raw, err := pipe.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if n, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
				size = n
			}
		})
	}
	return size
}

var napping = make(chan struct{}, runtime.NumCPU())

// nap is some 150 µs, in which a program writes what a pipe holds. By the kernel, as time.Sleep takes up to a millisecond
// where nothing else is to do; it costs a thread meanwhile, so that of many streams only a few take one.
func nap() {
	select {
	case napping <- struct{}{}:
		short := unix.NsecToTimespec(int64(100 * time.Microsecond))
		_ = unix.Nanosleep(&short, nil)
		<-napping
	default:
	}
}
