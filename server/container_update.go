package server

import (
	"cmp"
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/state"
	"crishim/translator"
)

// UpdateContainerResources sets a container's resources, all or nothing; limits can be removed again.
func (s *Server) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if req.GetLinux() == nil {
		return nil, fmt.Errorf("linux: resources are missing: %w", errdefs.ErrInvalidArgument)
	}
	c, unlock, err := s.lockContainer(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if c.State != engine.ContainerRunning && c.State != engine.ContainerCreated {
		return nil, fmt.Errorf("container %s is %s, its resources cannot be changed: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	if !c.Recorded && (listedContainer(&c) || c.State == engine.ContainerCreated) {
		// A list does not tell its limits, and what the request leaves as it is would be none.
		if c, err = s.lookAtContainer(ctx, c); err != nil {
			return nil, fmt.Errorf("look at container %s: %w", c.ID, err)
		}
	}
	resources, err := translator.UpdateResources(c.Resources, req.GetLinux())
	if err != nil {
		return nil, err
	}
	eng, err := s.engineOf(c.Engine)
	if err != nil {
		return nil, err
	}
	if err := translator.CheckUpdate(req.GetLinux(), eng.Info().Features); err != nil {
		return nil, err
	}
	if err := s.ready(c.Engine); err != nil {
		return nil, err
	}
	if err := eng.UpdateContainer(ctx, c.ID, &resources); err != nil {
		return nil, fmt.Errorf("update the resources of container %s: %w", c.ID, err)
	}
	if err := failpoint.Hit("UpdateContainerResources.updated"); err != nil {
		return nil, err
	}
	err = s.store.NoteContainer(c.ID, func(c *state.Container) { c.Resources = resources })
	if err != nil {
		return nil, fmt.Errorf("record the resources of container %s: %w", c.ID, err)
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources takes the pod's sums after a resize. The kubelet has written the pod's cgroup itself.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	overhead, resources, err := translator.PodResources(req.GetOverhead(), req.GetResources())
	if err != nil {
		return nil, err
	}
	pod, unlock, err := s.lockPod(ctx, req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !pod.Recorded && listedPod(&pod) {
		// The look that comes later takes what the engine tells in the place of all that is known.
		if pod, err = s.lookAtPod(ctx, pod); err != nil {
			return nil, fmt.Errorf("look at pod sandbox %s: %w", pod.ID, err)
		}
	}
	eng, err := s.engineOf(pod.Engine)
	if err != nil {
		return nil, err
	}
	if err := eng.UpdatePod(ctx, pod.ID, overhead, resources); err != nil {
		return nil, fmt.Errorf("update the resources of pod sandbox %s: %w", pod.ID, err)
	}
	if err := failpoint.Hit("UpdatePodSandboxResources.updated"); err != nil {
		return nil, err
	}
	err = s.store.NotePod(pod.ID, func(p *state.Pod) {
		p.Spec.Overhead, p.Spec.Resources = cmp.Or(overhead, p.Spec.Overhead), cmp.Or(resources, p.Spec.Resources)
	})
	if err != nil {
		return nil, fmt.Errorf("record the resources of pod sandbox %s: %w", pod.ID, err)
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// lockPod is lockContainer for a pod: an adoption writes what the pod was when it began, and a stop is not to meet a change.
func (s *Server) lockPod(ctx context.Context, idOrPrefix string) (state.PodView, func(), error) {
	pod, err := s.store.FindPod(idOrPrefix)
	if err != nil {
		return pod, nil, err
	}
	unlock, err := s.podLocks.Lock(ctx, pod.ID)
	if err != nil {
		return pod, nil, err
	}
	if pod, ok := s.store.Pod(pod.ID); ok {
		return pod, unlock, nil
	}
	unlock()
	return pod, nil, fmt.Errorf("pod sandbox %s: %w", pod.ID, errdefs.ErrNotFound)
}
