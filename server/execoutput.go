package server

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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

// reply is the output, which the reply keeps from now on, and how much was dropped. Where some was, a last line of stderr says so.
func (o *execOutput) reply(code int32) (reply *execReply, dropped int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = true
	reply = &execReply{stdout: o.stdout.chunks, stderr: o.stderr.chunks, code: code, owed: &owed{o.all, o.taken}}
	runtime.AddCleanup(reply, func(o *owed) { o.giveBack(execOutputsLimit) }, reply.owed) // also where it was never sent
	if o.dropped > 0 {
		reply.stderr = append(reply.stderr, fmt.Appendf(nil, "\ncrishim: the output was cut, %d bytes were left out\n", o.dropped))
	}
	o.taken, o.stdout.chunks, o.stderr.chunks = 0, nil, nil
	return reply, o.dropped
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

// execReply is an ExecSyncResponse in the pieces in which its output was kept: a client may take its time, and joined and encoded
// the output would be in memory three times until then.
type execReply struct {
	stdout, stderr [][]byte
	code           int32
	owed           *owed
}

// message is the reply for a caller in this process.
func (r *execReply) message() *runtimeapi.ExecSyncResponse {
	defer r.owed.giveBack(execOutputsLimit)
	return &runtimeapi.ExecSyncResponse{Stdout: bytes.Join(r.stdout, nil), Stderr: bytes.Join(r.stderr, nil), ExitCode: r.code}
}

// encode is the reply as it is sent, once. What was kept is given back piece by piece as it has left.
func (r *execReply) encode() mem.BufferSlice {
	sent := &sentOutput{r}
	var all mem.BufferSlice
	for i, chunks := range [][][]byte{r.stdout, r.stderr} {
		size := 0
		for _, chunk := range chunks {
			size += len(chunk)
		}
		if size == 0 {
			continue
		}
		// The fields 1 and 2 of the message.
		head := protowire.AppendTag(nil, protowire.Number(i+1), protowire.BytesType)
		all = append(all, mem.SliceBuffer(protowire.AppendVarint(head, uint64(size))))
		for _, chunk := range chunks {
			all = append(all, mem.NewBuffer(&chunk, sent))
		}
	}
	r.stdout, r.stderr = nil, nil
	if r.code != 0 {
		all = append(all, mem.SliceBuffer(protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), uint64(int64(r.code)))))
	}
	return all
}

// owed is what an output is in debt to all outputs.
type owed struct {
	all  *execOutputs
	left int // guarded by all.mu
}

func (o *owed) giveBack(n int) {
	o.all.mu.Lock()
	defer o.all.mu.Unlock()
	n = min(n, o.left)
	o.left -= n
	o.all.kept -= n
}

// sentOutput is a pool to which the pieces of a reply come back that were sent. Nothing is taken from it.
type sentOutput struct{ reply *execReply }

// Get implements mem.BufferPool.
func (s *sentOutput) Get(int) *[]byte { return new([]byte) }

// Put implements mem.BufferPool.
func (s *sentOutput) Put(piece *[]byte) {
	s.reply.owed.giveBack(len(*piece))
	*piece = nil
}

type execReplyKey struct{}

// withExecReply lets ExecSync leave its reply to the interceptor, which is to send it in place of what it returns.
func withExecReply(ctx context.Context) (context.Context, *atomic.Pointer[execReply]) {
	left := new(atomic.Pointer[execReply])
	return context.WithValue(ctx, execReplyKey{}, left), left
}

// leave leaves the reply to the interceptor, and returns false where there is none.
func (r *execReply) leave(ctx context.Context) bool {
	to, ok := ctx.Value(execReplyKey{}).(*atomic.Pointer[execReply])
	if ok {
		to.Store(r)
	}
	return ok
}
