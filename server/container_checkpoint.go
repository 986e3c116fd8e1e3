package server

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// CheckpointContainer writes a checkpoint archive, where the operator allowed it and the engine can.
func (s *Server) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	c, unlock, err := s.lockContainer(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	eng, err := s.engineOf(c.Engine)
	if err != nil {
		return nil, err
	}
	if err := s.checkpointAllowed(eng); err != nil {
		return nil, err
	}
	if c.State != engine.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, only a running one can be checkpointed: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	if !filepath.IsAbs(req.GetLocation()) {
		return nil, fmt.Errorf("location %q is not an absolute path: %w", req.GetLocation(), errdefs.ErrInvalidArgument)
	}
	if err := eng.CheckpointContainer(ctx, c.ID, req.GetLocation()); err != nil {
		return nil, fmt.Errorf("checkpoint container %s: %w", c.ID, err)
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

func (s *Server) checkpointAllowed(eng engine.Engine) error {
	if !s.opts.Checkpoint {
		return fmt.Errorf("checkpoints are off; set checkpoint = true to allow them: %w", errdefs.ErrNotImplemented)
	}
	if !eng.Info().Features.Checkpoint {
		return fmt.Errorf("engine %s has no checkpoint support: %w", eng.Name(), errdefs.ErrNotImplemented)
	}
	return nil
}

// CheckpointPod is refused with the reason: no engine can pause a whole pod and dump it yet.
func (s *Server) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, fmt.Errorf("engine %s cannot checkpoint a whole pod: %w", s.defaultEngine.Name(), errdefs.ErrNotImplemented)
}

// RestorePod is refused with the reason, as CheckpointPod.
func (s *Server) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, fmt.Errorf("engine %s cannot restore a pod from a checkpoint: %w", s.defaultEngine.Name(), errdefs.ErrNotImplemented)
}
