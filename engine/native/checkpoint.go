package native

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// CheckpointContainer implements engine.Containers.
func (e *Engine) CheckpointContainer(ctx context.Context, id engine.ContainerID, _ string) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	return fmt.Errorf("checkpoint container %s: the native engine makes none yet: %w", id, errdefs.ErrNotImplemented)
}
