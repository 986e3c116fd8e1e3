package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// kubeletWeb is a pod that must be reachable whatever happened.
const kubeletWeb = `
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: IMAGE
    command: [sh, -c, "echo started >> /data/starts; exec httpd -f -p 80 -h /data"]
    ports: [{containerPort: 80, hostPort: 18183}]
    readinessProbe: {httpGet: {port: 80, path: /starts}, periodSeconds: 1}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]`

// kubeletOn runs kubeletWeb and two more pods on a node of the test's own, which is checked for leaks at the end.
func kubeletOn(t *testing.T, version string, docker harness.DockerOptions) *kubeletRun {
	t.Helper()
	wholeKubelet(t)
	recordKubelet(t, version, 1)
	n := harness.NewNode(t, docker, harness.ShimOptions{})
	n.Pull(t, harness.Busybox)
	warmUp(t, n)
	n.NoLeaks(t)
	r := &kubeletRun{n: n, host: t.TempDir()}
	r.Kubelet = harness.StartKubelet(t, n, harness.KubeletOptions{Version: version})
	r.apply(t, "web", kubeletWeb)
	for _, name := range []string{"first", "second"} {
		r.apply(t, name, kubeletWitness)
	}
	return r
}

// serves checks that the web pod answers, that many starts after the first.
func (r *kubeletRun) serves(t *testing.T, starts string) {
	t.Helper()
	harness.Eventually(t, 2*time.Minute, "the pod to serve", func() error {
		pod := r.WaitReady(t, "web")
		for _, address := range []string{net.JoinHostPort(pod.Status.PodIP, "80"), r.n.CNI.Gateway + ":18183"} {
			body, err := tryGet(address + "/starts")
			if err == nil && body != starts {
				err = fmt.Errorf("%s says %q, want %q", address, body, starts)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	for _, name := range []string{"first", "second"} {
		r.WaitReady(t, name)
		r.Shell(t, name, "c", "true")
	}
}

// A dockerd that ends with its containers, and comes back: the kubelet makes its pods again, in their old volumes.
func TestKubeletOnDockerdThatRestarts(t *testing.T) { dockerdRestarts(t, harness.KubeletCurrent) }

func dockerdRestarts(t *testing.T, version string) {
	t.Helper()
	harness.AboutDocker(t)
	r := kubeletOn(t, version, harness.DockerOptions{})
	r.serves(t, "started\n")
	r.n.Docker.Restart()
	r.n.Shim.WaitReady()
	r.serves(t, "started\nstarted\n")
}

// With live-restore a dockerd that dies and comes back changes nothing.
func TestKubeletOnDockerdThatIsKilledWithLiveRestore(t *testing.T) {
	dockerdIsKilled(t, harness.KubeletCurrent)
}

func dockerdIsKilled(t *testing.T, version string) {
	t.Helper()
	harness.AboutDocker(t)
	r := kubeletOn(t, version, harness.DockerOptions{LiveRestore: true})
	r.serves(t, "started\n")
	before, witness := r.WaitReady(t, "web").ContainerIDs(), watch(t, r.n, r.Kubelet, "first", "c")
	r.n.Docker.Kill()
	r.n.Docker.Start()
	r.n.Shim.WaitReady()
	r.serves(t, "started\n")
	if now := r.WaitReady(t, "web").ContainerIDs(); now["web"] != before["web"] {
		t.Errorf("its container was %v and is %v", before, now)
	}
	witness.checkSurvived(t)
}

// A node that is full at once, and empty again.
func TestKubeletFullNode(t *testing.T) { fullNode(t, harness.KubeletCurrent) }

func fullNode(t *testing.T, version string) {
	t.Helper()
	wholeKubelet(t)
	const pods = 110
	recordKubelet(t, version, 1)
	// The Go runtime keeps some memory of the most that ever was at once; the live heap is looked at.
	n := node(t, "resident bytes")
	r := &kubeletRun{n: n, host: t.TempDir()}
	r.Kubelet = harness.StartKubelet(t, n, harness.KubeletOptions{Version: version, Config: map[string]any{"maxPods": pods + 1, "registryPullQPS": 0, "syncFrequency": "1m"}})
	r.apply(t, "witness", kubeletWitness)
	witness := watch(t, n, r.Kubelet, "witness", "c")
	name := func(i int) string { return fmt.Sprintf("full-%d", i) }
	for i := range pods {
		r.apply(t, name(i), `
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: IMAGE, command: [testserver, on-term, "0"]}]`)
	}
	addresses := map[string]bool{}
	harness.Eventually(t, 10*time.Minute, "all pods to be ready", func() error {
		all, err := r.Pods()
		if err != nil {
			return err
		}
		ready := 0
		for _, pod := range all {
			if pod.Ready() && strings.HasPrefix(pod.Metadata.Name, "full-") {
				ready++
				addresses[pod.Status.PodIP] = true
			}
		}
		if ready < pods {
			return fmt.Errorf("%d are", ready)
		}
		return nil
	})
	if len(addresses) != pods {
		t.Errorf("%d pods have %d addresses", pods, len(addresses))
	}
	r.Shell(t, name(pods-1), "c", "true")
	for i := range pods {
		r.Delete(t, name(i))
	}
	harness.Eventually(t, 10*time.Minute, "all pods to end", func() error {
		if left := len(n.CNI.Addresses()); left > 1 {
			return fmt.Errorf("%d addresses are taken", left)
		}
		return nil
	})
	witness.checkSurvived(t)
}

// What a kubelet's feature gates ask of a runtime otherwise.
func TestKubeletFeatureGates(t *testing.T) {
	wholeKubelet(t)
	for name, gate := range map[string]struct {
		gates map[string]any
		check func(t *testing.T, r *kubeletRun, before string)
	}{
		"evented PLEG":               {map[string]any{"EventedPLEG": true, "PodAndContainerStatsFromCRI": true}, checkEvents},
		"streamed lists":             {map[string]any{"CRIListStreaming": true, "PodAndContainerStatsFromCRI": true}, checkStreamedLists},
		"no statistics from the CRI": {map[string]any{"PodAndContainerStatsFromCRI": false}, checkOwnStatistics},
	} {
		t.Run(name, func(t *testing.T) {
			recordKubelet(t, harness.KubeletCurrent, 1)
			n := node(t)
			before := n.Shim.Get("/metrics")
			r := &kubeletRun{n: n, host: t.TempDir()}
			r.Kubelet = harness.StartKubelet(t, n, harness.KubeletOptions{Config: map[string]any{"featureGates": gate.gates}})
			r.apply(t, "witness", kubeletWitness)
			witness := watch(t, n, r.Kubelet, "witness", "c")
			for _, pod := range []string{"web", "crash", "once", "graceful"} {
				r.apply(t, pod, kubeletPods[pod])
			}
			kubeletServes(t, n, r.Kubelet, r.host)
			kubeletCrash(t, n, r.Kubelet, r.host)
			kubeletSucceeds(t, n, r.Kubelet, r.host)
			kubeletGraceful(t, n, r.Kubelet, r.host)
			harness.Eventually(t, time.Minute, "the pod's figures", func() error {
				stats, err := r.StatsSummary("web")
				if err == nil && (len(stats.Containers) != 1 || stats.Containers[0].CPU.UsageCoreNanoSeconds == 0 || stats.Containers[0].Memory.WorkingSetBytes == 0 ||
					stats.Containers[0].RootFS.UsedBytes == nil || stats.CPU.UsageCoreNanoSeconds == 0 || stats.Memory.WorkingSetBytes == 0) {
					err = fmt.Errorf("they are %+v", stats)
				}
				return err
			})
			gate.check(t, r, before)
			witness.checkSurvived(t)
		})
	}
}

// checkEvents checks that the kubelet got events and lost the stream of them never: it counts as connected, too, where a runtime
// answers that it has none.
func checkEvents(t *testing.T, r *kubeletRun, _ string) {
	metrics := r.Get(t, "/metrics")
	for name, want := range map[string]func(float64) bool{
		"kubelet_evented_pleg_connection_success_count":         func(n float64) bool { return n == 1 },
		"kubelet_evented_pleg_connection_error_count":           func(n float64) bool { return n == 0 },
		"kubelet_evented_pleg_connection_latency_seconds_count": func(n float64) bool { return n >= 10 }, // an event each
	} {
		if got := series(metrics, name); !want(got) {
			t.Errorf("%s is %v", name, got)
		}
	}
}

// checkStreamedLists checks that the kubelet asks for streams: it would ask for lists, for good, after one that is not there.
func checkStreamedLists(t *testing.T, r *kubeletRun, before string) {
	harness.Eventually(t, time.Minute, "the kubelet to ask for streams of everything", func() error {
		r.Get(t, "/metrics/cadvisor") // of which it makes one
		after := r.n.Shim.Get("/metrics")
		for _, method := range []string{"StreamPodSandboxes", "StreamContainers", "StreamImages", "StreamPodSandboxStats", "StreamPodSandboxMetrics"} {
			const name = "crishim_rpc_duration_seconds_count"
			labels := []string{`method="` + method + `"`, `code="OK"`}
			if now, was := series(after, name, labels...), max(0, series(before, name, labels...)); now <= was {
				return fmt.Errorf("%s was answered %v times, before %v", method, now, was)
			}
		}
		return nil
	})
}

// checkOwnStatistics checks the figures that the kubelet itself makes of cgroups that the runtime gave it.
func checkOwnStatistics(t *testing.T, r *kubeletRun, _ string) {
	harness.Eventually(t, time.Minute, "the metrics of resources", func() error {
		metrics := r.Get(t, "/metrics/resource")
		for name, labels := range map[string][]string{
			"container_cpu_usage_seconds_total":  {`pod="web-e2e"`, `container="web"`},
			"container_memory_working_set_bytes": {`pod="web-e2e"`, `container="web"`},
			"pod_memory_working_set_bytes":       {`pod="web-e2e"`},
		} {
			if got := series(metrics, name, labels...); got <= 0 {
				return fmt.Errorf("%s of %v is %v", name, labels, got)
			}
		}
		return nil
	})
}

// After a reboot nothing runs and the pods come back, in their old volumes.
func TestKubeletReboot(t *testing.T) { reboots(t, harness.KubeletCurrent) }

func reboots(t *testing.T, version string) {
	t.Helper()
	r := kubeletOn(t, version, harness.DockerOptions{})
	r.serves(t, "started\n")
	before := r.WaitReady(t, "web")
	r.n.Reboot(t, r.Kubelet)
	clear(warm) // the rules that a first pod makes are gone
	harness.Eventually(t, 2*time.Minute, "the pod to be made again", func() error {
		if now := r.WaitReady(t, "web"); now.Container("web").ContainerID == before.Container("web").ContainerID {
			return errors.New("it is the one before")
		}
		return nil
	})
	r.serves(t, "started\nstarted\n")
	harness.Eventually(t, 2*time.Minute, "the addresses of the pods before to be given back", func() error {
		if taken := r.n.CNI.Addresses(); len(taken) != 3 {
			return fmt.Errorf("%v are taken", taken)
		}
		return nil
	})
}
