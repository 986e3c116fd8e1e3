package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"k8s.io/klog/v2"

	"crishim/engine"
)

// detachKeys replace Docker's ctrl-p ctrl-q, which would hold back every ctrl-p of a terminal until the next key; nobody
// types these.
const detachKeys = "ctrl-^,ctrl-],ctrl-^,ctrl-],ctrl-_,ctrl-^,ctrl-],ctrl-_"

// The ways to an exec's exit code: its event comes with the end of its output or just after. Where it does not come (the
// stream of events broke), inspects ask, ever slower; while output is open they are a safety net only.
const (
	eventWait   = 25 * time.Millisecond
	pollFirst   = 5 * time.Millisecond
	pollMost    = 50 * time.Millisecond
	pollRunning = 5 * time.Second
	// killLimit bounds the end of a cancelled exec, killWatch how long one that has not started is watched for.
	killLimit = 10 * time.Second
	killWatch = time.Minute
	pollIdle  = 5 * time.Second // probes of a hundred containers may wait so at once
)

// Exec runs a process in a container. A reader of stdin that waits for ever outlasts it until its owner closes it.
//
//	create → attach and start → output ends │ process ends │ ctx ends
//	                                   ↓            ↓            ↓
//	                              exit code   drain, bounded   kill the whole process tree
func (e *Engine) Exec(ctx context.Context, id engine.ContainerID, spec *engine.ExecSpec) (int, error) {
	if !validID(string(id)) {
		return 0, notFound("container", string(id))
	}
	if len(spec.Command) == 0 {
		return 0, invalid("exec without a command")
	}
	if err := e.checkExec(id); err != nil {
		return 0, err
	}
	options := container.ExecOptions{
		Cmd:         spec.Command,
		Tty:         spec.TTY,
		AttachStdin: spec.Stdin != nil, AttachStdout: spec.Stdout != nil, AttachStderr: spec.Stderr != nil && !spec.TTY,
		DetachKeys: detachKeys,
	}
	if !options.AttachStdin && !options.AttachStdout && !options.AttachStderr {
		// Something must be attached, or the end of the output cannot be seen.
		options.AttachStdout = true
	}
	execID, err := ask(ctx, e, "exec in container "+string(id), quickLimit, func(ctx context.Context, s *session) (string, error) {
		made, err := s.cli.ContainerExecCreate(ctx, string(id), options)
		if errdefs.IsConflict(err) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition) // it does not run, or is paused
		}
		return made.ID, err
	})
	if err != nil {
		return 0, err
	}
	ended := e.execs.expect(execID)
	defer e.execs.forget(execID)
	stream, err := e.hijack(ctx, "start exec in container "+string(id), func(ctx context.Context, s *session) (types.HijackedResponse, error) {
		return s.cli.ContainerExecAttach(ctx, execID, container.ExecAttachOptions{Tty: spec.TTY})
	}, func() { e.killExec(ctx, execID) })
	if err != nil {
		e.killExec(ctx, execID)
		return 0, err
	}
	defer stream.Close()
	running, stop := context.WithCancel(ctx)
	defer stop()
	if spec.Resize != nil {
		go e.resize(running, spec.Resize, func(ctx context.Context, s *session, size container.ResizeOptions) error {
			return s.cli.ContainerExecResize(ctx, execID, size)
		})
	}
	// dockerd takes the end of a terminal's input for the end of its output, too.
	output := pump(stream, &spec.Streams, !spec.TTY)
	return e.waitExec(ctx, execID, ended, output, stream)
}

// waitExec returns the exit code once the process has ended and its output was delivered.
func (e *Engine) waitExec(ctx context.Context, execID string, ended <-chan int, output *output, stream *types.HijackedResponse) (int, error) {
	net := time.NewTicker(pollRunning)
	defer net.Stop()
	for {
		select {
		case <-ctx.Done():
			e.killExec(ctx, execID)
			cut(output, stream)
			return 0, ctx.Err()
		case err := <-output.done:
			if err != nil {
				// Nobody takes the output any more: the process would wait for ever.
				e.killExec(ctx, execID)
				return 0, fmt.Errorf("output of exec %s: %w", execID, err)
			}
			return e.exitCode(ctx, execID, ended)
		case code := <-ended:
			return code, drain(ctx, output, stream)
		case <-net.C:
			if in, err := e.inspectExec(ctx, execID); err == nil && !in.Running {
				return in.ExitCode, drain(ctx, output, stream)
			}
		}
	}
}

