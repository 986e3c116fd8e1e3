package streaming

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// wanted are the streams that a CRI request asks for.
type wanted struct {
	stdin, stdout, stderr, tty bool
}

func (w wanted) validate(containerID string) error {
	switch {
	case containerID == "":
		return fmt.Errorf("the request has no container_id: %w", errdefs.ErrInvalidArgument)
	case w.tty && w.stderr:
		return fmt.Errorf("a terminal has no stderr of its own, ask for tty or stderr: %w", errdefs.ErrInvalidArgument)
	case !w.stdin && !w.stdout && !w.stderr:
		return fmt.Errorf("the request asks for none of stdin, stdout and stderr: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// spdyStreams is how many streams a SPDY client opens: one for the status beside those asked for.
func (w wanted) spdyStreams() int {
	n := 1
	for _, asked := range []bool{w.stdin, w.stdout, w.stderr, w.tty /* its sizes */} {
		if asked {
			n++
		}
	}
	return n
}

var errShuttingDown = fmt.Errorf("the streaming server is shutting down: %w", errdefs.ErrUnavailable)

// runStreams is the Runtime's part of an exec or attach.
type runStreams func(context.Context, Streams) error

func (s *Server) serveExec(containerID string, cmd []string, want wanted) http.HandlerFunc {
	cmd = slices.Clone(cmd)
	run := s.runner(want, func(ctx context.Context, streams Streams) error {
		code, err := s.runtime.Exec(ctx, containerID, cmd, streams)
		if err == nil && code != 0 {
			return exitError(code)
		}
		return err
	})
	return s.serveRemoteCommand(want, run, func(w http.ResponseWriter, r *http.Request) {
		remotecommand.ServeExec(w, r, executor(run), "", "", containerID, cmd, want.options(),
			s.opts.IdleTimeout, s.opts.CreationTimeout+takesLonger, remotecommand.SupportedStreamingProtocols)
	})
}

func (s *Server) serveAttach(containerID string, want wanted) http.HandlerFunc {
	run := s.runner(want, func(ctx context.Context, streams Streams) error {
		return s.runtime.Attach(ctx, containerID, streams)
	})
	return s.serveRemoteCommand(want, run, func(w http.ResponseWriter, r *http.Request) {
		remotecommand.ServeAttach(w, r, attacher(run), "", "", containerID, want.options(),
			s.opts.IdleTimeout, s.opts.CreationTimeout+takesLonger, remotecommand.SupportedStreamingProtocols)
	})
}

// takesLonger is for how long cri-streaming still takes the streams of a client that is cut off for not having opened them in time: one
// that comes once it takes no more keeps a worker of spdystream, and its connection's goroutines, for good.
const takesLonger = lastWords + 4*time.Second

// serveRemoteCommand serves WebSockets here and SPDY by cri-streaming.
func (s *Server) serveRemoteCommand(want wanted, run runStreams, others http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.session(w, r, want.spdyStreams(), func(h *hijacker, r *http.Request) {
			if wsstream.IsWebSocketRequest(r) {
				serveChannels(h, r, want, run)
				return
			}
			late := time.AfterFunc(s.opts.CreationTimeout, func() {
				if !intakeOf(r.Context()).hasBegun() {
					h.cancel(errStreams)
				}
			})
			defer late.Stop()
			others(h, r)
		})
	}
}

func (w wanted) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: w.stdin, Stdout: w.stdout, Stderr: w.stderr, TTY: w.tty}
}

// runner prepares the streams for the Runtime: exactly those asked for (a WebSocket has all of them, a SPDY client may have
// opened others), a failed write ends the context, and output is closed behind the last write.
func (s *Server) runner(w wanted, run runStreams) runStreams {
	return func(ctx context.Context, streams Streams) (err error) {
		intakeOf(ctx).begin(streams.Stdin)
		if !s.calls.begin() {
			return errShuttingDown
		}
		defer s.calls.done()
		// With it net/http would end the connection, and a client that is sent no status takes that for success.
		defer panicked(&err)
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		streams.TTY = w.tty
		if !w.stdin {
			streams.Stdin = nil
		}
		if !w.tty {
			streams.Resize = nil
		}
		for _, out := range []struct {
			stream *io.WriteCloser
			asked  bool
		}{{&streams.Stdout, w.stdout}, {&streams.Stderr, w.stderr}} {
			if !out.asked {
				*out.stream = nil
			} else if *out.stream != nil {
				o := &output{WriteCloser: *out.stream, ctx: ctx, cancel: cancel}
				defer o.Close()
				*out.stream = o
			}
		}
		if w.stdin && streams.Stdin == nil || w.stdout && streams.Stdout == nil || w.stderr && streams.Stderr == nil {
			return errStreams
		}
		err = run(ctx, streams)
		if err != nil && clientGone(ctx) {
			return nil // cri-streaming would log an error for every client that leaves
		}
		return err
	}
}

// panicked, deferred, makes an error of a panic, which the client is told.
func panicked(err *error) {
	if p := recover(); p != nil {
		klog.ErrorS(nil, "Panic in a stream", "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic: %v", p)
	}
}

// output is a stream to the client. A write that fails ends the session: a process whose output nobody takes would stand
// still for ever.
type output struct {
	io.WriteCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	// answered says that something was written: from then on nothing waits for the answer to the stream's opening.
	answered atomic.Bool
}

func (o *output) Write(p []byte) (n int, err error) {
	if o.answered.Load() {
		n, err = o.WriteCloser.Write(p)
	} else if n, err = o.guarded(func(early []byte) (int, error) { return o.WriteCloser.Write(early) }, p); err == nil {
		o.answered.Store(true)
	}
	if err != nil {
		o.cancel(fmt.Errorf("%w: write: %w", errClientGone, err))
	}
	return n, err
}

func (o *output) Close() error {
	if o.answered.Load() {
		return o.WriteCloser.Close()
	}
	_, err := o.guarded(func([]byte) (int, error) { return 0, o.WriteCloser.Close() }, nil)
	return err
}

// guarded does not wait for the stream much longer than for the client: spdystream lets the first write to a stream wait for
// ever where the answer to its opening could not be sent, which is when the connection ended right after.
func (o *output) guarded(act func([]byte) (int, error), p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	own := bytes.Clone(p) // the caller's buffer is its own again when this returns
	go func() {
		n, err := act(own)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case <-o.ctx.Done():
	}
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.n, r.err
	case <-timer.C:
		return 0, errClientGone
	}
}

// exitError is how cri-streaming takes an exit code: the shape of k8s.io/utils/exec.ExitError, not wrapped.
type exitError int

func (e exitError) Error() string   { return "exit status " + strconv.Itoa(int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

type executor runStreams

func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan TerminalSize, _ time.Duration) error {
	return e(ctx, Streams{Stdin: in, Stdout: out, Stderr: err, Resize: resize})
}

type attacher runStreams

func (a attacher) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan TerminalSize) error {
	return a(ctx, Streams{Stdin: in, Stdout: out, Stderr: err, Resize: resize})
}
