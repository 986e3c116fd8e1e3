package monitor

import (
	"context"
	"encoding/json"

	"golang.org/x/sys/unix"
)

// Commit says that the pod is recorded: the monitor stays without containers too.
func (c *Client) Commit(ctx context.Context) error {
	return c.call(ctx, Request{Op: OpCommit}, nil, nil)
}

// Shutdown ends the monitor. ErrFailedPrecondition while it has a container, exited ones included: Delete them first.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, Request{Op: OpShutdown}, nil, nil)
}

// Create makes a container whose process waits for Start. What is left of one of the same id from a monitor that died is
// killed and removed first. ErrAlreadyExists where this monitor has it; a *StartError where the process cannot start.
func (c *Client) Create(ctx context.Context, id string, args *CreateArgs) (State, error) {
	var state State
	err := c.call(ctx, Request{Op: OpCreate, ID: id}, args, &state)
	return state, err
}

// Restore makes and starts a container from a checkpoint.
func (c *Client) Restore(ctx context.Context, id string, args *RestoreArgs) (State, error) {
	var state State
	err := c.call(ctx, Request{Op: OpRestore, ID: id}, args, &state)
	return state, err
}

// Start lets the process run. ErrFailedPrecondition unless it is created.
func (c *Client) Start(ctx context.Context, id string) (State, error) {
	var state State
	err := c.call(ctx, Request{Op: OpStart, ID: id}, nil, &state)
	return state, err
}

// Signal sends sig to the container's first process. OK when it has exited.
func (c *Client) Signal(ctx context.Context, id string, sig unix.Signal) error {
	return c.call(ctx, Request{Op: OpKill, ID: id}, KillArgs{Signal: int(sig)}, nil)
}

// Kill kills all processes of the container. OK when it has exited; Wait says when it has.
func (c *Client) Kill(ctx context.Context, id string) error {
	return c.call(ctx, Request{Op: OpKill, ID: id}, KillArgs{Signal: int(unix.SIGKILL), All: true}, nil)
}

// Wait returns when the container has exited, its exit is recorded and its output logged.
func (c *Client) Wait(ctx context.Context, id string) (Exit, error) {
	var exit Exit
	err := c.call(ctx, Request{Op: OpWait, ID: id}, nil, &exit)
	return exit, err
}

// Resize sets the size of the container's terminal.
func (c *Client) Resize(ctx context.Context, id string, width, height uint16) error {
	return c.call(ctx, Request{Op: OpResize, ID: id}, ResizeArgs{width, height}, nil)
}

// CloseStdin ends the container's standard input.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	return c.call(ctx, Request{Op: OpCloseStdin, ID: id}, nil, nil)
}

// ReopenLog goes on in a new file at the log's path. When it returns, the old file gets nothing more.
// ErrFailedPrecondition when the container has exited.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, Request{Op: OpReopenLog, ID: id}, nil, nil)
}

// Update replaces the resources (OCI specs.LinuxResources). Of those that are refused a part may be in effect: the caller sets the
// old ones again.
func (c *Client) Update(ctx context.Context, id string, resources json.RawMessage) error {
	return c.call(ctx, Request{Op: OpUpdate, ID: id}, UpdateArgs{resources}, nil)
}

// Pause freezes the container's processes, Resume thaws them. OK when it is so already.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, Request{Op: OpPause, ID: id}, nil, nil)
}

// Resume undoes Pause.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, Request{Op: OpResume, ID: id}, nil, nil)
}

// Checkpoint writes a checkpoint. ErrNotImplemented where CRIU is absent.
func (c *Client) Checkpoint(ctx context.Context, id string, args *CheckpointArgs) error {
	return c.call(ctx, Request{Op: OpCheckpoint, ID: id}, args, nil)
}

// Delete kills the container if it runs, and removes its cgroup and state, also where a monitor that died made it. OK
// when absent. Rootfs, log and exit file stay.
func (c *Client) Delete(ctx context.Context, id string) error {
	return c.call(ctx, Request{Op: OpDelete, ID: id}, nil, nil)
}

// State describes a container. ErrNotFound when absent.
func (c *Client) State(ctx context.Context, id string) (State, error) {
	var state State
	err := c.call(ctx, Request{Op: OpState, ID: id}, nil, &state)
	return state, err
}

// List describes all containers.
func (c *Client) List(ctx context.Context) ([]State, error) {
	var states []State
	err := c.call(ctx, Request{Op: OpList}, nil, &states)
	return states, err
}

// Subscribe calls notify with each Event, from one goroutine, until ctx or the monitor ends, and returns why. Where notify
// is too slow the connection ends: ErrUnavailable with Done still open; subscribing again tells the states again.
func (c *Client) Subscribe(ctx context.Context, notify func(Event)) error {
	l, err := c.begin(ctx, Request{Op: OpSubscribe}, nil)
	if err != nil {
		return err
	}
	defer l.stop()
	for {
		var event Event
		if _, err := c.next(ctx, l.Conn, &event); err != nil {
			return err
		}
		notify(event)
	}
}
