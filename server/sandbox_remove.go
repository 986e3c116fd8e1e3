package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/internal/failpoint"
	"crishim/state"
)

// RemovePodSandbox stops the pod if need be and removes it with its containers. OK for an unknown pod.
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	pod, err := s.store.FindPod(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.abortPod(ctx, pod); err != nil {
		return nil, err
	}
	if err := s.removePod(ctx, pod); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (s *Server) removePod(ctx context.Context, pod state.PodView) error {
	eng, err := s.engineOf(pod.Engine)
	if err != nil {
		return err
	}
	if pod.ID == "" {
		// Only an intent: CreatePod of the same key would take the engine's object away, nothing else knows it.
		if pod.ID, err = s.store.DeletePodIntent(pod.Spec.Key); err != nil || pod.ID == "" {
			return err
		}
	}
	unlock, err := s.podLocks.Lock(ctx, pod.ID)
	if err != nil {
		return err
	}
	defer unlock()
	// Read again under the lock: another call may have removed it.
	pod, ok := s.store.Pod(pod.ID)
	if !ok {
		return nil
	}
	if err := s.stopPod(ctx, pod.ID); err != nil {
		return err
	}
	s.store.MarkPodRemoving(pod.ID)
	var containers errgroup.Group
	for _, c := range s.store.ContainersOf(pod.ID) {
		containers.Go(func() (err error) {
			defer caught(&err)
			return s.removeWithPod(ctx, c)
		})
	}
	if err := containers.Wait(); err != nil {
		return fmt.Errorf("remove the pod's containers: %w", err)
	}
	if err := failpoint.Hit("RemovePodSandbox.emptied"); err != nil {
		return err
	}
	if err := eng.RemovePod(ctx, pod.ID); err != nil {
		return fmt.Errorf("remove the pod sandbox: %w", err)
	}
	if err := failpoint.Hit("RemovePodSandbox.removed"); err != nil {
		return err
	}
	if s.opts.Adopter != nil {
		if err := s.opts.Adopter.Removed(pod.ID); err != nil {
			return fmt.Errorf("remove what another shim kept of the pod: %w", err)
		}
	}
	return s.store.DeletePod(pod.ID)
}

// removeWithPod removes a container of a pod that ends. One that is being made is waited for: its creation may be past its
// last look at the pod.
func (s *Server) removeWithPod(ctx context.Context, c state.ContainerView) error {
	if c.ID == "" {
		if err := s.containerFlights.wait(ctx, containerCreation{c.PodID, c.Spec.Key}); err != nil {
			return err
		}
		var ok bool
		if c, ok = s.store.ContainerByKey(c.PodID, c.Spec.Key); !ok {
			return nil
		}
	}
	return s.removeContainer(ctx, c)
}
