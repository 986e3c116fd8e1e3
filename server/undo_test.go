package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// R11: every step of making a pod fails, before or after it did its work, and every step of taking it back too. What is left
// is listed NOTREADY; a retry of the same key works all the same, and Stop and Remove leave nothing.
//
// Rows: R11
func TestAPodWhoseTakingBackFailsIsListedUntilItIsRemoved(t *testing.T) {
	for _, step := range []string{"CreatePod", "CreatePod.after", "StartPod", "StartPod.after", "ADD"} {
		for _, undo := range []string{"StopPod", "StopPod.after", "ReleaseNetNS", "ReleaseNetNS.after", "RemovePod", "RemovePod.after"} {
			for _, retry := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, then %s, retry %v", step, undo, retry), func(t *testing.T) {
					f := newFixture(t)
					if step == "ADD" {
						f.network.failAdd = []error{errors.New("boom")}
					} else {
						f.engine.FailOnce(step, errors.New("boom"))
					}
					f.engine.FailOnce(undo, errors.New("undo boom"))
					_, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("web")})
					if err == nil {
						t.Fatal("no error")
					}
					list, err2 := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
					if err2 != nil {
						t.Fatal(err2)
					}
					if left := strings.Contains(err.Error(), "undo boom"); left != (len(list.Items) == 1) {
						t.Errorf("after %v listed are %v", err, list.Items)
					}
					for _, p := range list.Items {
						if p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
							t.Errorf("what is left is %v", p.State)
						}
					}
					if retry {
						f.runPod("web")
					}
					f.nothingLeft()
				})
			}
		}
	}
}

// R11: the same for a container.
//
// Rows: R11
func TestAContainerWhoseTakingBackFailsIsListedUntilItIsRemoved(t *testing.T) {
	for _, undo := range []string{"RemoveContainer", "RemoveContainer.after"} {
		for _, retry := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, retry %v", undo, retry), func(t *testing.T) {
				f := newFixture(t)
				pod := f.runPod("web")
				f.engine.FailOnce("CreateContainer.after", errors.New("boom"))
				f.engine.FailOnce(undo, errors.New("undo boom"))
				_, err := f.create(pod, "web", "c", "true")
				if err == nil || !strings.Contains(err.Error(), "undo boom") {
					t.Fatalf("error %v", err)
				}
				list, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
				if err != nil || len(list.Containers) != 1 || list.Containers[0].State == runtimeapi.ContainerState_CONTAINER_RUNNING {
					t.Errorf("listed are %v, %v", list, err)
				}
				if retry {
					if _, err := f.create(pod, "web", "c", "true"); err != nil {
						t.Errorf("the retry: %v", err)
					}
				}
				f.nothingLeft()
			})
		}
	}
}

// lateEngine tells of no change by itself, fails a pod's start, and a container's creation after it was made.
type lateEngine struct {
	engine.Engine
	pod       engine.PodStatus
	container engine.ContainerStatus
}

func (e *lateEngine) Watch(ctx context.Context, sink engine.Sink) error {
	return e.Engine.Watch(ctx, lateSink{sink})
}

func (e *lateEngine) StartPod(ctx context.Context, id engine.PodID, spec *engine.PodSpec) (engine.PodStatus, error) {
	status, err := e.Engine.StartPod(ctx, id, spec)
	if spec.Key.Name != "late" {
		return status, err
	}
	e.pod, e.pod.Spec = status, spec
	return status, errors.Join(err, errors.New("boom"))
}

func (e *lateEngine) CreateContainer(ctx context.Context, spec *engine.ContainerSpec) (engine.ContainerStatus, error) {
	status, err := e.Engine.CreateContainer(ctx, spec)
	e.container, e.container.Spec = status, spec
	return status, errors.Join(err, errors.New("boom"))
}

type lateSink struct{ engine.Sink }

func (lateSink) PodChanged(engine.PodStatus)             {}
func (lateSink) ContainerChanged(engine.ContainerStatus) {}

// What an engine tells of a pod and a container after they were taken back, and had no id in their records, makes nothing.
//
// Rows: R12 (part)
func TestWhatWasTakenBackIsNotListedWhenItsEngineTellsLate(t *testing.T) {
	f := newFixture(t)
	late := &lateEngine{}
	f.wrap = func(e engine.Engine) engine.Engine { late.Engine = e; return late }
	f.restart()
	pod := f.runPod("web")
	if _, err := f.create(pod, "web", "c", "true"); err == nil || late.container.ID == "" {
		t.Fatalf("container %q, error %v", late.container.ID, err)
	}
	_, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("late")})
	if err == nil || late.pod.ID == "" {
		t.Fatalf("pod %q, error %v", late.pod.ID, err)
	}
	sink := f.store.Sink(f.engine.Name())
	sink.PodChanged(late.pod)
	sink.ContainerChanged(late.container)
	pods, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != 1 || pods.Items[0].Id != pod {
		t.Errorf("listed are %v, %v", pods, err)
	}
	containers, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(containers.Containers) != 0 {
		t.Errorf("listed are %v, %v", containers, err)
	}
	f.nothingLeft()
}

// stuckEngine's containers do not end but with their pod.
type stuckEngine struct{ engine.Engine }

func (stuckEngine) StopPodEndsContainers() {}

func (stuckEngine) StopContainer(ctx context.Context, _ engine.ContainerID, _ time.Duration) error {
	<-ctx.Done()
	return ctx.Err()
}

// A container that cannot be killed does not keep an engine from ending the pod that it is in.
//
// Rows: R07 (part)
func TestAPodEndsWithAContainerThatHangs(t *testing.T) {
	defer func(was time.Duration) { wholePodPatience = was }(wholePodPatience)
	wholePodPatience = 50 * time.Millisecond
	f := newFixture(t)
	f.wrap = func(e engine.Engine) engine.Engine { return stuckEngine{e} }
	f.restart()
	pod := f.runPod("web")
	id, err := f.create(pod, "web", "c", "run")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	if n := f.engine.Calls("StopPod"); n != 1 {
		t.Errorf("the engine was asked %d times to stop the pod", n)
	}
}
