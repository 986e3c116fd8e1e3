package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

func TestContainerStatsGrowWithTheWork(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "stats")
	c := pod.Run("burn", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count=20 2>/dev/null; exec testserver burn"})
	read := func() *runtimeapi.ContainerStats {
		reply, err := n.Shim.Runtime.ContainerStats(ctx(t), &runtimeapi.ContainerStatsRequest{ContainerId: c.ID})
		if err != nil {
			t.Fatal(err)
		}
		return reply.Stats
	}
	first := read()
	harness.Eventually(t, 20*time.Second, "CPU time, memory and the writable layer to grow", func() error {
		now := read()
		switch {
		case now.Cpu.GetUsageCoreNanoSeconds().GetValue() <= first.Cpu.GetUsageCoreNanoSeconds().GetValue():
			return fmt.Errorf("CPU %v, at first %v", now.Cpu, first.Cpu)
		case now.Cpu.GetUsageNanoCores().GetValue() == 0:
			return fmt.Errorf("nano cores %v", now.Cpu)
		case now.Memory.GetWorkingSetBytes().GetValue() == 0 || now.Memory.GetUsageBytes().GetValue() == 0:
			return fmt.Errorf("memory %v", now.Memory)
		case now.WritableLayer.GetUsedBytes().GetValue() < 20<<20 || now.WritableLayer.GetTimestamp() == 0:
			return fmt.Errorf("writable layer %v", now.WritableLayer)
		}
		return nil
	})
	asked := time.Now()
	now := read()
	if age := asked.Sub(time.Unix(0, now.Cpu.Timestamp)); age > 2*time.Second {
		t.Errorf("CPU figures were %v old", age)
	}
	if now.Attributes.GetId() != c.ID || now.Attributes.GetMetadata().GetName() != "burn" || len(now.Attributes.GetLabels()) == 0 {
		t.Errorf("attributes %v", now.Attributes)
	}
	list, err := n.Shim.Runtime.ListContainerStats(ctx(t), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: pod.ID}})
	if err != nil || len(list.Stats) != 1 {
		t.Errorf("ListContainerStats of the pod: %v, %v", list, err)
	}
}

func TestPodStatsHaveTheNetworkAndTheContainers(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "podstats")
	pod.Run("web", n.Registry.Ref(harness.Web), nil)
	for range 5 {
		httpGet(t, pod.IP()+":80")
	}
	harness.Eventually(t, 10*time.Second, "figures of the pod", func() error {
		reply, err := n.Shim.Runtime.PodSandboxStats(ctx(t), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod.ID})
		if err != nil {
			return err
		}
		stats := reply.Stats.GetLinux()
		network := stats.GetNetwork().GetDefaultInterface()
		switch {
		case network.GetName() != "eth0" || network.GetRxBytes().GetValue() == 0 || network.GetTxBytes().GetValue() == 0:
			return fmt.Errorf("network %v", network)
		case len(stats.GetContainers()) != 1:
			return fmt.Errorf("%d containers", len(stats.GetContainers()))
		case stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 || stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0:
			return fmt.Errorf("memory %v, CPU %v", stats.GetMemory(), stats.GetCpu())
		case stats.GetProcess().GetProcessCount().GetValue() == 0:
			return fmt.Errorf("processes %v", stats.GetProcess())
		}
		return nil
	})
	list, err := n.Shim.Runtime.ListPodSandboxStats(ctx(t), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(list.Stats) != 1 {
		t.Errorf("ListPodSandboxStats: %v, %v", list, err)
	}
	// The kubelet's probe: anything but Unimplemented makes it use these figures.
	_, err = n.Shim.Runtime.PodSandboxStats(ctx(t), &runtimeapi.PodSandboxStatsRequest{})
	if code := harness.Code(err); code == codes.Unimplemented || code == codes.OK {
		t.Errorf("PodSandboxStats of no pod: %v", err)
	}
}

func TestMetricsAreDescribedAndListed(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "metrics")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	described, err := n.Shim.Runtime.ListMetricDescriptors(ctx(t), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil || len(described.Descriptors) == 0 {
		t.Fatalf("descriptors %v, %v", described, err)
	}
	labels := map[string]int{}
	for _, d := range described.Descriptors {
		labels[d.Name] = len(d.LabelKeys)
	}
	listed, err := n.Shim.Runtime.ListPodSandboxMetrics(ctx(t), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(listed.PodMetrics) != 1 || listed.PodMetrics[0].PodSandboxId != pod.ID {
		t.Fatalf("metrics %v, %v", listed, err)
	}
	found := false
	for _, container := range listed.PodMetrics[0].ContainerMetrics {
		found = found || container.ContainerId == c.ID
		for _, m := range container.Metrics {
			if keys, known := labels[m.Name]; !known || keys != len(m.LabelValues) {
				t.Errorf("metric %s has %d label values, its descriptor %d keys (known: %v)", m.Name, len(m.LabelValues), keys, known)
			}
		}
	}
	if !found {
		t.Error("the container has no metrics")
	}
}

func TestStatsOfAbsentThingsAreNotFound(t *testing.T) {
	n := node(t)
	absent := strings.Repeat("0", 64)
	_, err := n.Shim.Runtime.ContainerStats(ctx(t), &runtimeapi.ContainerStatsRequest{ContainerId: absent})
	wantCode(t, "ContainerStats", err, codes.NotFound)
	_, err = n.Shim.Runtime.PodSandboxStats(ctx(t), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: absent})
	wantCode(t, "PodSandboxStats", err, codes.NotFound)
}

func TestStreamedListsAreTheLists(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "streamed")
	for i := range 3 {
		pod.Run(fmt.Sprintf("c%d", i), n.Registry.Ref(harness.Busybox), forever)
	}
	stream, err := n.Shim.Runtime.StreamContainers(ctx(t), &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for {
		reply, err := stream.Recv()
		if err != nil {
			if err.Error() != "EOF" {
				t.Error(err)
			}
			break
		}
		for _, c := range reply.Containers {
			seen[c.Id]++
		}
	}
	if len(seen) != 3 {
		t.Errorf("%d containers, want 3", len(seen))
	}
	for id, times := range seen {
		if times != 1 {
			t.Errorf("container %s came %d times", id, times)
		}
	}
}
