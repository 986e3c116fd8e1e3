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
	if err := s.checkpointsOn(); err != nil { // an engine that has none says why itself
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

func (s *Server) checkpointsOn() error {
	if !s.opts.Checkpoint {
		return fmt.Errorf("checkpoints are off; set checkpoint = true to allow them: %w", errdefs.ErrNotImplemented)
	}
	return nil
}

// findCheckpoint looks whether the container's image is a checkpoint, an archive by its absolute path or an image with the
// content of one, and takes the image that this is of in its place.
func (s *Server) findCheckpoint(ctx context.Context, eng engine.Engine, spec *engine.ContainerSpec) error {
	checkpointer, ok := eng.(engine.Checkpointer)
	if !ok || !s.opts.Checkpoint || !eng.Info().Features.Checkpoint {
		return nil
	}
	asked := spec.Image
	ref := spec.Checkpoint
	switch {
	case ref != nil:
		if _, err := s.resolveImage(ctx, eng, &asked); err != nil {
			return err
		}
	case filepath.IsAbs(asked.Ref):
		ref = &engine.CheckpointRef{Path: asked.Ref}
	default:
		if _, err := s.resolveImage(ctx, eng, &asked); err != nil {
			return nil // what comes tells
		}
		ref = &engine.CheckpointRef{Image: asked.ID}
	}
	found, err := checkpointer.ReadCheckpoint(ctx, ref)
	if ref.Image != "" && errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("restore from %s: %w", asked.Ref, err)
	}
	if ref.Exact && asked.ID != found.Image {
		return fmt.Errorf("the checkpoint of container %s is of image %s, not of %s: %w", found.Name, found.Image, asked.ID, errdefs.ErrFailedPrecondition)
	}
	spec.Checkpoint = ref
	for _, name := range append([]string{string(found.Image)}, found.ImageNames...) {
		image := engine.ImageRef{Ref: name, RuntimeHandler: asked.RuntimeHandler}
		if _, err := s.resolveImage(ctx, eng, &image); err == nil {
			spec.Image.Ref = name
			return nil
		}
	}
	return fmt.Errorf("the checkpoint is of image %s (%q), which is not on this node; pull it first: %w", found.Image, found.ImageNames, errdefs.ErrNotFound)
}
