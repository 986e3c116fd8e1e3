package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// killConfirm bounds the wait for the monitor's word that a killed exec has ended.
const killConfirm = 5 * time.Second

// Stdio are descriptors for an exec or attach: pipe ends or anything else that a process can have as its stdio. Nil is
// /dev/null for an exec, not wanted for an attach. They are passed on, and are the caller's to close after the call; those of
// an exec block from then on.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

func (s Stdio) args() (StdioArgs, []*os.File) {
	args := StdioArgs{Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil}
	var files []*os.File
	for _, file := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if file != nil {
			files = append(files, file)
		}
	}
	return args, files
}

// Exec is a running exec.
type Exec struct {
	// PID and StartTicks name its process on the host.
	ExecStarted
	// TTY is the terminal's master, nil without one. The caller closes it: that hangs up.
	TTY    *os.File
	client *Client
	link   *link
}

// Exec starts process (JSON of OCI specs.Process) in a running container. The process has the descriptors of stdio
// themselves, nothing is copied; with process.terminal stdio is empty and Exec.TTY has the master. Losing the connection
// (the daemon's death too) kills the process with all its descendants. Wait must be called. A *StartError where the
// process cannot start, ErrFailedPrecondition where the container is not running or is paused.
func (c *Client) Exec(ctx context.Context, id string, process []byte, stdio Stdio) (*Exec, error) {
	flags, files := stdio.args()
	l, err := c.begin(ctx, Request{Op: OpExec, ID: id}, ExecArgs{process, flags}, files...)
	if err != nil {
		return nil, err
	}
	e := &Exec{client: c, link: l}
	files, err = c.next(ctx, l.Conn, &e.ExecStarted)
	// The connection outlives ctx, by which only the start is bounded.
	if !l.unbind() && err == nil {
		CloseFiles(files)
		err = ctx.Err()
	}
	if err != nil {
		l.stop()
		return nil, err
	}
	if len(files) > 0 {
		e.TTY = files[0]
		CloseFiles(files[1:])
	}
	return e, nil
}

// Wait returns how the process ended, whoever still has its output open. When ctx ends first, the process and all its
// descendants are killed, and ctx's error is returned once they are gone.
func (e *Exec) Wait(ctx context.Context) (ExecExited, error) {
	defer e.link.stop()
	cancel := context.AfterFunc(ctx, func() {
		_ = e.link.SetReadDeadline(time.Now().Add(killConfirm))
		_ = e.link.Send(ExecKill{Kill: true})
	})
	defer cancel()
	var exited ExecExited
	_, err := e.client.next(context.WithoutCancel(ctx), e.link.Conn, &exited)
	if ctx.Err() != nil {
		return ExecExited{}, ctx.Err()
	}
	return exited, err
}

// Resize sets the size of the exec's terminal.
func (e *Exec) Resize(width, height uint16) error {
	if e.TTY == nil {
		return errors.New("the exec has no terminal")
	}
	return SetSize(e.TTY, width, height)
}

// SetSize sets the size of a terminal by its master.
func SetSize(tty *os.File, width, height uint16) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("resize a terminal: %w", err)
	}
	return nil
}

// Attachment is a client of a container's main process.
type Attachment struct {
	client *Client
	link   *link
}

// Attach joins the container's main process: its output from now on is written to stdio's Stdout and Stderr (a terminal's
// all to Stdout), Stdin is read for it. The client may be slow, then it loses output, never the container or its log.
// Wait must be called, and returns when the output has ended, or Stdin has where the container's input goes on without it; the
// monitor's ends are closed then.
func (c *Client) Attach(ctx context.Context, id string, stdio Stdio) (*Attachment, error) {
	args, files := stdio.args()
	l, err := c.begin(ctx, Request{Op: OpAttach, ID: id}, args, files...)
	if err != nil {
		return nil, err
	}
	// The first answer says that it is attached.
	if _, err := c.next(ctx, l.Conn, nil); err != nil {
		l.stop()
		return nil, err
	}
	return &Attachment{client: c, link: l}, nil
}

// Wait returns when the container's output or the client's input has ended, or detaches when the context of Attach ends.
func (a *Attachment) Wait(ctx context.Context) (AttachDone, error) {
	defer a.link.stop()
	cancel := context.AfterFunc(ctx, func() { _ = a.link.SetDeadline(time.Unix(1, 0)) })
	defer cancel()
	var done AttachDone
	_, err := a.client.next(ctx, a.link.Conn, &done)
	return done, err
}
