package server

import (
	"context"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/engine/enginetest"
)

type startSpy struct {
	engine.Engine
	started chan engine.Resources
}

func (s startSpy) StartContainer(ctx context.Context, id engine.ContainerID, spec *engine.ContainerSpec) (engine.ContainerStatus, error) {
	s.started <- spec.Resources
	return s.Engine.StartContainer(ctx, id, spec)
}

// Limits that were changed before the start are those that the engine is told of at the start.
func TestAStartHasTheLimitsOfAnUpdateBefore(t *testing.T) {
	spy := startSpy{started: make(chan engine.Resources, 1)}
	f := &fixture{t: t, root: t.TempDir(), network: &fakeNetwork{attached: map[string]bool{}}}
	f.engine = enginetest.NewMemory(enginetest.Options{})
	t.Cleanup(f.engine.Close)
	f.engine.AddImage(enginetest.NewImage(testImage))
	f.wrap = func(e engine.Engine) engine.Engine { spy.Engine = e; return spy }
	f.start()
	t.Cleanup(func() { f.stop() })
	pod := f.runPod("p")
	c, err := f.create(pod, "p", "a", "sleep", "100")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c, Linux: &runtimeapi.LinuxContainerResources{OomScoreAdj: 500}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	if got := <-spy.started; got.OOMScoreAdj != 500 {
		t.Errorf("started with oom_score_adj %d, status says %d", got.OOMScoreAdj, f.containerStatus(c).Resources.Linux.OomScoreAdj)
	}
}

// The index knows of new resources of a pod.
func TestResourcesOfAPodAreRecorded(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("p")
	if _, err := f.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 777}}); err != nil {
		t.Fatal(err)
	}
	p, _ := f.store.Pod(engine.PodID(pod))
	if p.Spec.Resources == nil || p.Spec.Resources.CPUShares != 777 {
		t.Errorf("recorded %+v", p.Spec.Resources)
	}
}

type podSpy struct {
	engine.Engine
	overhead, resources *engine.Resources
}

func (s *podSpy) UpdatePod(ctx context.Context, id engine.PodID, overhead, resources *engine.Resources) error {
	s.overhead, s.resources = overhead, resources
	return s.Engine.UpdatePod(ctx, id, overhead, resources)
}

// What a request does not have is not "no limits": the native engine would take away those of a pod's own cgroup.
func TestAbsentResourcesOfAPodAreNoLimitsToSet(t *testing.T) {
	spy := &podSpy{}
	f := &fixture{t: t, root: t.TempDir(), network: &fakeNetwork{attached: map[string]bool{}}}
	f.engine = enginetest.NewMemory(enginetest.Options{})
	t.Cleanup(f.engine.Close)
	f.wrap = func(e engine.Engine) engine.Engine { spy.Engine = e; return spy }
	f.start()
	t.Cleanup(func() { f.stop() })
	pod := f.runPod("p")
	if _, err := f.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 5}}); err != nil {
		t.Fatal(err)
	}
	if spy.resources != nil {
		t.Errorf("the engine is told to set %+v", *spy.resources)
	}
}
