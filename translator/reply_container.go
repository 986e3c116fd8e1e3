package translator

import (
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// ContainerView is what CRI shows of a container. Replies share its maps and slices.
type ContainerView struct {
	ID    engine.ContainerID
	PodID engine.PodID
	Spec  *engine.ContainerSpec
	// Status gives the state, the times, exit code, reason, message, user and stop signal. CreatedAt must be set.
	Status engine.ContainerStatus
	// Resources are the current ones.
	Resources engine.Resources
	ImageID   engine.ImageID
	// ImageRef is the image's repository digest ("name@sha256:…"), ImageName its tag as people know it; either may be "".
	ImageRef  string
	ImageName string
}

// ContainerStatusReply is CRI ContainerStatus.
func ContainerStatusReply(v *ContainerView) *runtimeapi.ContainerStatus {
	s, st := v.Spec, &v.Status
	reply := &runtimeapi.ContainerStatus{
		Id:          string(v.ID),
		Metadata:    &runtimeapi.ContainerMetadata{Name: s.Key.Name, Attempt: s.Key.Attempt},
		State:       containerState(st.State),
		CreatedAt:   happened(st.CreatedAt),
		StartedAt:   nanoseconds(st.StartedAt),
		FinishedAt:  nanoseconds(st.FinishedAt),
		ExitCode:    st.ExitCode,
		Image:       &runtimeapi.ImageSpec{},
		ImageRef:    firstOf(v.ImageRef, string(v.ImageID), s.Image.Ref),
		Reason:      st.Reason,
		Message:     st.Message,
		Labels:      s.Labels,
		Annotations: s.Annotations,
		Mounts:      mountsToCRI(s.Mounts, messagePath(s.Annotations)),
		LogPath:     s.LogPath,
		Resources:   &runtimeapi.ContainerResources{Linux: ResourcesToCRI(v.Resources)},
		ImageId:     string(v.ImageID),
		StopSignal:  signalToCRI(firstOf(st.StopSignal, s.StopSignal)),
	}
	if st.State == engine.ContainerExited {
		reply.FinishedAt = happened(st.FinishedAt)
	}
	fillImage(reply.Image, v)
	if u := st.User; u != nil {
		reply.User = &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: u.UID, Gid: u.GID, SupplementalGroups: u.Groups}}
	}
	return reply
}

// ContainerListItem is CRI Container. Its image_ref is the image id: kubelets before 1.30 collect images by it.
func ContainerListItem(v *ContainerView) *runtimeapi.Container {
	// One allocation for the message and its parts, as in PodListItem.
	item := &struct {
		container runtimeapi.Container
		metadata  runtimeapi.ContainerMetadata
		image     runtimeapi.ImageSpec
	}{}
	s := v.Spec
	item.metadata.Name, item.metadata.Attempt = s.Key.Name, s.Key.Attempt
	fillImage(&item.image, v)
	c := &item.container
	c.Id = string(v.ID)
	c.PodSandboxId = string(v.PodID)
	c.Metadata = &item.metadata
	c.Image = &item.image
	c.ImageRef = firstOf(string(v.ImageID), v.ImageRef, s.Image.Ref)
	c.State = containerState(v.Status.State)
	c.CreatedAt = happened(v.Status.CreatedAt)
	c.Labels = s.Labels
	c.Annotations = s.Annotations
	c.ImageId = string(v.ImageID)
	return c
}

// ContainerMatches says whether the container passes a filter: its own and its pod's id, or a prefix of them, the state,
// and every label of the selector.
func ContainerMatches(f *runtimeapi.ContainerFilter, v *ContainerView) bool {
	if f == nil {
		return true
	}
	return matchesID(f.GetId(), string(v.ID)) &&
		matchesID(f.GetPodSandboxId(), string(v.PodID)) &&
		(f.GetState() == nil || f.GetState().GetState() == containerState(v.Status.State)) &&
		matchesLabels(f.GetLabelSelector(), v.Spec.Labels)
}

// ContainerStatsFilter is the filter of the statistics lists as one for ContainerMatches. It says nothing of the state:
// statistics are of running containers only.
func ContainerStatsFilter(f *runtimeapi.ContainerStatsFilter) *runtimeapi.ContainerFilter {
	if f == nil {
		return nil
	}
	return &runtimeapi.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()}
}

// fillImage answers the image under the name that the user gave, else its tag, else as CRI asked for it.
func fillImage(spec *runtimeapi.ImageSpec, v *ContainerView) {
	asked := &v.Spec.Image
	spec.Image = firstOf(asked.UserSpecified, v.ImageName, asked.Ref, string(v.ImageID))
	spec.UserSpecifiedImage = asked.UserSpecified
	spec.Annotations = asked.Annotations
	spec.RuntimeHandler = asked.RuntimeHandler
}

func containerState(s engine.ContainerState) runtimeapi.ContainerState {
	switch s {
	case engine.ContainerCreated:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case engine.ContainerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case engine.ContainerExited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

// mountsToCRI names the mount of the termination message as it was asked for, which the kubelet compares as text.
func mountsToCRI(mounts []engine.Mount, message string) []*runtimeapi.Mount {
	out := make([]*runtimeapi.Mount, 0, len(mounts))
	for i := range mounts {
		m := &mounts[i]
		reply := &runtimeapi.Mount{
			ContainerPath:     m.ContainerPath,
			HostPath:          m.HostPath,
			Readonly:          m.Readonly,
			RecursiveReadOnly: m.RecursiveReadonly,
			SelinuxRelabel:    m.SELinuxRelabel,
			Propagation:       runtimeapi.MountPropagation(runtimeapi.MountPropagation_value["PROPAGATION_"+string(m.Propagation)]),
			UidMappings:       idMappingsToCRI(m.UIDMappings),
			GidMappings:       idMappingsToCRI(m.GIDMappings),
			ImageSubPath:      m.ImageSubPath,
			MountOptions:      m.Options,
		}
		if message != "" && path.Clean(message) == m.ContainerPath {
			reply.ContainerPath = message
		}
		if ref := m.Image; ref != nil {
			reply.Image = &runtimeapi.ImageSpec{
				Image: ref.Ref, UserSpecifiedImage: ref.UserSpecified, Annotations: ref.Annotations, RuntimeHandler: ref.RuntimeHandler,
				// The one form that critest compares with ImageStatus.
				ImageRef: string(ref.ID),
			}
		}
		out = append(out, reply)
	}
	return out
}

// matchesID lets an empty wish pass everything. Ids have a fixed length, so a full one matches itself only.
func matchesID(wish, id string) bool { return strings.HasPrefix(id, wish) }

func matchesLabels(selector, labels map[string]string) bool {
	for key, value := range selector {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

func firstOf(candidates ...string) string {
	for _, s := range candidates {
		if s != "" {
			return s
		}
	}
	return ""
}
