package translator

import (
	"maps"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// EventReply is one event of GetContainerEvents about a container, or about the pod itself (then id is the pod's). pod
// and containers are as they are after it; pod is nil when it is gone.
func EventReply(kind runtimeapi.ContainerEventType, id string, at time.Time, pod *PodView, containers []ContainerView) *runtimeapi.ContainerEventResponse {
	reply := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: nanoseconds(at)}
	if pod != nil {
		reply.PodSandboxStatus = PodStatusReply(pod)
	}
	for i := range containers {
		reply.ContainersStatuses = append(reply.ContainersStatuses, ContainerStatusReply(&containers[i]))
	}
	return reply
}

// RuntimeHandlers is CRI Status.runtime_handlers, sorted by name; "" is the default one.
func RuntimeHandlers(handlers map[string]engine.HandlerFeatures) []*runtimeapi.RuntimeHandler {
	var out []*runtimeapi.RuntimeHandler
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		out = append(out, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: handlers[name].RecursiveReadonlyMounts,
			UserNamespaces:          handlers[name].UserNamespaces,
		}})
	}
	return out
}

// RuntimeFeatures is CRI Status.features. A user namespace with the host's network is always refused, so
// user_namespaces_host_network is false.
func RuntimeFeatures(info engine.Info) *runtimeapi.RuntimeFeatures {
	return &runtimeapi.RuntimeFeatures{
		SupplementalGroupsPolicy: info.Features.SupplementalGroupsPolicy,
		MountOptions:             info.Features.MountOptions,
	}
}

// CgroupDriver is CRI CgroupDriver.
func CgroupDriver(d engine.CgroupDriver) runtimeapi.CgroupDriver {
	if d == engine.SystemdDriver {
		return runtimeapi.CgroupDriver_SYSTEMD
	}
	return runtimeapi.CgroupDriver_CGROUPFS
}

// PodCIDRs are the ranges in UpdateRuntimeConfig; the kubelet joins those of a dual-stack node with commas. They are
// checked where they are used.
func PodCIDRs(req *runtimeapi.UpdateRuntimeConfigRequest) []string {
	var cidrs []string
	for cidr := range strings.SplitSeq(req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(), ",") {
		if cidr = strings.TrimSpace(cidr); cidr != "" {
			cidrs = append(cidrs, cidr)
		}
	}
	return cidrs
}

// ImageReply is CRI Image.
func ImageReply(image engine.Image) *runtimeapi.Image {
	reply := &runtimeapi.Image{
		Id:          string(image.ID),
		RepoTags:    image.RepoTags,
		RepoDigests: image.RepoDigests,
		Size:        image.Size,
		Username:    image.Username,
		Spec:        &runtimeapi.ImageSpec{Image: string(image.ID)},
		Pinned:      image.Pinned,
	}
	switch {
	case image.UID != nil:
		reply.Uid = &runtimeapi.Int64Value{Value: *image.UID}
	case image.Username == "":
		reply.Uid = &runtimeapi.Int64Value{} // no user is root, which runAsNonRoot must see
	}
	return reply
}
