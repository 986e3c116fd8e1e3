package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

// at makes a call n times at once and returns the errors.
func at(n int, call func() error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = call() })
	}
	wg.Wait()
	return errs
}

func TestStopAndRemoveOfUnknownThingsAreFine(t *testing.T) {
	n := node(t)
	absent := strings.Repeat("0", 64)
	c := ctx(t)
	for name, call := range map[string]func() error{
		"StopPodSandbox": func() error {
			_, err := n.Shim.Runtime.StopPodSandbox(c, &runtimeapi.StopPodSandboxRequest{PodSandboxId: absent})
			return err
		},
		"RemovePodSandbox": func() error {
			_, err := n.Shim.Runtime.RemovePodSandbox(c, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: absent})
			return err
		},
		"StopContainer": func() error {
			_, err := n.Shim.Runtime.StopContainer(c, &runtimeapi.StopContainerRequest{ContainerId: absent})
			return err
		},
		"RemoveContainer": func() error {
			_, err := n.Shim.Runtime.RemoveContainer(c, &runtimeapi.RemoveContainerRequest{ContainerId: absent})
			return err
		},
		"RemoveImage": func() error {
			_, err := n.Shim.Images.RemoveImage(c, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "no.such/image"}})
			return err
		},
	} {
		wantCode(t, name, call(), codes.OK)
	}
	for name, call := range map[string]func() error{
		"PodSandboxStatus": func() error {
			_, err := n.Shim.Runtime.PodSandboxStatus(c, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: absent})
			return err
		},
		"ContainerStatus": func() error {
			_, err := n.Shim.Runtime.ContainerStatus(c, &runtimeapi.ContainerStatusRequest{ContainerId: absent})
			return err
		},
		"StartContainer": func() error {
			_, err := n.Shim.Runtime.StartContainer(c, &runtimeapi.StartContainerRequest{ContainerId: absent})
			return err
		},
		"Attach": func() error {
			_, err := n.Shim.Runtime.Attach(c, &runtimeapi.AttachRequest{ContainerId: absent, Stdout: true})
			return err
		},
		"PortForward": func() error {
			_, err := n.Shim.Runtime.PortForward(c, &runtimeapi.PortForwardRequest{PodSandboxId: absent, Port: []int32{80}})
			return err
		},
		"ReopenContainerLog": func() error {
			_, err := n.Shim.Runtime.ReopenContainerLog(c, &runtimeapi.ReopenContainerLogRequest{ContainerId: absent})
			return err
		},
		"UpdateContainerResources": func() error {
			_, err := n.Shim.Runtime.UpdateContainerResources(c, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: absent, Linux: &runtimeapi.LinuxContainerResources{}})
			return err
		},
	} {
		wantCode(t, name, call(), codes.NotFound)
	}
	if image := imageStatus(t, n, "no.such/image"); image != nil {
		t.Errorf("status of an absent image: %v", image)
	}
}

// Rows: R12 (part)
func TestManyStopsAndRemovesAtOnce(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "many")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "ignore-term"})
	c.WaitLog("ready")
	call := ctx(t)
	if err := errors.Join(at(20, func() error {
		_, err := n.Shim.Runtime.StopPodSandbox(call, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID})
		return err
	})...); err != nil {
		t.Errorf("StopPodSandbox: %v", err)
	}
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v were not given back", left)
	}
	if err := errors.Join(at(20, func() error {
		_, err := n.Shim.Runtime.RemovePodSandbox(call, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.ID})
		return err
	})...); err != nil {
		t.Errorf("RemovePodSandbox: %v", err)
	}
	_, err := n.Shim.Runtime.ContainerStatus(call, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	wantCode(t, "status of a container of a removed pod", err, codes.NotFound)
}

