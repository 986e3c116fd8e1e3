package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/state"
)

// StartContainer starts a created container; it is an error for any other state, and of two calls at once one fails.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, unlock, err := s.lockContainer(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if c.State != engine.ContainerCreated {
		return nil, fmt.Errorf("container %s is %s, only a created one can be started: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	if err := s.podTakes(c.PodID); err != nil {
		return nil, fmt.Errorf("container %s cannot be started: %w", c.ID, err)
	}
	if err := s.checkTarget(&c.Spec); err != nil {
		return nil, err
	}
	eng, err := s.engineOf(c.Engine)
	if err != nil {
		return nil, err
	}
	if err := s.ready(c.Engine); err != nil {
		return nil, err
	}
	if err := s.containerIsUsed(&c); err != nil {
		return nil, err
	}
	// A start whose caller leaves halfway is finished: whether the process runs must not depend on when that was.
	// Only a stop ends it.
	ctx, end := s.starts.begin(context.WithoutCancel(ctx), c.ID)
	defer end()
	spec := c.Spec
	spec.Resources = c.Resources // may have been changed since the creation
	status, err := eng.StartContainer(ctx, c.ID, &spec)
	if status.ID != "" {
		s.store.ApplyContainer(status)
	}
	if err != nil {
		return nil, fmt.Errorf("start container %s: %w", c.ID, abortedBy(ctx, err))
	}
	if err := failpoint.Hit("StartContainer.started"); err != nil {
		return nil, err
	}
	err = s.store.NoteContainer(c.ID, func(c *state.Container) { c.Phase = state.PhaseRunning })
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return nil, fmt.Errorf("record the start of container %s: %w", c.ID, err)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// podTakes says whether containers can be made and started in the pod: it is ready and nobody has begun to stop it.
func (s *Server) podTakes(id engine.PodID) error {
	pod, ok := s.store.Pod(id)
	switch {
	case !ok:
		return fmt.Errorf("pod sandbox %s is gone: %w", id, errdefs.ErrFailedPrecondition)
	case pod.State != engine.PodReady || pod.Phase.Ending():
		return fmt.Errorf("pod sandbox %s is not ready: %w", id, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// lockContainer finds the container and takes its lock; the view is read under the lock.
func (s *Server) lockContainer(ctx context.Context, idOrPrefix string) (state.ContainerView, func(), error) {
	c, err := s.store.FindContainer(idOrPrefix)
	if err != nil {
		return c, nil, err
	}
	unlock, err := s.containerLocks.Lock(ctx, c.ID)
	if err != nil {
		return c, nil, err
	}
	if c, ok := s.store.Container(c.ID); ok {
		return c, unlock, nil
	}
	unlock()
	return c, nil, fmt.Errorf("container %s: %w", c.ID, errdefs.ErrNotFound)
}