// drain waits for output that was written before the process ended. Children may hold it open for ever, and then nothing comes;
// what does come is delivered however long the client takes, and ends, as dockerd gives children two seconds itself.
func drain(ctx context.Context, output *output, stream *types.HijackedResponse) error {
	output.moved()
	late := time.NewTicker(engine.DrainTimeout)
	defer late.Stop()
	for moved := true; moved; {
		select {
		case err := <-output.done:
			return err
		case <-late.C:
			moved = output.moved()
		case <-ctx.Done():
			moved = false
		}
	}
	cut(output, stream)
	return nil
}

// cut ends the output, so that nothing is written to the caller's streams after this; a write that hangs is not waited for.
func cut(output *output, stream *types.HijackedResponse) {
	stream.Close()
	select {
	case <-output.done:
	case <-time.After(engine.DrainTimeout):
	}
}

// exitCode is asked for once the output has ended.
func (e *Engine) exitCode(ctx context.Context, execID string, ended <-chan int) (int, error) {
	wait := time.NewTimer(eventWait)
	defer wait.Stop()
	for poll := pollFirst; ; poll = min(2*poll, pollMost) {
		select {
		case code := <-ended:
			return code, nil
		case <-ctx.Done():
			e.killExec(ctx, execID)
			return 0, ctx.Err()
		case <-wait.C:
		}
		in, err := e.inspectExec(ctx, execID)
		if err != nil {
			e.killExec(ctx, execID) // it may run on
			return 0, err
		}
		if !in.Running {
			return in.ExitCode, nil
		}
		wait.Reset(poll)
	}
}

func (e *Engine) inspectExec(ctx context.Context, execID string) (container.ExecInspect, error) {
	return ask(ctx, e, "inspect exec "+execID, quickLimit, func(ctx context.Context, s *session) (container.ExecInspect, error) {
		return s.cli.ContainerExecInspect(ctx, execID)
	})
}

// hijack makes a request whose connection becomes a stream. The client's own function does not heed its context once it
// has dialled, so that one is left behind when the context ends, and closes what it still gets; late is called then.
func (e *Engine) hijack(ctx context.Context, what string, request func(context.Context, *session) (types.HijackedResponse, error), late func()) (*types.HijackedResponse, error) {
	return ask(ctx, e, what, quickLimit, func(ctx context.Context, s *session) (*types.HijackedResponse, error) {
		type answer struct {
			stream types.HijackedResponse
			err    error
		}
		answers := make(chan answer, 1)
		go func() {
			stream, err := request(ctx, s)
			answers <- answer{stream, err}
		}()
		select {
		case a := <-answers:
			if a.err != nil {
				return nil, a.err
			}
			return &a.stream, nil
		case <-ctx.Done():
			go func() {
				if a := <-answers; a.err == nil {
					a.stream.Close()
					late()
				}
			}()
			return nil, ctx.Err()
		}
	})
}

// pump copies both ways, and passes the end of the input on where it is asked to.
func pump(stream *types.HijackedResponse, s *engine.Streams, inputEnds bool) *output {
	if s.Stdin != nil {
		go func() {
			// An error here shows in the output as well.
			_, _ = io.Copy(stream.Conn, s.Stdin)
			if inputEnds {
				_ = stream.CloseWrite()
			}
		}()
	}
	o := &output{done: make(chan error, 1), stdout: sink{w: s.Stdout}, stderr: sink{w: s.Stderr}}
	go func() {
		if s.TTY {
			_, _ = io.Copy(&o.stdout, stream.Reader)
		} else {
			_ = demux(&o.stdout, &o.stderr, stream.Reader) // a write error is the sink's
		}
		o.done <- errors.Join(o.stdout.err, o.stderr.err)
		close(o.done)
	}()
	return o
}

