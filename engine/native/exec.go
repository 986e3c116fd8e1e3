package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/native/monitor"
	"crishim/engine/native/spec"
)

// Exec implements engine.Execs. A reader of stdin that waits for ever outlasts it until its owner closes it.
func (e *Engine) Exec(ctx context.Context, id engine.ContainerID, x *engine.ExecSpec) (int, error) {
	if err := e.check(ctx); err != nil {
		return 0, err
	}
	if len(x.Command) == 0 {
		return 0, fmt.Errorf("exec without a command: %w", errdefs.ErrInvalidArgument)
	}
	_, client, err := e.running(id)
	if err != nil {
		return 0, err
	}
	oci, err := e.readBundle(id)
	if err != nil {
		return 0, err
	}
	process, err := spec.BuildExec(oci, x)
	if err != nil {
		return 0, err
	}
	data, err := json.Marshal(process)
	if err != nil {
		return 0, err
	}
	code, err := e.exec(ctx, client, string(id), data, x)
	var start *monitor.StartError
	if errors.As(err, &start) { // which names the container
		return start.ExitCode, err
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return code, nil
}

func (e *Engine) exec(ctx context.Context, client *monitor.Client, id string, process []byte, x *engine.ExecSpec) (int, error) {
	if x.TTY {
		return execTTY(ctx, client, id, process, x)
	}
	pipes, err := newPipes(&x.Streams)
	if err != nil {
		return 0, err
	}
	defer pipes.close()
	running, err := client.Exec(ctx, id, process, pipes.theirs)
	pipes.handedOver()
	if err != nil {
		return 0, endedMeanwhile(engine.ContainerID(id), err)
	}
	output := pipes.copy(&x.Streams)
	exited, err := running.Wait(ctx)
	if err != nil {
		pipes.close()
		<-output // the caller's streams are not used after the return
		return 0, err
	}
	return exited.Code, drain(ctx, output, pipes)
}

// drain waits for the rest of the output of a process that has ended: children may hold it open for long, what is there by then
// is delivered however long the client takes. That the process has ended is true also where ctx ends meanwhile, as that of a
// probe of one second does.
func drain(ctx context.Context, output <-chan error, pipes *pipes) error {
	defer pipes.close()
	timer := time.NewTimer(engine.DrainTimeout)
	defer timer.Stop()
	select {
	case err := <-output:
		return err
	case <-timer.C:
		pipes.expire()
		select {
		case err := <-output:
			return err
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	pipes.close()
	<-output
	return nil
}

func execTTY(ctx context.Context, client *monitor.Client, id string, process []byte, x *engine.ExecSpec) (int, error) {
	running, err := client.Exec(ctx, id, process, monitor.Stdio{})
	if err != nil {
		return 0, endedMeanwhile(engine.ContainerID(id), err)
	}
	tty := running.TTY
	defer func() { _ = tty.Close() }()
	done := make(chan struct{})
	defer close(done)
	go follow(done, x.Resize, func(size engine.TerminalSize) { _ = running.Resize(size.Width, size.Height) })
	if x.Stdin != nil {
		go func() {
			// A terminal has no end of input: what ^D does is the client's to send.
			_, _ = io.Copy(tty, x.Stdin)
		}()
	}
	output := make(chan error, 1)
	go func() { output <- copyOutput(x.Stdout, tty) }()
	exited, err := running.Wait(ctx)
	if err != nil {
		_ = tty.Close()
		<-output
		return 0, err
	}
	return exited.Code, drain(ctx, output, &pipes{ours: []*os.File{tty}})
}

// Attach implements engine.Execs. What was written before is not given.
func (e *Engine) Attach(ctx context.Context, id engine.ContainerID, streams *engine.Streams) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	_, client, err := e.running(id)
	if err != nil {
		return err
	}
	wanted := *streams
	if wanted.TTY {
		wanted.Stderr = nil
	}
	pipes, err := newPipes(&wanted)
	if err != nil {
		return err
	}
	defer pipes.close()
	attachment, err := client.Attach(ctx, string(id), pipes.theirs)
	pipes.handedOver()
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	done := make(chan struct{})
	defer close(done)
	go follow(done, wanted.Resize, func(size engine.TerminalSize) { _ = client.Resize(ctx, string(id), size.Width, size.Height) })
	output := pipes.copy(&wanted)
	if _, err := attachment.Wait(ctx); err != nil {
		pipes.close()
		<-output
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	return drain(ctx, output, pipes)
}

// follow hands on sizes of the terminal until done is closed.
func follow(done <-chan struct{}, sizes <-chan engine.TerminalSize, set func(engine.TerminalSize)) {
	for {
		select {
		case <-done:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if size.Width > 0 && size.Height > 0 {
				set(size)
			}
		}
	}
}

// pipes join streams of ours to descriptors that a process has as its stdio.
type pipes struct {
	theirs                monitor.Stdio
	stdin, stdout, stderr *os.File // our ends
	ours                  []*os.File
	once                  sync.Once
}

func newPipes(s *engine.Streams) (_ *pipes, err error) {
	p := &pipes{}
	defer func() {
		if err != nil {
			p.handedOver()
			p.close()
		}
	}()
	if s.Stdin != nil {
		if p.theirs.Stdin, p.stdin, err = os.Pipe(); err != nil {
			return nil, err
		}
		p.ours = append(p.ours, p.stdin)
	}
	if s.Stdout != nil {
		if p.stdout, p.theirs.Stdout, err = os.Pipe(); err != nil {
			return nil, err
		}
		p.ours = append(p.ours, p.stdout)
	}
	if s.Stderr != nil {
		if p.stderr, p.theirs.Stderr, err = os.Pipe(); err != nil {
			return nil, err
		}
		p.ours = append(p.ours, p.stderr)
	}
	return p, nil
}

// handedOver closes the ends that the monitor has got by now.
func (p *pipes) handedOver() {
	for _, f := range []*os.File{p.theirs.Stdin, p.theirs.Stdout, p.theirs.Stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (p *pipes) close() {
	p.once.Do(func() {
		for _, f := range p.ours {
			_ = f.Close()
		}
	})
}

// expire ends the output with what is there now.
func (p *pipes) expire() {
	for _, f := range p.ours {
		if err := f.SetReadDeadline(time.Unix(1, 0)); err != nil {
			_ = f.Close()
		}
	}
}

// copy moves everything; the channel tells the end of all output.
func (p *pipes) copy(s *engine.Streams) <-chan error {
	if p.stdin != nil {
		go func() {
			_, _ = io.Copy(p.stdin, s.Stdin)
			_ = p.stdin.Close()
		}()
	}
	output := make(chan error, 1)
	var both sync.WaitGroup
	var outErr, errErr error
	if p.stdout != nil {
		both.Go(func() { outErr = copyOutput(s.Stdout, p.stdout) })
	}
	if p.stderr != nil {
		both.Go(func() { errErr = copyOutput(s.Stderr, p.stderr) })
	}
	go func() {
		both.Wait()
		output <- errors.Join(outErr, errErr)
	}()
	return output
}
