package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// A kubelet that speaks only runtime.v1alpha2 runs the core of pods, exec, logs and restarts.
func TestKubelet122(t *testing.T) {
	wholeKubelet(t)
	recordKubelet(t, harness.Kubelet122, len(kubeletCore))
	runOldKubelet(t, node(t), harness.KubeletOptions{Version: harness.Kubelet122})
}

// A kubelet that speaks both versions does as well with a runtime that has only one of them.
func TestKubelet123(t *testing.T) {
	matrixKubelet(t)
	for _, version := range []string{"v1", "v1alpha2"} {
		t.Run(version, func(t *testing.T) {
			recordKubelet(t, harness.Kubelet123, len(kubeletCore))
			n := node(t)
			runOldKubelet(t, n, harness.KubeletOptions{Version: harness.Kubelet123, Endpoint: harness.StartCRIEndpoint(t, n.Shim, version)})
		})
	}
}

// matrixKubelet skips what only the matrix of kubelets has.
func matrixKubelet(t *testing.T) {
	t.Helper()
	wholeKubelet(t)
	if os.Getenv("E2E_KUBELET") != kubeletMatrix {
		t.Skip("left to `make matrix` and `make test-kubelet RUN=TestKubelet123`")
	}
}

// The families of what every kubelet can do, by the one that speaks only runtime.v1alpha2.
func TestKubelet122Scenarios(t *testing.T) {
	runKubeletScenarios(t, slices.Concat(kubeletFamilies, []kubeletFamily{kubeletFullDiskFamily}), harness.KubeletOptions{Version: harness.Kubelet122, Config: fullAtOnce})
}

// What can befall a whole node, under the kubelet that speaks only runtime.v1alpha2.
func TestKubelet122OnDockerdThatRestarts(t *testing.T) { dockerdRestarts(t, harness.Kubelet122) }

func TestKubelet122OnDockerdThatIsKilledWithLiveRestore(t *testing.T) {
	dockerdIsKilled(t, harness.Kubelet122)
}

func TestKubelet122FullNode(t *testing.T) { fullNode(t, harness.Kubelet122) }

func TestKubelet122Reboot(t *testing.T) { reboots(t, harness.Kubelet122) }

// runOldKubelet runs the core of pods by a kubelet that takes the figures of a network from its own cAdvisor, which knows only
// containerd's and CRI-O's pods.
func runOldKubelet(t *testing.T, n *harness.Node, options harness.KubeletOptions) {
	t.Helper()
	const withoutNetwork = "statistics and metrics name processor, memory, files and network"
	k := harness.StartKubelet(t, n, options)
	runKubeletCore(t, n, k, t.TempDir(), withoutNetwork)
	harness.Eventually(t, time.Minute, "figures of a container", func() error {
		stats, err := k.StatsSummary("volumes")
		if err != nil {
			return err
		}
		if len(stats.Containers) != 1 || stats.Containers[0].Memory.WorkingSetBytes == 0 || stats.Containers[0].RootFS.UsedBytes == nil {
			return fmt.Errorf("they are %+v", stats)
		}
		return nil
	})
}

// The same kubelet on its own dockershim, where migrations begin: the harness's part of it works, and nothing stays.
func TestKubelet122OnItsDockershim(t *testing.T) {
	harness.AboutDocker(t)
	wholeKubelet(t)
	recordKubelet(t, harness.Kubelet122, 1)
	n := harness.NewNodeOn(t, harness.CNIOptions{Version: "0.4.0"}, harness.DockerOptions{}, harness.ShimOptions{}) // it knows no 1.0.0
	n.Pull(t, harness.Busybox)
	n.Pull(t, harness.Pause)
	r := &kubeletRun{n: n, host: t.TempDir()}
	r.Kubelet = harness.StartKubelet(t, n, harness.KubeletOptions{Version: harness.Kubelet122, Dockershim: true})
	r.apply(t, "web", kubeletWeb)
	pod := r.WaitReady(t, "web")
	for _, address := range []string{pod.Status.PodIP + ":80", n.CNI.Gateway + ":18183"} {
		if body := httpGet(t, address+"/starts"); body != "started\n" {
			t.Errorf("%s says %q", address, body)
		}
	}
	if names, err := os.ReadDir(filepath.Join(r.DockershimDir(), "sandbox")); err != nil || len(names) != 1 {
		t.Errorf("the dockershim's checkpoints are %v, %v", names, err)
	}
	r.Delete(t, "web")
	harness.Eventually(t, 3*time.Minute, "the dockershim to remove the pod", func() error {
		ids, err := n.Docker.Containers()
		if err == nil && len(ids) > 0 {
			err = fmt.Errorf("containers %v are left", ids)
		}
		return err
	})
	r.LeaveDockershim(func() {})
	r.apply(t, "web", kubeletWeb)
	r.WaitReady(t, "web")
}
