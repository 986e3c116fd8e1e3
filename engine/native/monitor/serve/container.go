package serve

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/internal/failpoint"
	"crishim/internal/process"
)

// deleteTimeout bounds the wait for a killed container's end: longer is a process that the kernel cannot end.
const deleteTimeout = 30 * time.Second

// container is one container. The status moves Created → Running ⇄ Paused → Exited, and from any of them to Exited.
type container struct {
	id       string
	server   *Server
	runtime  Container
	exitFile string
	uid, gid int // of the container's root on the host
	output   *output
	stdin    *stdin
	terminal *os.File // the master, nil without
	watch    *process.Watch
	ticks    uint64
	dead     chan struct{} // closed when the process has exited
	exited   chan struct{} // closed when the exit is recorded too and the output logged

	// oomKills is how many OOM kills were told while it ran, at least; outlivedOOMKills how many of them its first process lived on
	// after: its end is of none of those.
	oomKills         atomic.Uint64
	outlivedOOMKills atomic.Uint64
	// asked says that it was asked to be killed.
	asked atomic.Bool
	// askedToStart says that its program may have run.
	askedToStart atomic.Bool

	// op is held by what changes the container: one at a time.
	op sync.Mutex
	// numbered is held, to read, by what knows the first process by its number alone (joined).
	numbered sync.RWMutex

	mu      sync.Mutex
	status  monitor.Status
	created time.Time
	started time.Time
	exit    *monitor.Exit
	execs   int
}

// reserve takes the id for a container in the making; the caller calls release with it, or nil.
func (s *Server) reserve(id string) (release func(*container), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" {
		return nil, fmt.Errorf("a container without id: %w", errdefs.ErrInvalidArgument)
	}
	if s.ending {
		return nil, fmt.Errorf("the monitor is ending: %w", errdefs.ErrUnavailable)
	}
	if _, ok := s.containers[id]; ok {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	s.containers[id] = nil
	return func(c *container) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if c == nil {
			delete(s.containers, id)
			return
		}
		s.containers[id] = c
	}, nil
}

func (c *call) create() (any, error) {
	var args monitor.CreateArgs
	if err := c.args(&args); err != nil {
		return nil, err
	}
	return c.make(&args, monitor.StatusCreated, Plan.Create)
}

func (c *call) restore() (any, error) {
	var args monitor.RestoreArgs
	if err := c.args(&args); err != nil {
		return nil, err
	}
	return c.make(&args.CreateArgs, monitor.StatusRunning, func(plan Plan, stdio Stdio) (Container, error) {
		return plan.Restore(stdio, &args)
	})
}

// make makes a container by way of fork, after which it is in the given status.
func (c *call) make(args *monitor.CreateArgs, status monitor.Status, fork func(Plan, Stdio) (Container, error)) (any, error) {
	s, id := c.server, c.request.ID
	release, err := s.reserve(id)
	if err != nil {
		return nil, err
	}
	// A caller that has given up may have been told already that there is nothing to delete. A Delete after this waits for us.
	if c.conn.Left() {
		release(nil)
		return nil, fmt.Errorf("container %s: the caller has given up: %w", id, errdefs.ErrAborted)
	}
	made, err := s.build(id, args, status, fork)
	if err != nil {
		release(nil)
		return nil, err
	}
	release(made)
	s.events.publish(monitor.EventState, made.state)
	state := made.state()
	if c.conn.Left() {
		// Its successor may have asked already which containers there are, and would never hear of this one, which may run.
		return nil, errors.Join(fmt.Errorf("container %s: the caller has given up: %w", id, errdefs.ErrAborted), made.delete())
	}
	return state, nil
}

func (s *Server) build(id string, args *monitor.CreateArgs, status monitor.Status, fork func(Plan, Stdio) (Container, error)) (*container, error) {
	if args.ExitFile == "" {
		return nil, fmt.Errorf("container %s: no exit file is named: %w", id, errdefs.ErrInvalidArgument)
	}
	var plan Plan
	if err := s.reaper.Guard(func() (err error) {
		plan, err = s.runtime.Plan(id, args)
		return err
	}); err != nil {
		return nil, err
	}
	if err := s.removeLeftover(id); err != nil {
		return nil, fmt.Errorf("remove what is left of an earlier container %s: %w", id, err)
	}
	if err := forgetExit(args.ExitFile, s.fallbackExitFile(id)); err != nil {
		return nil, err
	}
	io, err := newStdio(plan, args)
	if err != nil {
		return nil, fmt.Errorf("make the stdio of container %s: %w", id, err)
	}
	defer io.closeChild()
	output, err := newOutput(args)
	if err != nil {
		io.closeParent()
		return nil, err
	}
	c := &container{id: id, server: s, exitFile: args.ExitFile, output: output, status: status,
		created: time.Now(), dead: make(chan struct{}), exited: make(chan struct{})}
	c.uid, c.gid = plan.Owner()
	if status == monitor.StatusRunning {
		c.started = c.created
		c.askedToStart.Store(true)
	}
	_, reaped, err := s.reaper.start(func() (Process, error) {
		err := failpoint.Around("monitor.container.create", func() (err error) { c.runtime, err = fork(plan, io.child); return err })
		return c.runtime, err
	})
	if err != nil {
		s.ooms.settle()
		io.closeParent()
		output.closeLog()
		return nil, err
	}
	// Whatever fails from here on, its process ends and is reaped.
	err = c.connect(io, args, reaped)
	if err != nil {
		_ = c.runtime.KillAll()
		_, _ = c.runtime.Wait()
		reaped()
		_ = s.reaper.Guard(c.runtime.Destroy)
		s.ooms.settle()
		io.closeParent()
		output.closeLog()
		return nil, fmt.Errorf("connect to container %s: %w", id, err)
	}
	return c, nil
}

