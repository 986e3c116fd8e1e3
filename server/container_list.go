package server

import (
	"context"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/state"
	"crishim/translator"
)

// ListContainers answers from the index.
func (s *Server) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	if !unfiltered(req.GetFilter()) {
		items, err := s.listContainers(req.GetFilter())
		return &runtimeapi.ListContainersResponse{Containers: items}, err
	}
	containers, err := s.confirmedContainers()
	if err != nil {
		return nil, err
	}
	reply := &runtimeapi.ListContainersResponse{}
	err = s.containerList.fill(reply, containers, func() proto.Message {
		return &runtimeapi.ListContainersResponse{Containers: containerItems(containers, nil)}
	})
	return reply, err
}

// StreamContainers sends the same list in parts (KEP-5825).
func (s *Server) StreamContainers(req *runtimeapi.StreamContainersRequest, stream runtimeapi.RuntimeService_StreamContainersServer) error {
	items, err := s.listContainers(req.GetFilter())
	if err != nil {
		return err
	}
	return inParts(items, func(part []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: part})
	})
}

func (s *Server) listContainers(filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	containers, err := s.confirmedContainers()
	if err != nil {
		return nil, err
	}
	return containerItems(containers, filter), nil
}

func (s *Server) confirmedContainers() ([]state.ContainerView, error) {
	return s.confirmContainers(s.store.Containers())
}

func containerItems(containers []state.ContainerView, filter *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	items := make([]*runtimeapi.Container, 0, len(containers))
	for i := range containers {
		if containers[i].ID == "" {
			continue // an intent: nothing that a caller could name
		}
		if view := containerView(&containers[i]); translator.ContainerMatches(filter, &view) {
			items = append(items, translator.ContainerListItem(&view))
		}
	}
	return items
}

func containerView(c *state.ContainerView) translator.ContainerView {
	status := c.Status
	status.State, status.CreatedAt = c.State, c.CreatedAt
	return translator.ContainerView{
		ID: c.ID, PodID: c.PodID, Spec: &c.Spec, Status: status, Resources: c.Resources,
		ImageID: c.ImageID, ImageRef: c.Spec.Image.RepoDigest, ImageName: c.Spec.Image.Name,
	}
}
