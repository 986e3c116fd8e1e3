package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/internal/failpoint"
	"crishim/state"
)

// RemoveContainer removes the container, by force if it runs; its log files stay. OK for an unknown one.
func (s *Server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.store.FindContainer(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.removeContainer(ctx, c); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *Server) removeContainer(ctx context.Context, c state.ContainerView) error {
	eng, err := s.engineOf(c.Engine)
	if err != nil {
		return err
	}
	if c.ID == "" {
		// Only an intent: CreateContainer of the same key would take the engine's object away, nothing else knows it.
		if c.ID, err = s.store.DeleteContainerIntent(c.PodID, c.Spec.Key); err != nil || c.ID == "" {
			return err
		}
	}
	s.starts.abort(c.ID)
	unlock, err := s.containerLocks.Lock(ctx, c.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if _, ok := s.store.Container(c.ID); !ok {
		return nil
	}
	s.store.MarkContainerRemoving(c.ID)
	if err := failpoint.Hit("RemoveContainer.recorded"); err != nil {
		return err
	}
	if err := eng.RemoveContainer(ctx, c.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	if err := failpoint.Hit("RemoveContainer.removed"); err != nil {
		return err
	}
	return s.store.DeleteContainer(c.ID)
}
