package docker

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"

	"crishim/engine"
)

// Attach joins the container's main process until the client or the container ends. What was written before is not given.
func (e *Engine) Attach(ctx context.Context, id engine.ContainerID, streams *engine.Streams) error {
	if !validID(string(id)) {
		return notFound("container", string(id))
	}
	options := container.AttachOptions{
		Stream: true, DetachKeys: detachKeys,
		Stdin: streams.Stdin != nil, Stdout: streams.Stdout != nil, Stderr: streams.Stderr != nil && !streams.TTY,
	}
	stream, err := e.hijack(ctx, "attach to container "+string(id), func(ctx context.Context, s *session) (types.HijackedResponse, error) {
		return s.cli.ContainerAttach(ctx, string(id), options)
	}, func() {})
	if err != nil {
		return e.whyNotAttached(ctx, id, err)
	}
	defer stream.Close()
	running, stop := context.WithCancel(ctx)
	defer stop()
	if streams.Resize != nil {
		go e.resize(running, streams.Resize, func(ctx context.Context, s *session, size container.ResizeOptions) error {
			return s.cli.ContainerResize(ctx, string(id), size)
		})
	}
	output := pump(stream, streams, true)
	select {
	case err := <-output.done:
		if err != nil {
			return fmt.Errorf("output of container %s: %w", id, err)
		}
		return nil
	case <-ctx.Done():
		cut(output, stream)
		return ctx.Err()
	}
}

// whyNotAttached finds the class of a refused attach: the client's hijacked requests tell none.
func (e *Engine) whyNotAttached(ctx context.Context, id engine.ContainerID, err error) error {
	if errdefs.IsUnavailable(err) || ctx.Err() != nil {
		return err
	}
	status, serr := e.ContainerStatus(ctx, id)
	switch {
	case serr != nil:
		return serr
	case status.State != engine.ContainerRunning:
		return fmt.Errorf("%w: it is %s: %w", err, status.State, errdefs.ErrFailedPrecondition)
	}
	return err
}
