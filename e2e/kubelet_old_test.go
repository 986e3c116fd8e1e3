package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	wholeKubelet(t)
	if os.Getenv("E2E_KUBELET") != kubeletMatrix {
		t.Skip("left to `make matrix` and `make test-kubelet RUN=TestKubelet123`")
	}
	for _, version := range []string{"v1", "v1alpha2"} {
		t.Run(version, func(t *testing.T) {
			recordKubelet(t, harness.Kubelet123, len(kubeletCore))
			n := node(t)
			runOldKubelet(t, n, harness.KubeletOptions{Version: harness.Kubelet123, Endpoint: harness.StartCRIEndpoint(t, n.Shim, version)})
		})
	}
}

// The families of what every kubelet can do, by the one that speaks only runtime.v1alpha2.
func TestKubelet122Scenarios(t *testing.T) {
	runKubeletScenarios(t, kubeletFamilies, harness.KubeletOptions{Version: harness.Kubelet122})
}

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

// kubeletToMigrate are pods of all kinds, which must not notice that another shim serves them.
var kubeletToMigrate = map[string]string{
	"web":    kubeletPods["web"],
	"chatty": kubeletPods["chatty"],
	"crash":  kubeletPods["crash"],
	"once":   kubeletPods["once"],
	"host": `
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: IMAGE, command: [testserver, on-term, "0"], tty: true}]`,
}

// A node leaves the dockershim of its kubelet for crishim, goes back, and leaves it again: no container is restarted, no request
// to a pod fails, no line of a log is lost or there twice, and when the pods are deleted nothing is left of them.
//
// Rows: R29 (part), S63 (part)
func TestKubelet122MovesFromItsDockershimAndBack(t *testing.T) {
	harness.AboutDocker(t)
	wholeKubelet(t)
	recordKubelet(t, harness.Kubelet122, 1)
	n := harness.NewNodeOn(t, harness.CNIOptions{Version: "0.4.0"}, harness.DockerOptions{}, harness.ShimOptions{})
	n.Pull(t, harness.Busybox)
	n.Pull(t, harness.Pause)
	n.Shim.Stop()
	r := &kubeletRun{n: n, host: t.TempDir()}
	r.Kubelet = harness.StartKubelet(t, n, harness.KubeletOptions{Version: harness.Kubelet122, Dockershim: true})
	for name, spec := range kubeletToMigrate {
		r.apply(t, name, spec)
	}
	stable := []string{"web", "chatty", "host"}
	pods := map[string]harness.KubeletPod{}
	for _, name := range stable {
		pods[name] = r.WaitReady(t, name)
	}
	crash := r.WaitPod(t, "crash", 3*time.Minute, "a restart", func(p harness.KubeletPod) error {
		if c := p.Container("crash"); c.RestartCount == 0 {
			return fmt.Errorf("it is %+v", c)
		}
		return nil
	})
	requests := ask(t, "127.0.0.1:18180", "one\ntwo\n")
	check := func(when string) {
		t.Helper()
		for _, name := range stable {
			now := r.WaitReady(t, name)
			if was := pods[name]; now.Metadata.UID != was.Metadata.UID || now.Status.PodIP != was.Status.PodIP || !maps.Equal(now.ContainerIDs(), was.ContainerIDs()) {
				t.Errorf("%s pod %s is %v at %s, and was %v at %s", when, name, now.ContainerIDs(), now.Status.PodIP, was.ContainerIDs(), was.Status.PodIP)
			}
		}
		now := r.WaitPod(t, "crash", 3*time.Minute, "its restarts", func(p harness.KubeletPod) error {
			if c := p.Container("crash"); c.RestartCount < crash.Container("crash").RestartCount {
				return fmt.Errorf("%d restarts, before %d", c.RestartCount, crash.Container("crash").RestartCount)
			}
			return nil
		})
		if now.Metadata.UID != crash.Metadata.UID || now.Status.PodIP != crash.Status.PodIP {
			t.Errorf("%s the pod that crashes is another one", when)
		}
		crash = now
		r.Shell(t, "web", "web", "true")
		for i, line := range strings.Split(strings.TrimSpace(r.Logs(t, "chatty", "slow")), "\n") {
			if want := fmt.Sprintf("line %d ", i); line != want && line != strings.TrimSpace(want) {
				t.Errorf("%s record %d of a log is %q", when, i, line)
				break
			}
		}
	}
	adopt := func() {
		n.Shim.Reconfigure(map[string]any{"adopt": map[string]any{"roots": []string{r.DockershimDir()}, "cni_cache_dirs": []string{r.DockershimCNICache()}}})
		n.Shim.Start()
		recovered(t, n)
	}
	r.LeaveDockershim(adopt)
	check("after the adoption")
	r.ReturnToDockershim(n.Shim.Stop)
	check("back on the dockershim")
	r.LeaveDockershim(adopt)
	check("after the second adoption")
	requests.check(t)
	for name := range kubeletToMigrate {
		r.Delete(t, name)
	}
	harness.Eventually(t, 5*time.Minute, "the kubelet to remove its pods", func() error {
		left, err := n.Docker.Containers()
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d containers are left", len(left))
		}
		return err
	})
	if checkpoints, err := os.ReadDir(filepath.Join(r.DockershimDir(), "sandbox")); err != nil || len(checkpoints) > 0 {
		t.Errorf("the dockershim's checkpoints are %v, %v", checkpoints, err)
	}
	if results, err := os.ReadDir(filepath.Join(r.DockershimCNICache(), "results")); err != nil || len(results) > 0 {
		t.Errorf("the dockershim's results of plugins are %v, %v", results, err)
	}
	if left := n.CNI.Addresses(); len(left) > 0 || !refused("127.0.0.1:18180") {
		t.Errorf("addresses %v are left, or the host port", left)
	}
	rules, err := exec.Command("iptables-save", "-t", "nat").CombinedOutput()
	if err != nil || strings.Contains(string(rules), "18180") || strings.Contains(string(rules), n.CNI.Subnet) {
		t.Errorf("rules are left, %v:\n%s", err, rules)
	}
}
