package server

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/state"
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

// Lists of statistics are encoded item by item, by those who make them, with attributes that are kept until the index changes;
// their streams are not.
func TestStatisticsInOneReplyAreThoseOfTheStream(t *testing.T) {
	f := newFixture(t)
	check := func(when string, want int) {
		t.Helper()
		streamed, err := f.runtime.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		inStream := &runtimeapi.ListContainerStatsResponse{}
		for _, part := range received(t, streamed) {
			inStream.Stats = append(inStream.Stats, part.ContainerStats...)
		}
		containers, err := f.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
		if err != nil || len(containers.Stats) != want || !proto.Equal(containers, inStream) {
			t.Errorf("%s: %v\n%v\nin the stream\n%v", when, err, containers, inStream)
		}

		streamedPods, err := f.runtime.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		podsInStream := &runtimeapi.ListPodSandboxStatsResponse{}
		for _, part := range received(t, streamedPods) {
			podsInStream.Stats = append(podsInStream.Stats, part.PodSandboxStats...)
		}
		pods, err := f.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil || len(pods.Stats) != want || !proto.Equal(pods, podsInStream) {
			t.Errorf("%s: %v\n%v\nin the stream\n%v", when, err, pods, podsInStream)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		f.startContainer(f.runPod(name), name, "app", "run", "100")
	}
	check("three", 3)
	check("nothing new", 3)
	f.startContainer(f.runPod("d"), "d", "app", "run", "100")
	check("one more", 4)
}

// Attributes that changed are not answered from what was kept before.
func TestKeptAttributesGoWithTheViewsThatTheyAreOf(t *testing.T) {
	var kept keptAttributes[state.ContainerView]
	encode := func(views []state.ContainerView, name string) string {
		t.Helper()
		encoded, err := kept.of(views).encoded(&runtimeapi.ContainerAttributes{Id: "1", Metadata: &runtimeapi.ContainerMetadata{Name: name}})
		if err != nil {
			t.Fatal(err)
		}
		var stats runtimeapi.ContainerStats
		if err := proto.Unmarshal(encoded, &stats); err != nil {
			t.Fatal(err)
		}
		return stats.GetAttributes().GetMetadata().GetName()
	}
	before, after := make([]state.ContainerView, 1), make([]state.ContainerView, 1)
	for _, step := range []struct {
		views      []state.ContainerView
		name, want string
	}{{before, "a", "a"}, {before, "b", "a"}, {after, "b", "b"}} {
		if got := encode(step.views, step.name); got != step.want {
			t.Errorf("%q came back as %q, want %q", step.name, got, step.want)
		}
	}
}

// received are all messages of a stream.
func received[M any](t *testing.T, stream grpc.ServerStreamingClient[M]) (all []*M) {
	t.Helper()
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, message)
	}
}
