package server

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// v1alpha2Methods are those that the RuntimeService of the last runtime.v1alpha2 (cri-api v0.25) had; its ImageService had
// those of v1. A later one is Unimplemented there, as it was for the runtimes of the time.
var v1alpha2Methods = []string{
	"Version", "Status", "UpdateRuntimeConfig",
	"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus", "ListPodSandbox",
	"PodSandboxStats", "ListPodSandboxStats",
	"CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "ListContainers", "ContainerStatus",
	"UpdateContainerResources", "ReopenContainerLog", "ContainerStats", "ListContainerStats",
	"ExecSync", "Exec", "Attach", "PortForward",
}

// register serves runtime.v1 and, for kubelets up to 1.25 (1.20 to 1.22 know nothing else), runtime.v1alpha2.
func register(g *grpc.Server, s *Server) {
	g.RegisterService(&runtimeapi.RuntimeService_ServiceDesc, s)
	g.RegisterService(&runtimeapi.ImageService_ServiceDesc, s)
	old := v1alpha2{s}
	for _, desc := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		if desc.ServiceName == runtimeapi.RuntimeService_ServiceDesc.ServiceName {
			desc.Methods = slices.DeleteFunc(slices.Clone(desc.Methods), func(m grpc.MethodDesc) bool {
				return !slices.Contains(v1alpha2Methods, m.MethodName)
			})
		}
		desc.Streams = nil
		desc.ServiceName = "runtime.v1alpha2." + desc.ServiceName[len("runtime.v1."):]
		g.RegisterService(&desc, old)
	}
}

// v1alpha2 answers runtime.v1alpha2. Every field that it had has kept its number and form in v1 (a test compares them), so
// the messages and the handlers are those of v1; what v1 has beside them an old client does not set, and skips in replies.
type v1alpha2 struct{ *Server }

// Version tells which API was asked.
func (v v1alpha2) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return v.version("v1alpha2"), nil
}

// dockerAPIVersion is the runtime_api_version of a runtime that is called "docker". Kubelets up to 1.23 take it for the
// Docker API's, whichever CRI they speak: below 1.23.0, or where it is no such number, they admit no pod that sets
// allowPrivilegeEscalation to false, below 1.38.0 none with a procMount. This is the oldest API that the docker engine uses.
const dockerAPIVersion = "1.41.0"
