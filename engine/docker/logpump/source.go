package logpump

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"crishim/crilog"
)

// source is where a container's output comes from. It is used by the pump's goroutine alone.
type source interface {
	// look takes hold of what may go away before it is read.
	look() error
	// read renders the next entries into buf.out. An empty batch means that there is nothing at present.
	read(buf *buffers) (batch, error)
	// fill writes the place after everything read into the position.
	fill(pos *position) error
	// finish says that the container has exited; drained is then true once an empty batch means the end.
	finish()
	drained() bool
	close()
}

// batch is what one read gave.
type batch struct {
	// out is rendered, in the memory of the buffers.
	out     []byte
	entries int
	// advanced says that the source's place changed, even where out is empty.
	advanced bool
	// save asks for the position to be saved before the next read.
	save bool
	// gap says that entries may be missing before out: what the log already holds cannot be compared with it.
	gap bool
	// garbage counts lines that were no entries; lost bytes of the source that went away before they were read, in gaps cases.
	garbage int
	lost    int64
	gaps    int
}

// buffers are lent to a pump for one step, so that idle containers hold none.
type buffers struct {
	in, out []byte
}

const readSize = 128 << 10

var bufferPool = sync.Pool{New: func() any { return &buffers{in: make([]byte, readSize), out: make([]byte, 0, readSize)} }}

// renderer turns entries into the bytes of the log. It keeps nothing from entry to entry, which is why rendering again
// from a saved place gives the same bytes.
type renderer struct {
	// tty trims "\r\n" to the newline that the process wrote; the terminal made it two bytes.
	tty bool
	// from leaves out what is older, until the first entry that is not; zero leaves out nothing.
	from time.Time
}

func (r *renderer) append(b *batch, e entry) {
	b.advanced = true
	if e.time.Before(r.from) {
		return
	}
	r.from = time.Time{}
	b.entries++
	text := e.text
	if r.tty {
		if line, ok := bytes.CutSuffix(text, []byte("\r\n")); ok {
			text = append(line, '\n')
		}
	}
	b.out = crilog.AppendText(b.out, e.time, e.stream, text)
}

// appendGap adds the one line that says that output is missing.
func appendGap(b *batch, at time.Time, lost int64) {
	b.advanced, b.save, b.gap = true, true, true
	b.gaps++
	b.lost += lost
	text := "crishim: log may have been dropped by Docker before it could be read; how much is not known\n"
	if lost > 0 {
		text = fmt.Sprintf("crishim: %d bytes of log were dropped by Docker before they could be read\n", lost)
	}
	b.out = crilog.AppendText(b.out, at, crilog.Stderr, []byte(text))
}