// connect takes the parent's ends of the stdio and starts what goes on by itself.
func (c *container) connect(io *stdio, args *monitor.CreateArgs, reaped func()) (err error) {
	pid := c.runtime.PID()
	if c.ticks, err = process.StartTicks(pid); err != nil {
		return err
	}
	if c.watch, err = process.WatchExit(pid, c.ticks); err != nil {
		return err
	}
	if io.console != nil {
		if c.terminal, err = io.receiveTerminal(); err != nil {
			c.watch.Close()
			return err
		}
	}
	var input *os.File // of a terminal that may be typed into
	if args.Stdin {
		input = c.terminal
	}
	c.stdin = newStdin(io.stdin, input, args.StdinOnce)
	if c.terminal != nil {
		c.output.runTerminal(c.terminal, c.dead)
	} else {
		c.output.run(io.stdout, io.stderr)
	}
	stop, err := c.runtime.NotifyOOM(c.tellOOM)
	if err != nil {
		// The count at the exit does not depend on it.
		stop = func() {}
	}
	c.server.ooms.enter(c)
	go c.untilExit(reaped, stop)
	return nil
}

func (c *container) start() (any, error) {
	c.op.Lock()
	defer c.op.Unlock()
	if status := c.currentStatus(); status != monitor.StatusCreated {
		return nil, fmt.Errorf("container %s is %s, not created: %w", c.id, status, errdefs.ErrFailedPrecondition)
	}
	started := time.Now()
	c.askedToStart.Store(true)
	if err := c.step("start", c.runtime.Start); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.started = started
	if c.status == monitor.StatusCreated { // else it has exited already
		c.status = monitor.StatusRunning
	}
	c.mu.Unlock()
	c.server.events.publish(monitor.EventState, c.state)
	return c.state(), nil
}

// noteOutlived notes the OOM kills within a container that runs on, before it is killed on purpose.
func (c *container) noteOutlived() {
	kills, _ := c.countedOOMKills() // first: one that ends it meanwhile is none that it outlives
	if c.lives() {
		c.outlived(kills)
		c.asked.Store(true)
	}
}

func (c *container) kill(args *monitor.KillArgs) (any, error) {
	sig := unix.Signal(args.Signal)
	if sig <= 0 || sig > 64 {
		return nil, fmt.Errorf("signal %d: %w", args.Signal, errdefs.ErrInvalidArgument)
	}
	if sig == unix.SIGKILL {
		c.noteOutlived()
	}
	return nil, failpoint.Around("monitor.container.kill", func() error {
		if args.All && sig == unix.SIGKILL {
			return c.runtime.KillAll()
		}
		return c.runtime.Signal(sig)
	})
}

// step changes the container by way of do, which may run processes of its own.
func (c *container) step(name string, do func() error) error {
	return failpoint.Around("monitor.container."+name, func() error { return c.server.reaper.Guard(do) })
}

func (c *call) wait() (any, error) {
	found, err := c.container()
	if err != nil {
		return nil, err
	}
	select {
	case <-found.exited:
		return found.state().Exit, nil
	case <-c.gone(nil).Done():
		return nil, errAnswered
	}
}

