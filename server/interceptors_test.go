package server

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An operator looks for a pod, a container or an image in the log.
func TestTheLogOfACallNamesWhatItIsAbout(t *testing.T) {
	log := captureLog(t, 2)
	c := newCalls(prometheus.NewRegistry(), func(string) error { return nil })
	pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "shop", Name: "web-0"}}
	create := &runtimeapi.CreateContainerRequest{
		PodSandboxId: "p1", SandboxConfig: pod, Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "nginx"}},
	}
	image := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "busybox:1"}}
	for _, row := range []struct {
		method string
		req    any
		code   codes.Code
		want   string
	}{
		{"RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod}, codes.OK, `"Answered" method="RunPodSandbox" pod="shop/web-0" took=`},
		{"RunPodSandbox", &runtimeapi.RunPodSandboxRequest{}, codes.InvalidArgument, `"Refused" method="RunPodSandbox" pod="" code="InvalidArgument"`},
		{"RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod}, codes.Internal, `"Call failed" err="rpc error: code = Internal desc = why" method="RunPodSandbox" pod="shop/web-0" code="Internal"`},
		{"CreateContainer", create, codes.Canceled, `"Not done" method="CreateContainer" pod="shop/web-0" container="nginx" id="p1" code="Canceled"`},
		{"StopContainer", &runtimeapi.StopContainerRequest{ContainerId: "c1"}, codes.DeadlineExceeded, `"Not done" method="StopContainer" id="c1" code="DeadlineExceeded"`},
		{"ReopenContainerLog", &runtimeapi.ReopenContainerLogRequest{ContainerId: "c1"}, codes.Unimplemented, `"Refused" method="ReopenContainerLog" id="c1" code="Unimplemented"`},
		{"StopPodSandbox", &runtimeapi.StopPodSandboxRequest{PodSandboxId: "p1"}, codes.Unavailable, `"Not done" method="StopPodSandbox" id="p1" code="Unavailable"`},
		{"PullImage", image, codes.OK, `"Answered" method="PullImage" image="busybox:1" took=`},
	} {
		var err error
		if row.code != codes.OK {
			err = status.Error(row.code, "why")
		}
		c.observe(row.method, row.req, err, time.Second)
		if log.count(row.want) != 1 {
			t.Errorf("%s %s: no line with %s in\n%s", row.method, row.code, row.want, log.text.String())
		}
	}
	c.observe("GetContainerEvents", nil, nil, time.Second) // a stream has no request
}
