package server

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// changing are the calls that change something, by hand: the gate's own list says the opposite.
var changing = []string{
	"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer",
	"UpdateContainerResources", "UpdatePodSandboxResources", "ReopenContainerLog", "ExecSync", "Exec", "Attach", "PortForward",
	"CheckpointContainer", "CheckpointPod", "RestorePod", "UpdateRuntimeConfig", "PullImage", "RemoveImage",
}

// A daemon that observes answers questions about what another one made, and refuses everything else before it is looked at.
func TestAnObserverChangesNothing(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	container := f.startContainer(pod, "web", "server", "sleep", "1000")
	f.stop()
	f.options = func(o *Options) { o.Observe = true }
	f.start()
	engineSteps := []string{"CreatePod", "StartPod", "StopPod", "RemovePod", "ReleaseNetNS", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer",
		"UpdateContainer", "ReopenLog", "Exec", "Attach", "PullImage", "RemoveImage"}
	before := map[string]int{}
	for _, step := range engineSteps {
		before[step] = f.engine.Calls(step)
	}

	if got := f.podStatus(pod); got.State != runtimeapi.PodSandboxState_SANDBOX_READY || got.Network.GetIp() == "" {
		t.Errorf("pod %+v", got)
	}
	if got := f.containerStatus(container); got.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container %+v", got)
	}
	known := map[string]bool{}
	for _, desc := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		for _, m := range desc.Methods {
			known[m.MethodName] = true
		}
	}
	for _, method := range changing {
		if !known[method] {
			t.Errorf("there is no call %s", method)
		}
		delete(known, method)
		service := runtimeapi.RuntimeService_ServiceDesc.ServiceName
		if strings.HasSuffix(method, "Image") {
			service = runtimeapi.ImageService_ServiceDesc.ServiceName
		}
		// An empty message is a request of any kind.
		err := f.conn.Invoke(t.Context(), "/"+service+"/"+method, &runtimeapi.StopPodSandboxRequest{}, &runtimeapi.StopPodSandboxResponse{})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), method+" is refused") {
			t.Errorf("%s: %v", method, err)
		}
	}
	for method := range known {
		if err := refuseChange(method); err != nil {
			t.Errorf("a question is refused: %v", err)
		}
	}
	for _, step := range engineSteps {
		if n := f.engine.Calls(step); n != before[step] {
			t.Errorf("the engine was asked for %s %d times", step, n-before[step])
		}
	}
}
