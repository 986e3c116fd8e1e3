package e2e

import (
	"fmt"
	"maps"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// agreement compares the daemon's lists with the engine's own: the same objects, running and ready where those run.
func agreement(t *testing.T, n *harness.Node) error {
	t.Helper()
	engine := n.Objects(t)
	pods, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := n.Shim.Runtime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	for _, p := range pods.Items {
		ours[p.Id] = p.State == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	for _, c := range containers.Containers {
		ours[c.Id] = c.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	if !maps.Equal(engine, ours) {
		return fmt.Errorf("the engine has %v, the daemon lists %v", engine, ours)
	}
	return nil
}

// agreed waits until the daemon's lists are the engine's.
func agreed(t *testing.T, n *harness.Node, limit time.Duration) {
	t.Helper()
	harness.Eventually(t, limit, "the daemon to agree with the engine", func() error { return agreement(t, n) })
}

// A container that somebody pauses runs still; exec into it is refused and not left hanging, and it can be stopped.
//
// Rows: S67 (part)
func TestPausedBehindOurBack(t *testing.T) {
	harness.AboutDocker(t)
	n := node(t)
	pod := n.RunPod(t, "paused")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	c.WaitLog("ready")
	n.Docker.Post("/containers/" + c.ID + "/pause")
	if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a paused container is %v", state)
	}
	if _, err := n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}, Timeout: 2}); err == nil {
		t.Error("a command ran in a paused container")
	}
	n.Docker.Post("/containers/" + c.ID + "/unpause")
	if got := c.Output("echo again"); got != "again\n" {
		t.Errorf("exec says %q", got)
	}
	n.Docker.Post("/containers/" + c.ID + "/pause")
	began := time.Now()
	c.Stop(30)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("stopping a paused container took %v: it never got its signal", took)
	}
	if status := c.WaitExit(); status.ExitCode != 0 {
		t.Errorf("exit code %d, want 0: it was killed", status.ExitCode)
	}
	agreed(t, n, 10*time.Second)
}

// A container that somebody starts again is no container that the kubelet knows of: it was told of the exit, and starts
// another one. The process of the old one must not stay beside that.
//
// Rows: S67 (part)
func TestRestartedBehindOurBack(t *testing.T) {
	harness.AboutDocker(t)
	n := node(t)
	pod := n.RunPod(t, "restarted")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "on-term", "3"})
	c.WaitLog("ready")
	check := func(t *testing.T) {
		t.Helper()
		if status := c.WaitExit(); status.ExitCode != 3 {
			t.Errorf("exit code %d, want that of the first exit, 3", status.ExitCode)
		}
		harness.Eventually(t, 15*time.Second, "the process that was started again to end", func() error {
			if pid := n.HostPID(t, c.ID); pid != 0 {
				return fmt.Errorf("process %d runs", pid)
			}
			return nil
		})
		agreed(t, n, 10*time.Second)
	}
	t.Run("while we look", func(t *testing.T) {
		n.Docker.Post("/containers/" + c.ID + "/restart")
		check(t)
	})
	t.Run("while the daemon is down", func(t *testing.T) {
		n.Shim.Stop()
		n.Docker.Post("/containers/" + c.ID + "/start")
		n.Shim.Start()
		check(t)
	})
	again := pod.Run("c2", n.Registry.Ref(harness.Busybox), forever)
	again.WaitLog("ready")
	t.Run("the pod", func(t *testing.T) {
		ip := pod.IP()
		n.Docker.Post("/containers/" + pod.ID + "/restart?t=1")
		harness.Eventually(t, 10*time.Second, "the pod to be not ready", func() error {
			if state := pod.Status().State; state != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				return fmt.Errorf("it is %v", state)
			}
			return nil
		})
		pod.Remove()
		for _, left := range n.CNI.Addresses() {
			if left == ip {
				t.Errorf("address %s was not given back", ip)
			}
		}
	})
}

// A name that somebody changed changes nothing: containers are known by their ids.
//
// Rows: S67 (part)
func TestRenamedBehindOurBack(t *testing.T) {
	harness.AboutDocker(t)
	n := node(t)
	pod := n.RunPod(t, "renamed")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "on-term", "4"})
	c.WaitLog("ready")
	for _, id := range []string{c.ID, pod.ID} {
		n.Docker.Post("/containers/" + id + "/rename?name=mine-" + harness.ID())
	}
	check := func(t *testing.T) {
		t.Helper()
		if state := pod.Status().State; state != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod is %v", state)
		}
		if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container is %v", state)
		}
		if got := c.Output("echo there"); got != "there\n" {
			t.Errorf("exec says %q", got)
		}
	}
	check(t)
	n.Shim.Restart()
	check(t)
	agreed(t, n, 10*time.Second)
	c.Stop(10)
	if status := c.WaitExit(); status.ExitCode != 4 {
		t.Errorf("exit code %d, want 4", status.ExitCode)
	}
	c.Remove()
	pod.Remove()
	agreed(t, n, 10*time.Second)
}
