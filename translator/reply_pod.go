package translator

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// PodView is what CRI shows of a pod sandbox. Replies share its maps and slices.
type PodView struct {
	ID        engine.PodID
	Spec      *engine.PodSpec
	State     engine.PodState
	CreatedAt time.Time
	// IPs are the pod's addresses, the primary one first; none with the host's network.
	IPs []string
}

// PodStatusReply is CRI PodSandboxStatus.
func PodStatusReply(v *PodView) *runtimeapi.PodSandboxStatus {
	s := v.Spec
	return &runtimeapi.PodSandboxStatus{
		Id:             string(v.ID),
		Metadata:       podMetadata(s.Key),
		State:          podState(v.State),
		CreatedAt:      happened(v.CreatedAt),
		Network:        podNetwork(v.IPs),
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: namespaceOption(&s.Namespaces)}},
		Labels:         s.Labels,
		Annotations:    s.Annotations,
		RuntimeHandler: s.RuntimeHandler,
	}
}

// PodListItem is CRI PodSandbox.
func PodListItem(v *PodView) *runtimeapi.PodSandbox {
	// One allocation for the message and its metadata: the kubelet lists all pods every second.
	item := &struct {
		pod      runtimeapi.PodSandbox
		metadata runtimeapi.PodSandboxMetadata
	}{}
	s := v.Spec
	fillPodMetadata(&item.metadata, s.Key)
	pod := &item.pod
	pod.Id = string(v.ID)
	pod.Metadata = &item.metadata
	pod.State = podState(v.State)
	pod.CreatedAt = happened(v.CreatedAt)
	pod.Labels = s.Labels
	pod.Annotations = s.Annotations
	pod.RuntimeHandler = s.RuntimeHandler
	return pod
}

// PodMatches says whether the pod passes a filter: id or a prefix of it, state, and every label of the selector.
func PodMatches(f *runtimeapi.PodSandboxFilter, v *PodView) bool {
	if f == nil {
		return true
	}
	return matchesID(f.GetId(), string(v.ID)) &&
		(f.GetState() == nil || f.GetState().GetState() == podState(v.State)) &&
		matchesLabels(f.GetLabelSelector(), v.Spec.Labels)
}

// PodStatsFilter is the filter of the statistics lists as one for PodMatches.
func PodStatsFilter(f *runtimeapi.PodSandboxStatsFilter) *runtimeapi.PodSandboxFilter {
	if f == nil {
		return nil
	}
	return &runtimeapi.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()}
}

func podMetadata(key engine.PodKey) *runtimeapi.PodSandboxMetadata {
	m := &runtimeapi.PodSandboxMetadata{}
	fillPodMetadata(m, key)
	return m
}

func fillPodMetadata(m *runtimeapi.PodSandboxMetadata, key engine.PodKey) {
	m.Name, m.Namespace, m.Uid, m.Attempt = key.Name, key.Namespace, key.UID, key.Attempt
}

func podState(s engine.PodState) runtimeapi.PodSandboxState {
	if s == engine.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// podNetwork is never nil: the kubelet complains about each pod without one.
func podNetwork(ips []string) *runtimeapi.PodSandboxNetworkStatus {
	n := &runtimeapi.PodSandboxNetworkStatus{}
	if len(ips) == 0 {
		return n
	}
	n.Ip = ips[0]
	for _, ip := range ips[1:] {
		n.AdditionalIps = append(n.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
	}
	return n
}

func namespaceOption(n *engine.Namespaces) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{
		Network:  namespaceMode(n.Network),
		Pid:      namespaceMode(n.PID),
		Ipc:      namespaceMode(n.IPC),
		TargetId: string(n.PIDTarget),
	}
	if n.User != nil {
		o.UsernsOptions = &runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_POD, Uids: idMappingsToCRI(n.User.UIDs), Gids: idMappingsToCRI(n.User.GIDs),
		}
	}
	return o
}

func namespaceMode(m engine.NamespaceMode) runtimeapi.NamespaceMode {
	return runtimeapi.NamespaceMode(runtimeapi.NamespaceMode_value[string(m)]) // an absent mode is POD, 0
}

func idMappingsToCRI(in []engine.IDMapping) []*runtimeapi.IDMapping {
	var out []*runtimeapi.IDMapping
	for _, m := range in {
		out = append(out, &runtimeapi.IDMapping{HostId: m.HostID, ContainerId: m.ContainerID, Length: m.Length})
	}
	return out
}

// nanoseconds is a CRI timestamp; 0 is "not yet".
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(1, t.UnixNano())
}

// happened is the CRI timestamp of something that did happen, also where a clock at its epoch, or nobody, told when: a 0
// would say that it did not.
func happened(t time.Time) int64 { return max(1, nanoseconds(t)) }
