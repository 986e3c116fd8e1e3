package server

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/state"
	"crishim/translator"
)

// ListPodSandbox answers from the index.
func (s *Server) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	if !unfiltered(req.GetFilter()) {
		items, err := s.listPods(req.GetFilter())
		return &runtimeapi.ListPodSandboxResponse{Items: items}, err
	}
	pods, err := s.confirmedPods()
	if err != nil {
		return nil, err
	}
	reply := &runtimeapi.ListPodSandboxResponse{}
	err = s.podList.fill(reply, pods, func() proto.Message { return &runtimeapi.ListPodSandboxResponse{Items: podItems(pods, nil)} })
	return reply, err
}

// StreamPodSandboxes sends the same list in parts (KEP-5825).
func (s *Server) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, stream runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	items, err := s.listPods(req.GetFilter())
	if err != nil {
		return err
	}
	return inParts(items, func(part []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

func (s *Server) listPods(filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	pods, err := s.confirmedPods()
	if err != nil {
		return nil, err
	}
	return podItems(pods, filter), nil
}

func (s *Server) confirmedPods() ([]state.PodView, error) { return s.confirmPods(s.store.Pods()) }

func podItems(pods []state.PodView, filter *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	items := make([]*runtimeapi.PodSandbox, 0, len(pods))
	for i := range pods {
		if beingMade(&pods[i]) {
			continue
		}
		if view := podView(&pods[i]); translator.PodMatches(filter, &view) {
			items = append(items, translator.PodListItem(&view))
		}
	}
	return items
}

// confirmPods are the pods as they may be answered. While their engine is away each one that is listed as READY must be
// confirmed by its own process: an omitted or stale pod would make the kubelet act on it. One that cannot be is an error,
// unless another engine goes on: then it is NOTREADY, so that the other's pods are served.
func (s *Server) confirmPods(pods []state.PodView) ([]state.PodView, error) {
	away := s.away()
	shared := true
	for i := 0; i < len(pods) && len(away) > 0; i++ {
		if away[pods[i].Engine] == "" || !unconfirmedPod(&pods[i]) {
			continue
		}
		if len(away) == len(s.engines) {
			return nil, fmt.Errorf("%s, and pod sandbox %s cannot be confirmed without it: %w", away[pods[i].Engine], pods[i].ID, errdefs.ErrUnavailable)
		}
		if shared {
			pods, shared = slices.Clone(pods), false
		}
		pods[i].State = engine.PodNotReady
	}
	return pods, nil
}

// confirmContainers is confirmPods for containers; one that cannot be confirmed is UNKNOWN, with the reason.
func (s *Server) confirmContainers(containers []state.ContainerView) ([]state.ContainerView, error) {
	away := s.away()
	shared := true
	for i := 0; i < len(containers) && len(away) > 0; i++ {
		why := away[containers[i].Engine]
		if why == "" || !unconfirmedContainer(&containers[i]) {
			continue
		}
		if len(away) == len(s.engines) {
			return nil, fmt.Errorf("%s, and container %s cannot be confirmed without it: %w", why, containers[i].ID, errdefs.ErrUnavailable)
		}
		if shared {
			containers, shared = slices.Clone(containers), false
		}
		containers[i].State = engine.ContainerUnknown
		containers[i].Status.Reason, containers[i].Status.Message = reasonAway, why
	}
	return containers, nil
}

func podView(p *state.PodView) translator.PodView {
	return translator.PodView{ID: p.ID, Spec: &p.Spec, State: p.State, CreatedAt: p.CreatedAt, IPs: p.Network.IPs}
}

// streamPart is how many items one message of a Stream* call holds, and streamBytes how many bytes, where one item has not more: the
// statistics and metrics of a pod have those of all its containers.
const (
	streamPart  = 30
	streamBytes = 4 << 20
)

func inParts[M proto.Message](items []M, send func([]M) error) error {
	for len(items) > 0 {
		n := 1
		for size := proto.Size(items[0]); n < min(streamPart, len(items)); n++ {
			if size += proto.Size(items[n]); size > streamBytes {
				break
			}
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// beingMade: the pod has no id that a caller could name, or nobody was given it yet: it comes to be in one piece, after the
// last that has a say (NRI) had it. What a crash leaves so is taken back without a caller; what could not be is listed.
func beingMade(p *state.PodView) bool {
	if p.ID == "" {
		return true
	}
	return !p.Returned && p.Leftover == "" && (p.Phase == state.PhaseIntent || p.Phase == state.PhaseCreated)
}
