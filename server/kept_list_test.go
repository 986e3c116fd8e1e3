package server

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet's list of everything is answered from kept bytes: they say what a list that is made anew says, before and
// after each change.
func TestAKeptListIsAsGoodAsANewOne(t *testing.T) {
	f := newFixture(t)
	check := func(when string) {
		t.Helper()
		kept, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{}})
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := f.server.listContainers(nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := (&runtimeapi.ListContainersResponse{Containers: fresh}); !proto.Equal(kept, want) {
			t.Errorf("%s: containers\n%v, want\n%v", when, kept, want)
		}
		pods, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		freshPods, err := f.server.listPods(nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := (&runtimeapi.ListPodSandboxResponse{Items: freshPods}); !proto.Equal(pods, want) {
			t.Errorf("%s: pods\n%v, want\n%v", when, pods, want)
		}
	}
	check("nothing there")
	pod := f.runPod("a")
	check("a pod")
	f.startContainer(pod, "a", "app", "run", "100")
	check("a running container")
	check("nothing new")
	if err := f.stopPod(pod); err != nil {
		t.Fatal(err)
	}
	check("stopped")
	if err := f.removePod(pod); err != nil {
		t.Fatal(err)
	}
	check("removed")
}
