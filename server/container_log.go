package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/internal/failpoint"
)

// ReopenContainerLog goes on in a new file after the kubelet renamed the old one. An error, and no new file, unless the
// container runs. It takes no lock: it must answer all through a stop's grace.
func (s *Server) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := s.store.FindContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.State != engine.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, its log is not written any more: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	eng, err := s.engineOf(c.Engine)
	if err != nil {
		return nil, err
	}
	if err := eng.ReopenLog(ctx, c.ID); err != nil {
		return nil, fmt.Errorf("reopen the log of container %s: %w", c.ID, err)
	}
	if err := failpoint.Hit("ReopenContainerLog.reopened"); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
