package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/internal/failpoint"
	"crishim/internal/process"
)

// takeStdio takes the descriptors that came with the request.
func (c *call) takeStdio() (Stdio, error) {
	var args monitor.StdioArgs
	if err := c.args(&args); err != nil {
		return Stdio{}, err
	}
	var stdio Stdio
	var into []**os.File
	for _, stream := range []struct {
		passed bool
		file   **os.File
	}{{args.Stdin, &stdio.Stdin}, {args.Stdout, &stdio.Stdout}, {args.Stderr, &stdio.Stderr}} {
		if stream.passed {
			into = append(into, stream.file)
		}
	}
	if len(into) != len(c.files) {
		return Stdio{}, fmt.Errorf("%d descriptors came with %s, not %d: %w", len(c.files), c.request.Op, len(into), errdefs.ErrInvalidArgument)
	}
	for i, file := range into {
		*file = c.files[i]
	}
	c.files = nil
	return stdio, nil
}

// exec runs a process in a container, and kills it with its descendants when the client says so or is gone.
func (c *call) exec() (any, error) {
	var args monitor.ExecArgs
	if err := c.args(&args); err != nil {
		return nil, err
	}
	found, err := c.container()
	if err != nil {
		return nil, err
	}
	stdio, err := c.takeStdio()
	if err != nil {
		return nil, err
	}
	gone := c.gone(func(kill monitor.ExecKill) bool { return kill.Kill })
	run, err := found.exec(gone, args.Process, stdio)
	if err != nil {
		return nil, err
	}
	defer run.release()
	started := monitor.ExecStarted{PID: run.process.PID(), StartTicks: run.ticks}
	if run.terminal != nil {
		err = c.reply(started, nil, run.terminal)
		_ = run.terminal.Close() // the client's is the only one: closing it hangs up
	} else {
		err = c.reply(started, nil)
	}
	if err != nil {
		run.kill()
	} else {
		select {
		case <-run.dead:
		case <-gone.Done():
			run.kill()
		}
	}
	<-run.dead
	status, err := run.process.Wait()
	run.reaped()
	var exited monitor.ExecExited
	exited.Code, exited.Signal = exitCode(status, err)
	return exited, nil
}

// running is an exec.
type running struct {
	container *container
	process   Process
	reaped    func()
	watch     *process.Watch
	ticks     uint64
	terminal  *os.File
	dead      chan struct{}
}

// exec starts a process, unless ctx ends before it has. The stdio is closed here.
func (c *container) exec(ctx context.Context, spec json.RawMessage, stdio Stdio) (*running, error) {
	defer func() { monitor.CloseFiles([]*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr, stdio.Console}) }()
	// An exec into a paused container would hang.
	if status := c.currentStatus(); status != monitor.StatusRunning {
		return nil, fmt.Errorf("container %s is %s, not running: %w", c.id, status, errdefs.ErrFailedPrecondition)
	}
	var wanted struct{ Terminal bool }
	if err := json.Unmarshal(spec, &wanted); err != nil {
		return nil, fmt.Errorf("decode the process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var console *net.UnixConn
	var err error
	if wanted.Terminal {
		if console, stdio.Console, err = consoleSocket(); err != nil {
			return nil, err
		}
		defer func() { _ = console.Close() }()
	} else if err := c.prepare(&stdio); err != nil {
		return nil, fmt.Errorf("prepare the stdio of a process in container %s: %w", c.id, err)
	}
	run := &running{container: c, dead: make(chan struct{})}
	if run.process, run.reaped, err = c.join(ctx, spec, stdio); err != nil {
		return nil, err
	}
	pid := run.process.PID()
	if err = failpoint.Hit("monitor.exec.started"); err == nil {
		run.ticks, err = process.StartTicks(pid)
	}
	if err == nil {
		run.watch, err = process.WatchExit(pid, run.ticks)
	}
	if err == nil && console != nil {
		run.terminal, err = receiveTerminal(console)
	}
	if err != nil {
		killTree(c.runtime, pid)
		_, _ = run.process.Wait()
		run.reaped()
		if run.watch != nil {
			run.watch.Close()
		}
		return nil, fmt.Errorf("connect to a process in container %s: %w", c.id, err)
	}
	go func() {
		_ = run.watch.Wait()
		close(run.dead)
	}()
	c.mu.Lock()
	c.execs++
	c.mu.Unlock()
	return run, nil
}

// join starts a process in the container, unless ctx or the container ends before it has.
func (c *container) join(ctx context.Context, spec json.RawMessage, stdio Stdio) (p Process, reaped func(), err error) {
	leave, err := c.joined()
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-c.dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	p, reaped, err = c.server.reaper.start(func() (Process, error) { return c.runtime.Exec(ctx, spec, stdio) })
	if err != nil && c.ending() { // its words and its exit code are of what a dead container looks like
		return nil, nil, fmt.Errorf("container %s has exited: %w: %v", c.id, errdefs.ErrFailedPrecondition, err) //nolint:errorlint // see above
	}
	return p, reaped, err
}

// ending says that the container's processes may be dead, before its end is told: the kernel kills those of a PID namespace before
// the first process has ended, and KillAll kills in no order.
func (c *container) ending() bool {
	select {
	case <-c.dead:
		return true
	default:
		return c.asked.Load() || process.Ending(c.watch.PID(), c.ticks)
	}
}

// prepare makes what the client passes fit for a process: it expects blocking descriptors, while pipes of a Go program do
// not block, and its root must be able to open them. What the client does not pass is a null device.
func (c *container) prepare(stdio *Stdio) error {
	for _, file := range []*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr} {
		if file == nil {
			continue
		}
		raw, err := file.SyscallConn()
		if err != nil {
			return err
		}
		if cerr := raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), false) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
	}
	if c.uid != 0 || c.gid != 0 {
		if err := own(c.uid, c.gid, stdio.Stdin, stdio.Stdout, stdio.Stderr); err != nil {
			return err
		}
	}
	for _, file := range []**os.File{&stdio.Stdin, &stdio.Stdout, &stdio.Stderr} {
		if *file != nil {
			continue
		}
		none, err := null()
		if err != nil {
			return err
		}
		*file = none
	}
	return nil
}

func (r *running) kill() { killTree(r.container.runtime, r.process.PID()) }

func (r *running) release() {
	r.watch.Close()
	r.container.mu.Lock()
	r.container.execs--
	r.container.mu.Unlock()
}
