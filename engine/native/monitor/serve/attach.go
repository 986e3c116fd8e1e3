package serve

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/crilog"
	"crishim/engine/native/monitor"
)

const (
	// attachPipe is what an attached client's pipe is made to hold, so that one that is behind for a moment loses nothing.
	attachPipe = 1 << 20
	// A client may hold the container up for patience at once, and for 1/patienceShare of the time in the long run; what
	// it then has no room for it loses, and nobody waits for it again before it has caught up. So a reader that keeps up gets every
	// byte, and none stops the log, however many there are that read nothing.
	patience      = time.Second
	patienceShare = 20
)

// attachDrain is how long an attach waits for the rest of an exited container's output. Tests shorten it.
var attachDrain = 10 * time.Second

// hub gives a container's output to its attached clients.
type hub struct {
	mu      sync.Mutex
	ended   bool
	clients map[*attached]struct{}

	// n is how many there are, for who must not wait while a slow one is written to.
	n atomic.Int32
}

// attached is one client.
type attached struct {
	outputs map[crilog.Stream]*os.File
	done    chan struct{} // closed when the hub has no more for it

	// The rest is the hub's, under its lock.
	patience time.Duration
	since    time.Time
	dropped  uint64
	// behind are the outputs of which it has lost some, and had no room for all that came since.
	behind map[*os.File]bool
}

// join adds a client. An output that has ended gives it nothing.
func (h *hub) join(outputs map[crilog.Stream]*os.File) *attached {
	a := &attached{outputs: outputs, done: make(chan struct{}), patience: patience, since: time.Now(), behind: map[*os.File]bool{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		close(a.done)
		return a
	}
	if h.clients == nil {
		h.clients = map[*attached]struct{}{}
	}
	h.clients[a] = struct{}{}
	h.n.Store(int32(len(h.clients)))
	return a
}

// leave removes it and says what it lost.
func (h *hub) leave(a *attached) (dropped uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, a)
	h.n.Store(int32(len(h.clients)))
	return a.dropped
}

func (h *hub) len() int { return int(h.n.Load()) }

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for a := range h.clients {
		close(a.done)
	}
	h.clients = nil
	h.n.Store(0)
}

// writer gives what is written to the clients that want the stream. It never fails.
func (h *hub) writer(stream crilog.Stream) io.Writer { return hubWriter{h, stream} }

type hubWriter struct {
	hub    *hub
	stream crilog.Stream
}

func (w hubWriter) Write(p []byte) (int, error) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for a := range w.hub.clients {
		if out := a.outputs[w.stream]; out != nil && !a.write(out, p) {
			delete(w.hub.clients, a)
			w.hub.n.Store(int32(len(w.hub.clients)))
			close(a.done)
		}
	}
	return len(p), nil
}

// write says whether the client is still there.
func (a *attached) write(out *os.File, p []byte) bool {
	n, err := tryWrite(out, p)
	switch {
	case err != nil:
	case n == len(p):
		delete(a.behind, out)
	case a.behind[out]:
		a.dropped += uint64(len(p) - n)
	default:
		now := time.Now()
		a.patience = min(patience, a.patience+now.Sub(a.since)/patienceShare)
		a.since = now
		var more int
		_ = out.SetWriteDeadline(now.Add(a.patience))
		more, err = out.Write(p[n:])
		n += more
		a.patience -= time.Since(now)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			a.dropped += uint64(len(p) - n)
			a.behind[out] = true
			err = nil
		}
	}
	return err == nil
}

// tryWrite writes what there is room for.
func tryWrite(out *os.File, p []byte) (n int, err error) {
	raw, err := out.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) {
		for {
			n, err = unix.Write(int(fd), p)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
	})
	if errors.Is(err, unix.EAGAIN) {
		err = nil
	}
	return max(n, 0), errors.Join(cerr, err)
}

// attach joins a client to a container until either ends. A client has ended with its input, too, as with Docker and containerd:
// `echo word | kubectl attach -i` would wait for as long as the container runs. Not so where the container's input ends with
// the client's, whose answer to all of it is to come.
func (c *call) attach() (any, error) {
	found, err := c.container()
	if err != nil {
		return nil, err
	}
	stdio, err := c.takeStdio()
	if err != nil {
		return nil, err
	}
	defer monitor.CloseFiles([]*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr})
	select {
	case <-found.dead:
		return nil, fmt.Errorf("container %s has exited: %w", found.id, errdefs.ErrFailedPrecondition)
	default:
	}
	outputs := map[crilog.Stream]*os.File{}
	defer func() {
		for _, out := range outputs {
			_ = out.Close()
		}
	}()
	for stream, file := range map[crilog.Stream]*os.File{crilog.Stdout: stdio.Stdout, crilog.Stderr: stdio.Stderr} {
		if file == nil {
			continue
		}
		if outputs[stream], err = pollable(file); err != nil {
			return nil, fmt.Errorf("take the client's %s: %w", stream, err)
		}
		grow(outputs[stream])
	}
	client := found.output.hub.join(outputs)
	var dropped uint64
	left := sync.OnceFunc(func() { dropped = found.output.hub.leave(client) })
	defer left()
	if err := c.reply(struct{}{}, nil); err != nil {
		return nil, errAnswered
	}
	var inputEnded <-chan struct{}
	if stdio.Stdin != nil {
		in, err := pollable(stdio.Stdin)
		if err != nil {
			return nil, fmt.Errorf("take the client's stdin: %w", err)
		}
		var stop func()
		inputEnded, stop = found.stdin.copy(in)
		defer func() {
			stop()
			_ = in.Close()
		}()
	}
	gone := c.gone(nil).Done()
	select {
	case <-client.done:
	case <-inputEnded:
	case <-found.exited: // processes outside of the container may hold its output open for ever, and a slow disk its end up
		select {
		case <-client.done:
		case <-time.After(attachDrain):
		case <-gone:
			return nil, errAnswered
		}
	case <-gone:
		return nil, errAnswered
	}
	left()
	return monitor.AttachDone{Dropped: dropped}, nil
}

// grow makes a pipe hold more. Where the user's limit does not allow it, the client loses output earlier.
func grow(pipe *os.File) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, attachPipe) })
}
