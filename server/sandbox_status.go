package server

import (
	"context"
	"encoding/json"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/internal/process"
	"crishim/state"
	"crishim/translator"
)

// PodSandboxStatus answers from the index. The timestamp stays 0, as containerd leaves it: with one, kubelet 1.37's evented
// PLEG takes the containers' statuses from here in place of its own look-up, without telling the active ones apart, and
// starts what has completed again and again. Without one it ignores them, so they are only for people: in the verbose reply.
func (s *Server) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	pod, err := s.store.FindPod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	confirmed, err := s.confirmPods([]state.PodView{pod})
	if err != nil {
		return nil, err
	}
	pod = confirmed[0]
	if pod.Phase == state.PhaseRunning && !s.opts.Observe { // by its status a kubelet finds what it goes on with
		if err := s.podIsUsed(&pod); err != nil && !errdefs.IsNotFound(err) {
			klog.ErrorS(err, "Could not record that somebody has come for a pod sandbox", "id", pod.ID)
		}
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: translator.PodStatusReply(new(podView(&pod)))}
	if req.GetVerbose() {
		containers, err := s.confirmContainers(s.store.ContainersOf(pod.ID))
		if err != nil {
			return nil, err
		}
		resp.ContainersStatuses = s.containerStatuses(containers)
		resp.Info = jsonInfo(map[string]any{"info": podInfo{
			PID: pod.Status.PID, ProcessAlive: process.Alive(pod.Status.PID, pod.Status.StartTicks), NetNS: pod.NetNSPath,
			Engine: pod.Engine, Phase: pod.Phase, RuntimeHandler: pod.Spec.RuntimeHandler, Runtime: pod.Spec.Handler,
			CgroupPath: pod.Status.CgroupPath, Config: pod.Spec, Attachments: pod.Network.Attachments, Leftover: pod.Leftover, Adopted: pod.Adopted,
			EngineAway: s.away()[pod.Engine],
		}})
	}
	return resp, nil
}

// podInfo is the verbose "info" of a pod: what people look for with crictl inspectp.
type podInfo struct {
	PID            int               `json:"pid"`
	ProcessAlive   bool              `json:"processAlive"`
	NetNS          string            `json:"netns,omitempty"`
	Engine         string            `json:"engine"`
	Phase          state.Phase       `json:"phase"`
	RuntimeHandler string            `json:"runtimeHandler"`
	Runtime        string            `json:"runtime"`
	CgroupPath     string            `json:"cgroupPath,omitempty"`
	Config         any               `json:"config"`
	Attachments    []json.RawMessage `json:"attachments,omitempty"`
	Leftover       string            `json:"leftover,omitempty"`
	Adopted        bool              `json:"adopted,omitempty"`
	EngineAway     string            `json:"engineAway,omitempty"` // why its engine does not answer
}

func (s *Server) containerStatuses(containers []state.ContainerView) []*runtimeapi.ContainerStatus {
	statuses := make([]*runtimeapi.ContainerStatus, 0, len(containers))
	for i := range containers {
		if containers[i].ID != "" {
			statuses = append(statuses, translator.ContainerStatusReply(new(containerView(&containers[i]))))
		}
	}
	return statuses
}