// Rows: R10 (part)
func TestRunPodSandboxAgainReturnsTheSamePod(t *testing.T) {
	n := node(t)
	config := n.PodConfig("again")
	n.PreparePod(t, config)
	call := ctx(t)
	var mu sync.Mutex
	ids := map[string]bool{}
	run := func() error {
		reply, err := n.Shim.Runtime.RunPodSandbox(call, &runtimeapi.RunPodSandboxRequest{Config: config})
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			ids[reply.PodSandboxId] = true
		}
		return err
	}
	if err := errors.Join(at(8, run)...); err != nil {
		t.Errorf("at once: %v", err)
	}
	if err := run(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if len(ids) != 1 {
		t.Errorf("pods %v, want one", ids)
	}
	changed := n.PodConfig("again")
	changed.Metadata, changed.LogDirectory, changed.Hostname = config.Metadata, config.LogDirectory, "other"
	changed.Linux.CgroupParent = config.Linux.CgroupParent
	_, err := n.Shim.Runtime.RunPodSandbox(call, &runtimeapi.RunPodSandboxRequest{Config: changed})
	wantCode(t, "another configuration under the same key", err, codes.AlreadyExists)
	for id := range ids {
		if _, err := n.Shim.Runtime.RemovePodSandbox(call, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Error(err)
		}
	}
}

// R10: a caller that leaves RunPodSandbox and comes back gets the pod, once.
//
// Rows: R10
func TestCallerThatLeftComesBackForItsPod(t *testing.T) {
	n := node(t)
	config := n.PodConfig("left")
	n.PreparePod(t, config)
	for patience := 50 * time.Millisecond; ; patience /= 2 {
		short, cancel := context.WithTimeout(t.Context(), patience)
		early, err := n.Shim.Runtime.RunPodSandbox(short, &runtimeapi.RunPodSandboxRequest{Config: config})
		cancel()
		if err != nil {
			wantCode(t, fmt.Sprintf("a caller with %v", patience), err, codes.DeadlineExceeded)
			break
		}
		// The pod was there sooner, as the native engine's may be.
		if _, err := n.Shim.Runtime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: early.PodSandboxId}); err != nil {
			t.Fatal(err)
		}
	}
	reply, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("the retry: %v", err)
	}
	list, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("pods %v, %v; want one", list, err)
	}
	if _, err := n.Shim.Runtime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: reply.PodSandboxId}); err != nil {
		t.Error(err)
	}
}

// Rows: R12 (part)
func TestStartContainerStartsOnce(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "once")
	c := pod.Create(pod.ContainerConfig("c", n.Registry.Ref(harness.Busybox), forever...))
	call := ctx(t)
	failed := 0
	for _, err := range at(10, func() error {
		_, err := n.Shim.Runtime.StartContainer(call, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
		return err
	}) {
		if err != nil {
			failed++
			wantCode(t, "one more start", err, codes.FailedPrecondition)
		}
	}
	if failed != 9 {
		t.Errorf("%d of 10 starts failed, want 9", failed)
	}
	c.Stop(5)
	_, err := n.Shim.Runtime.StartContainer(call, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
	wantCode(t, "start of an exited container", err, codes.FailedPrecondition)
}

// Rows: R13 (part)
func TestShorterGraceWins(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "grace")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "ignore-term"})
	c.WaitLog("ready")
	call := ctx(t)
	long := make(chan error, 1)
	go func() {
		_, err := n.Shim.Runtime.StopContainer(call, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 3600})
		long <- err
	}()
	time.Sleep(300 * time.Millisecond) // the first call is in its grace
	for name, ask := range map[string]func() error{
		"ContainerStatus": func() error {
			_, err := n.Shim.Runtime.ContainerStatus(call, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
			return err
		},
		"ReopenContainerLog": func() error {
			_, err := n.Shim.Runtime.ReopenContainerLog(call, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
			return err
		},
		"ExecSync": func() error {
			_, err := n.Shim.Runtime.ExecSync(call, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}})
			return err
		},
	} {
		began := time.Now()
		if err := ask(); err != nil || time.Since(began) > rowsize.Of(20*time.Second, 250*time.Millisecond) {
			t.Errorf("%s during the grace: %v after %v", name, err, time.Since(began))
		}
	}
	began := time.Now()
	c.Stop(0)
	if took := time.Since(began); took > rowsize.Of(20*time.Second, 500*time.Millisecond) {
		t.Errorf("stop with grace 0 took %v during another's hour", took)
	}
	if err := <-long; err != nil {
		t.Errorf("the first stop: %v", err)
	}
}

// Rows: R13 (part)
func TestCallerThatLeavesStopKillsNothing(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "leaves")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "ignore-term"})
	c.WaitLog("ready")
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := n.Shim.Runtime.StopContainer(short, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 2})
	wantCode(t, "a stop whose caller left", err, codes.DeadlineExceeded)
	time.Sleep(3 * time.Second) // longer than the grace
	if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", state)
	}
	c.Stop(0)
}