func (c *container) resize(args *monitor.ResizeArgs) (any, error) {
	if c.terminal == nil {
		return nil, fmt.Errorf("container %s has no terminal: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return nil, monitor.SetSize(c.terminal, args.Width, args.Height)
}

func (c *container) closeStdin() (any, error) {
	c.stdin.close()
	return nil, nil
}

func (c *container) reopenLog() (any, error) {
	if c.currentStatus() == monitor.StatusExited {
		return nil, fmt.Errorf("container %s has exited: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return nil, failpoint.Around("monitor.log.reopen", c.output.reopen)
}

func (c *container) update(args *monitor.UpdateArgs) (any, error) {
	c.op.Lock()
	defer c.op.Unlock()
	if c.currentStatus() == monitor.StatusExited {
		return nil, fmt.Errorf("container %s has exited: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return nil, failpoint.Around("monitor.container.update", func() error { return c.runtime.Update(args.Resources) })
}

func (c *container) pause() (any, error) {
	return c.move("pause", monitor.StatusRunning, monitor.StatusPaused, c.runtime.Pause)
}

func (c *container) resume() (any, error) {
	return c.move("resume", monitor.StatusPaused, monitor.StatusRunning, c.runtime.Resume)
}

// move changes the status by way of do; it is fine when the container is there already.
func (c *container) move(name string, from, to monitor.Status, do func() error) (any, error) {
	c.op.Lock()
	defer c.op.Unlock()
	switch status := c.currentStatus(); status {
	case to:
		return nil, nil
	case from:
	default:
		return nil, fmt.Errorf("container %s is %s, not %s: %w", c.id, status, from, errdefs.ErrFailedPrecondition)
	}
	if err := failpoint.Around("monitor.container."+name, do); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.status == from {
		c.status = to
	}
	c.mu.Unlock()
	c.server.events.publish(monitor.EventState, c.state)
	return nil, nil
}

func (c *call) checkpoint() (any, error) {
	return withArgs(func(found *container, args *monitor.CheckpointArgs) (any, error) {
		return found.checkpoint(c.gone(nil), args)
	})(c)
}

// checkpoint has ctx end when its caller has left.
func (c *container) checkpoint(ctx context.Context, args *monitor.CheckpointArgs) (any, error) {
	c.op.Lock()
	defer c.op.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("container %s: the caller has given up: %w", c.id, err)
	}
	if status := c.currentStatus(); status != monitor.StatusRunning && status != monitor.StatusPaused {
		return nil, fmt.Errorf("container %s is %s, neither running nor paused: %w", c.id, status, errdefs.ErrFailedPrecondition)
	}
	leave, err := c.joined()
	if err != nil {
		return nil, err
	}
	defer leave()
	return nil, c.step("checkpoint", func() error { return c.runtime.Checkpoint(ctx, args) })
}

// removeLeftover takes away what an earlier monitor left of a container.
func (s *Server) removeLeftover(id string) error {
	return failpoint.Around("monitor.container.remove", func() error {
		return s.reaper.Guard(func() error { return s.runtime.Remove(id) })
	})
}

func (c *call) delete() (any, error) {
	s := c.server
	found, err := c.container()
	if errdefs.IsNotFound(err) {
		release, err := s.reserve(c.request.ID)
		if err != nil {
			return nil, err
		}
		defer release(nil)
		return nil, s.removeLeftover(c.request.ID)
	}
	return nil, found.delete()
}

// delete kills the container and removes it; OK when that has been done.
func (c *container) delete() error {
	c.op.Lock()
	defer c.op.Unlock()
	s := c.server
	s.mu.Lock()
	known := s.containers[c.id] == c
	s.mu.Unlock()
	if !known {
		return nil // by who came first; there may be another of the id by now, of the same cgroup and state
	}
	c.noteOutlived()
	if err := c.runtime.KillAll(); err != nil {
		return err
	}
	timeout := time.NewTimer(deleteTimeout)
	defer timeout.Stop()
	select {
	case <-c.exited:
	case <-timeout.C:
		return fmt.Errorf("container %s does not end although killed: %w", c.id, errdefs.ErrUnavailable)
	}
	if err := c.step("destroy", c.runtime.Destroy); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	c.output.closeLog()
	s.mu.Lock()
	delete(s.containers, c.id)
	s.mu.Unlock()
	s.events.publish(monitor.EventDeleted, func() monitor.State { return monitor.State{ID: c.id} })
	return nil
}

// joined keeps the first process's number its own until leave: runtimes join its namespaces by that, and would join those of
// whatever process has it next, one of the host's even. ErrFailedPrecondition once it has exited.
func (c *container) joined() (leave func(), err error) {
	c.numbered.RLock()
	select {
	case <-c.dead:
		c.numbered.RUnlock()
		return nil, fmt.Errorf("container %s has exited: %w", c.id, errdefs.ErrFailedPrecondition)
	default:
		return c.numbered.RUnlock, nil
	}
}

// leaveTimeout bounds the wait for what joined has let in, which is given up when the container ends: a runtime may hang.
const leaveTimeout = 5 * time.Second

// awaitLeave returns when nobody goes by the number of the first process any more, which is dead.
func (c *container) awaitLeave() {
	for deadline := time.Now().Add(leaveTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if c.numbered.TryLock() {
			c.numbered.Unlock()
			return
		}
	}
}

func (c *container) currentStatus() monitor.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *container) state() monitor.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := monitor.State{
		ID: c.id, Status: c.status, CreatedAt: c.created, StartedAt: c.started, Exit: c.exit,
		CgroupPaths: c.runtime.CgroupPaths(), TTY: c.terminal != nil, StdinOpen: c.stdin.isOpen(),
		Execs: c.execs, Attached: c.output.attached(), Log: c.output.logState(),
	}
	if c.status != monitor.StatusExited {
		state.PID, state.StartTicks = c.runtime.PID(), c.ticks
	}
	return state
}