// output is what comes of a process.
type output struct {
	done           chan error // its end; an error is one of the caller's stream
	stdout, stderr sink
	seen           int64 // used by moved
}

// moved says whether something has come since it was asked last, or the client is taking its time with what has.
func (o *output) moved() bool {
	before := o.seen
	o.seen = o.stdout.writes.Load() + o.stderr.writes.Load()
	return o.seen != before || o.stdout.writing.Load() || o.stderr.writing.Load()
}

// sink is a stream of the caller, or none; it remembers a failed write, which tells it from a lost connection.
type sink struct {
	w       io.Writer
	err     error
	writes  atomic.Int64 // begun and done
	writing atomic.Bool  // one is under way
}

func (s *sink) Write(p []byte) (int, error) {
	s.writes.Add(1)
	if s.w == nil {
		return len(p), nil
	}
	s.writing.Store(true)
	n, err := s.w.Write(p)
	s.writing.Store(false)
	s.writes.Add(1)
	if err != nil {
		s.err = err
	}
	return n, err
}

// resize passes sizes on until the exec or attach ends. The first may come before the process is there.
func (e *Engine) resize(ctx context.Context, sizes <-chan engine.TerminalSize, set func(context.Context, *session, container.ResizeOptions) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if size.Width == 0 || size.Height == 0 {
				continue
			}
			for wait := pollFirst; wait < time.Second; wait *= 2 {
				err := e.do(ctx, "resize terminal", quickLimit, func(ctx context.Context, s *session) error {
					return set(ctx, s, container.ResizeOptions{Height: uint(size.Height), Width: uint(size.Width)})
				})
				if err == nil || ctx.Err() != nil || errdefs.IsNotFound(err) {
					break
				}
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
		}
	}
}

// killExec ends an exec that nobody waits for any more, with all of its processes. ctx may have ended. One that has not started
// may do so yet, as the engine was asked to: it is watched after this has returned, as is an engine that does not answer.
func (e *Engine) killExec(ctx context.Context, execID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWatch)
	idle := make(chan struct{})
	go func() {
		defer cancel()
		e.killOnceStarted(ctx, execID, sync.OnceFunc(func() { close(idle) }))
	}()
	select {
	case <-idle:
	case <-time.After(killLimit):
	}
}

// killOnceStarted calls idle when there is nothing to wait for at the moment.
func (e *Engine) killOnceStarted(ctx context.Context, execID string, idle func()) {
	defer idle()
	for wait, most := pollFirst, pollMost; ; wait = min(2*wait, most) {
		in, err := e.inspectExec(ctx, execID)
		switch {
		case errdefs.IsNotFound(err):
			return
		case err == nil && in.Pid > 0:
			killSession(ctx, in.Pid, in.ContainerID)
			return
		case err == nil && !in.Running && in.ExitCode != 0:
			return // it could not be started
		case err != nil || !in.Running:
			idle()
			most = pollIdle
		default:
			most = pollMost // it is being started
		}
		select {
		case <-ctx.Done():
			if err != nil && !errors.Is(err, ctx.Err()) {
				klog.ErrorS(err, "Cannot end an exec", "exec", execID)
			}
			return
		case <-time.After(wait):
		}
	}
}

// execWaiters hand the exit codes in events to those who wait for them.
type execWaiters struct {
	mu      sync.Mutex
	waiting map[string]chan int
}

func (w *execWaiters) expect(execID string) <-chan int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = map[string]chan int{}
	}
	ended := make(chan int, 1)
	w.waiting[execID] = ended
	return ended
}

func (w *execWaiters) forget(execID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, execID)
}

func (w *execWaiters) ended(execID string, code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ended := w.waiting[execID]; ended != nil {
		select {
		case ended <- code:
		default:
		}
	}
}
