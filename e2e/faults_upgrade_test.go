package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// Docker is upgraded from 20.10 to 28 under running pods. With live-restore they live through it, without it they
// are told as ended; either way lists are right, logs whole, and everything can be stopped, removed and run again.
//
// Rows: R09, R06 (part), R07 (part)
func TestEngineIsUpgradedUnderRunningPods(t *testing.T) {
	harness.AboutDocker(t)
	harness.Require(t)
	if !harness.EngineBuilt(harness.Engine28) {
		t.Skip("Docker 28 is not built here: `make test-engine ENGINE=28 CORE=1` or `make matrix` does")
	}
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Skip("there is no older engine to begin with: dockerd is not on PATH")
	}
	newer := harness.DockerEngine(t, harness.Engine28)
	for name, restore := range map[string]bool{"with live-restore": true, "without live-restore": false} {
		t.Run(name, func(t *testing.T) {
			older := harness.DockerEngine(t, harness.EngineDebian)
			older.LiveRestore = restore
			n := ownNode(t, older)
			busybox := n.Registry.Ref(harness.Busybox)
			pod := n.RunPod(t, "upgraded", hostPort(18110, 80))
			web := pod.Run("web", n.Registry.Ref(harness.Web), nil)
			chatty := pod.RunChatty(busybox, 100)
			before := engineVersion(t, n)
			n.Docker.Upgrade(newer.Binary, newer.PathPrefix)
			harness.Eventually(t, 20*time.Second, "the new engine to be in use", func() error {
				if now := engineVersion(t, n); now == before || !strings.HasPrefix(now, "28.") {
					return fmt.Errorf("the engine is %s and was %s", now, before)
				}
				return nil
			})
			n.Shim.WaitReady()
			if restore {
				chatty.CheckSurvived()
				if got := chatty.Output("echo alive"); got != "alive\n" {
					t.Errorf("exec says %q", got)
				}
				if body := httpGet(t, n.CNI.Gateway+":18110"); body != "host=upgraded path=/\n" {
					t.Errorf("the host port says %q", body)
				}
			} else {
				web.WaitExit()
				chatty.WaitExit()
				chatty.CheckLog()
				if state := pod.Status().State; state != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
					t.Errorf("the pod is %v", state)
				}
			}
			agreed(t, n, 10*time.Second)
			chatty.Stop(5)
			chatty.WaitExit()
			chatty.CheckLog()
			chatty.Remove()
			pod.Remove()
			if left := n.CNI.Addresses(); len(left) != 0 {
				t.Errorf("addresses %v are left", left)
			}
			again := n.RunPod(t, "again", hostPort(18110, 80))
			again.Run("web", n.Registry.Ref(harness.Web), nil)
			if body := httpGet(t, n.CNI.Gateway+":18110"); body != "host=again path=/\n" {
				t.Errorf("the host port says %q", body)
			}
			n.Pull(t, harness.Small)
			agreed(t, n, 10*time.Second)
		})
	}
}

// engineVersion is the engine's, as the daemon knows it.
func engineVersion(t *testing.T, n *harness.Node) string {
	t.Helper()
	reply, err := n.Shim.Runtime.Version(ctx(t), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return reply.RuntimeVersion
}
