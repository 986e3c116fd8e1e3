package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// What happens to a node behind its kubelet's back.
var kubeletFaultFamily = kubeletFamily{
	pods: map[string]string{
		"victim": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: IMAGE
    command: [testserver, http, ":80"]
    ports: [{containerPort: 80, hostPort: 18182}]
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
  - {name: other, image: IMAGE, command: [testserver, on-term, "0"]}`,

		"bystander": `
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: IMAGE, command: [testserver, on-term, "0"]}`,
	},
	steps: []kubeletStep{
		{"a container removed behind the kubelet's back is made again", kubeletContainerRemoved},
		{"a sandbox removed behind the kubelet's back is made again, with its host port", kubeletSandboxRemoved},
		{"the shim may restart and be killed while pods start and end", kubeletShimUnderLoad},
	},
}

// criOf finds the pod's sandbox and, by name, its containers in the runtime.
func criOf(t *testing.T, r *kubeletRun, pod harness.KubeletPod) (sandbox string, containers map[string]string) {
	t.Helper()
	uid := map[string]string{"io.kubernetes.pod.uid": pod.Metadata.UID}
	reply, err := r.n.Shim.Runtime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		LabelSelector: uid, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		t.Fatal(err)
	}
	containers = map[string]string{}
	for _, c := range reply.Containers {
		sandbox, containers[c.Metadata.Name] = c.PodSandboxId, c.Id
	}
	return sandbox, containers
}

func kubeletContainerRemoved(t *testing.T, r *kubeletRun) {
	before := r.WaitReady(t, "victim")
	sandbox, containers := criOf(t, r, before)
	if _, err := r.n.Shim.Runtime.RemoveContainer(ctx(t), &runtimeapi.RemoveContainerRequest{ContainerId: containers["web"]}); err != nil {
		t.Fatal(err)
	}
	after := r.WaitPod(t, "victim", time.Minute, "its container to be made again", func(p harness.KubeletPod) error {
		if id := p.Container("web").ContainerID; !p.Ready() || strings.HasSuffix(id, containers["web"]) {
			return fmt.Errorf("it is %s", id)
		}
		return nil
	})
	if now, _ := criOf(t, r, after); now != sandbox {
		t.Errorf("its sandbox was %s and is %s", sandbox, now)
	}
	if was, is := before.Container("other").ContainerID, after.Container("other").ContainerID; was != is {
		t.Errorf("the container beside it was %s and is %s", was, is)
	}
}

func kubeletSandboxRemoved(t *testing.T, r *kubeletRun) {
	before := r.WaitReady(t, "victim")
	sandbox, _ := criOf(t, r, before)
	bystander := r.WaitReady(t, "bystander").ContainerIDs()
	if _, err := r.n.Shim.Runtime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		t.Fatal(err)
	}
	after := r.WaitPod(t, "victim", 2*time.Minute, "its sandbox to be made again", func(p harness.KubeletPod) error {
		if now, containers := criOf(t, r, p); !p.Ready() || now == sandbox || len(containers) != 2 {
			return fmt.Errorf("its sandbox is %q with containers %v", now, containers)
		}
		return nil
	})
	for _, address := range []string{after.Status.PodIP + ":80", r.n.CNI.Gateway + ":18182"} {
		if body := httpGet(t, address); body != "host=victim-e2e path=/\n" {
			t.Errorf("%s says %q", address, body)
		}
	}
	if now := r.WaitReady(t, "bystander").ContainerIDs(); now["c"] != bystander["c"] {
		t.Errorf("the pod beside it had %v and has %v", bystander, now)
	}
}

// kubeletShimUnderLoad has pods come and go while the daemon is restarted and killed, and commands run in those that stay.
func kubeletShimUnderLoad(t *testing.T, r *kubeletRun) {
	spec := `
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: IMAGE, command: [testserver, on-term, "0"]}`
	bystander := r.WaitReady(t, "bystander").ContainerIDs()
	load, stop := context.WithCancel(t.Context())
	var worked atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for load.Err() == nil {
			var out harness.Buffer
			if r.Exec(load, "bystander", "c", harness.Streams{Stdout: &out}, "echo", "there") == nil && out.String() == "there\n" {
				worked.Add(1)
			}
		}
	}()
	var names []string
	for round, disturb := range []func(){r.n.Shim.Restart, r.n.Shim.KillAndRestart, r.n.Shim.Restart, r.n.Shim.KillAndRestart} {
		for i := range 3 {
			name := fmt.Sprintf("load-%d-%d", round, i)
			names = append(names, name)
			r.apply(t, name, spec)
		}
		if round > 0 && !r.KillsOnce() {
			r.Delete(t, names[3*(round-1)]) // of the round before, which may not even have started
		}
		before := worked.Load()
		disturb()
		harness.Eventually(t, time.Minute, "commands to run again", func() error {
			if worked.Load() == before {
				return errors.New("none did")
			}
			return nil
		})
	}
	stop()
	<-ended
	for i, name := range names {
		if i%3 == 0 && i < 9 && !r.KillsOnce() {
			waitEnded(t, r.Kubelet, name, 2*time.Minute)
			continue
		}
		r.WaitReady(t, name)
		states, err := r.Sandboxes(name)
		if err != nil {
			t.Fatal(err)
		}
		if ready := slices.DeleteFunc(states, func(s runtimeapi.PodSandboxState) bool { return s != runtimeapi.PodSandboxState_SANDBOX_READY }); len(ready) != 1 {
			t.Errorf("pod %s has %d sandboxes that are ready", name, len(ready))
		}
		r.Delete(t, name)
	}
	if now := r.WaitReady(t, "bystander").ContainerIDs(); now["c"] != bystander["c"] {
		t.Errorf("the pod beside them had %v and has %v", bystander, now)
	}
}
