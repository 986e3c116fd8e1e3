package e2e

import (
	"fmt"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

// churn changes what the daemon knows of, behind its back, with more events than the engine keeps (256) around it: one
// container ends, one is removed, and so is a pod.
func churn(t *testing.T, n *harness.Node, ends, removed *harness.Container, pod *harness.Pod, events int) {
	t.Helper()
	n.Docker.Post("/containers/" + ends.ID + "/kill?signal=TERM")
	for range events {
		n.Docker.Post("/images/" + n.Registry.Ref(harness.Busybox) + "/tag?repo=e2e-events&tag=latest")
	}
	n.Docker.Delete("/containers/" + removed.ID + "?force=1")
	n.Docker.Delete("/containers/" + pod.ID + "?force=1")
}

// checkChurned looks at the node afterwards: what stays is right, and what went can be removed.
func checkChurned(t *testing.T, n *harness.Node, ends, removed, stays *harness.Container, pod *harness.Pod, within time.Duration) {
	t.Helper()
	harness.Eventually(t, within, "the changes to be seen", func() error {
		if status := ends.Status(); status.State != runtimeapi.ContainerState_CONTAINER_EXITED || status.ExitCode != 7 {
			return fmt.Errorf("the container that ended is %v with exit code %d, want 7", status.State, status.ExitCode)
		}
		if status := removed.Status(); status.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("the container that was removed is %v", status.State)
		}
		if status := pod.Status(); status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			return fmt.Errorf("the pod that was removed is %v", status.State)
		}
		return nil
	})
	if got := stays.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	removed.Remove()
	pod.Remove()
	agreed(t, n, 10*time.Second)
}

// However events are lost, the index agrees with the engine afterwards.
//
// Rows: R47 (part)
func TestLostEvents(t *testing.T) {
	harness.AboutDocker(t)
	n, proxy := behindProxy(t)
	const late = 3 * time.Second
	for name, fault := range map[string]struct {
		begin, end func()
		after      time.Duration
	}{
		"cut off": {proxy.Cut, func() {
			proxy.Restore()
			n.Shim.WaitReady()
		}, 0},
		"the daemon stopped": {n.Shim.Pause, n.Shim.Resume, 0},
		"late":               {func() { proxy.Late(late) }, func() {}, late},
	} {
		t.Run(name, func(t *testing.T) {
			busybox := n.Registry.Ref(harness.Busybox)
			pod, gone := n.RunPod(t, "events"), n.RunPod(t, "gone")
			ends := pod.Run("ends", busybox, []string{"/bin/testserver", "on-term", "7"})
			removed, stays := pod.Run("removed", busybox, forever), pod.Run("stays", busybox, forever)
			for _, c := range []*harness.Container{ends, removed, stays} {
				c.WaitLog("ready")
			}
			fault.begin()
			churn(t, n, ends, removed, gone, rowsize.Of(300, 2000))
			fault.end()
			checkChurned(t, n, ends, removed, stays, gone, fault.after+rowsize.Of(10*time.Second, 2*time.Second))
			pod.Remove()
		})
	}
}
