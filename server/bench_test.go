package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// benchPods is the density at which the kubelet's relist is measured.
const benchPods = 100

// BenchmarkRelist is what a kubelet asks each second and of each pod, over the socket, its own decoding included.
func BenchmarkRelist(b *testing.B) {
	f := newFixture(b)
	var pod, container string
	for i := range benchPods {
		name := fmt.Sprintf("pod-%d", i)
		config := f.podConfig(name)
		config.Labels, config.Annotations = kubeletLabels(name)
		reply, err := f.runtime.RunPodSandbox(b.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			b.Fatal(err)
		}
		pod = reply.PodSandboxId
		app := containerConfig("app", "run", "100")
		app.Labels, app.Annotations = kubeletLabels(name)
		made, err := f.runtime.CreateContainer(b.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: app, SandboxConfig: config})
		if err != nil {
			b.Fatal(err)
		}
		container = made.ContainerId
		if _, err := f.runtime.StartContainer(b.Context(), &runtimeapi.StartContainerRequest{ContainerId: container}); err != nil {
			b.Fatal(err)
		}
	}
	for _, call := range []struct {
		name string
		ask  func(ctx context.Context) error
	}{
		{"ListPodSandbox", func(ctx context.Context) error {
			reply, err := f.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			if len(reply.GetItems()) != benchPods {
				b.Fatalf("%d pods", len(reply.GetItems()))
			}
			return err
		}},
		{"ListContainers", func(ctx context.Context) error {
			reply, err := f.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			if len(reply.GetContainers()) != benchPods {
				b.Fatalf("%d containers", len(reply.GetContainers()))
			}
			return err
		}},
		{"PodSandboxStatus", func(ctx context.Context) error {
			_, err := f.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
			return err
		}},
		{"ContainerStatus", func(ctx context.Context) error {
			_, err := f.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container})
			return err
		}},
		{"Version", func(ctx context.Context) error { // the floor: a call that does nothing
			_, err := f.runtime.Version(ctx, &runtimeapi.VersionRequest{})
			return err
		}},
	} {
		b.Run(call.name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				if err := call.ask(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpuTime is this process's so far: on a busy machine it says more than the clock.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// kubeletLabels are as many as the kubelet sets.
func kubeletLabels(name string) (labels, annotations map[string]string) {
	return map[string]string{
			"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "uid-" + name,
			"io.kubernetes.container.name": "app", "app.kubernetes.io/name": name, "pod-template-hash": "5d9c8f7b6",
		}, map[string]string{
			"io.kubernetes.container.hash": "4f1c1d2a", "io.kubernetes.container.restartCount": "0",
			"io.kubernetes.container.terminationMessagePath": "/dev/termination-log", "io.kubernetes.container.terminationMessagePolicy": "File",
			"io.kubernetes.pod.terminationGracePeriod": "30", "kubernetes.io/config.seen": "2026-01-01T00:00:00.000000000Z",
			"kubernetes.io/config.source": "api",
		}
}
