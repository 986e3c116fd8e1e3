package server

import (
	"fmt"
	"sync"
)

const (
	// execOutputLimit caps ExecSync's stdout and stderr together, so that the reply with its framing, and a line that it was cut,
	// fits a message (containerd caps each stream at the whole message size and then cannot send it).
	execOutputLimit = maxMessageSize - 64<<10
	// execOutputsLimit caps what all calls at once keep in memory: fifty probes of fifty containers may write without end.
	execOutputsLimit = 16 << 20
	// execOutputShare is each call's own, whatever others keep: more than a kubelet reads of a probe (10 KiB).
	execOutputShare = 64 << 10
	// leastChunk and mostChunk are the pieces in which output is kept: what is moved as it grows would be in memory twice.
	leastChunk, mostChunk = 4 << 10, 1 << 20
)

// execOutputs is the output that all ExecSync calls keep beyond their shares.
type execOutputs struct {
	mu   sync.Mutex
	kept int
}

// take is how much of n more bytes may be kept.
func (a *execOutputs) take(n int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n = max(0, min(n, execOutputsLimit-a.kept))
	a.kept += n
	return n
}

func (a *execOutputs) giveBack(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kept -= n
}

// execOutput is the output of one exec: what fits is kept, and the rest taken, as a process must not block on its output.
type execOutput struct {
	all *execOutputs

	mu             sync.Mutex
	kept, taken    int // in bytes; taken is the part of kept that is not of its share
	dropped        int64
	done           bool
	stdout, stderr outputStream
}

func newExecOutput(all *execOutputs) *execOutput {
	o := &execOutput{all: all}
	o.stdout.of, o.stderr.of = o, o
	return o
}

// room is how much of n more bytes is kept. It requires mu.
func (o *execOutput) room(n int) int {
	n = min(n, execOutputLimit-o.kept)
	own := min(n, max(0, execOutputShare-(o.kept-o.taken)))
	more := o.all.take(n - own)
	o.taken += more
	o.kept += own + more
	return own + more
}

// end gives the memory of the output back to other calls, and drops what still comes: children may hold the streams open. It
// returns how many bytes were kept.
func (o *execOutput) end() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = true
	o.all.giveBack(o.taken)
	o.taken, o.stdout.chunks, o.stderr.chunks = 0, nil, nil
	return o.kept
}

// reply is the output. Where some was dropped, a last line of stderr says so.
func (o *execOutput) reply() (stdout, stderr []byte, dropped int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = true
	stdout, stderr = o.stdout.join(), o.stderr.join()
	if o.dropped > 0 {
		stderr = fmt.Appendf(stderr, "\ncrishim: the output was cut, %d bytes were left out\n", o.dropped)
	}
	return stdout, stderr, o.dropped
}

// outputStream is stdout or stderr.
type outputStream struct {
	of     *execOutput
	chunks [][]byte
	size   int
}

func (s *outputStream) Write(p []byte) (int, error) {
	o := s.of
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		return len(p), nil
	}
	keep := p[:o.room(len(p))]
	o.dropped += int64(len(p) - len(keep))
	for len(keep) > 0 {
		last := len(s.chunks) - 1
		if last < 0 || len(s.chunks[last]) == cap(s.chunks[last]) {
			s.chunks = append(s.chunks, make([]byte, 0, min(max(s.size, leastChunk), mostChunk)))
			last++
		}
		n := min(len(keep), cap(s.chunks[last])-len(s.chunks[last]))
		s.chunks[last] = append(s.chunks[last], keep[:n]...)
		s.size += n
		keep = keep[n:]
	}
	return len(p), nil
}

// join requires of.mu. It lets go of each piece as it is copied.
func (s *outputStream) join() []byte {
	if len(s.chunks) == 1 {
		return s.chunks[0]
	}
	all := make([]byte, 0, s.size)
	for i, chunk := range s.chunks {
		all = append(all, chunk...)
		s.chunks[i] = nil
	}
	s.chunks = nil
	return all
}
