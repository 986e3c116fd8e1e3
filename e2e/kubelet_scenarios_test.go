package e2e

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// What is run by a real kubelet, and where: TestKubelet is in `make test`, the rest in `make test-kubelet`.
//
//	start, init containers, hostPort, exec, /run, port-forward, rotation, deletion  TestKubelet
//	probes: http, exec, tcp start, exec time-out; crash, OOM, previous log          TestKubelet
//	probes: exec, tcp, http time-out and startup that fail; sidecars; hooks         kubelet_probes_test.go
//	back-off, termination message of a log                                          kubelet_probes_test.go
//	emptyDir, memory, hostPath, sub-path, read-only                                 TestKubelet
//	projected-style volumes, propagation both ways, image volumes                   kubelet_volumes_test.go
//	users, groups, fsGroup, nonRoot, capabilities, seccomp, read-only root, sysctls kubelet_security_test.go
//	host network, PID and IPC; shareProcessNamespace; user namespaces               kubelet_security_test.go
//	limits of container and pod, QoS, OOM scores                                    kubelet_resources_test.go
//	exec with 4 MiB of stdin, terminals, attach; SPDY and WebSocket                 kubelet_streams_test.go
//	logs since, limited, and followed over rotation                                 kubelet_streams_test.go
//	/stats/summary, /metrics/cadvisor, statistics from the CRI                      TestKubelet
//	/metrics/resource, /metrics/probes, figures of every pod                        kubelet_resources_test.go
//	no statistics from the CRI, evented PLEG, streamed lists                        TestKubeletFeatureGates
//	image collection, pinned images                                                 kubelet_images_test.go
//	restart of the kubelet; kill -9 of the shim                                     TestKubelet
//	restart and kill -9 of the shim under load; removed behind the kubelet's back   kubelet_faults_test.go
//	restart of dockerd, with and without live-restore; the node's reboot            TestKubeletOnDockerd…, TestKubeletReboot
//	110 pods at once                                                                TestKubeletFullNode
//	v1.22, which speaks v1alpha2 only: core, scenarios; from its dockershim and back TestKubelet122…
//	v1.23, which speaks both, with a runtime that has one                           TestKubelet123
//	in-place resize, kubectl, WebSockets from end to end, workloads                 cluster_test.go

// What $E2E_KUBELET says where not simply "all": see hack/test-kubelet.sh.
const (
	kubeletPart   = "core"
	kubeletMatrix = "matrix"
)

// wholeKubelet skips a test that `make test` has no time for.
func wholeKubelet(t *testing.T) {
	t.Helper()
	harness.Require(t)
	if os.Getenv("E2E_KUBELET") == "" {
		t.Skip("left to `make test-kubelet`, which sets E2E_KUBELET")
	}
}

// recordKubelet has the end of the test, and of what its cleanup finds, written to $E2E_KUBELET_REPORT, for the table in
// docs/compatibility.md. It is called first, so that its own cleanup is the last; until then the test counts as failed, since a
// program of tests that runs out of time ends without one.
func recordKubelet(t *testing.T, version string, checks int) {
	t.Helper()
	file := os.Getenv("E2E_KUBELET_REPORT")
	if file == "" || strings.Contains(flag.Lookup("test.run").Value.String(), "/") { // the steps left out would pass
		return
	}
	engine := harness.EngineName(t)
	// As package reliability reads it, which the tests of another package do not import.
	passes := 0.0 // in a row, before this one
	run := map[string]any{"kubelet": version, "engine": engine, "test": t.Name(), "checks": checks, "date": time.Now().UTC().Format(time.DateOnly)}
	record := func(result string) {
		run["result"] = result
		runs := map[string]map[string]any{}
		if data, err := os.ReadFile(file); err == nil {
			if err := json.Unmarshal(data, &runs); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
		}
		key := version + " " + engine + " " + t.Name()
		if result == "pass" {
			run["passes"] = passes + 1
		} else if was, ok := runs[key]["passes"].(float64); ok {
			passes = was
		}
		runs[key] = run
		data, err := json.MarshalIndent(runs, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	record("fail")
	t.Cleanup(func() {
		if !t.Failed() && !t.Skipped() {
			record("pass")
		}
	})
}

// kubeletStep is one check of a kubelet's pods.
type kubeletStep struct {
	name string
	run  func(*testing.T, *kubeletRun)
}

// kubeletFamily is the pods of a topic and what is checked of them.
type kubeletFamily struct {
	pods  map[string]string // specs, see podManifest
	steps []kubeletStep
}

// kubeletRun is a kubelet that many families share: one start serves them all.
type kubeletRun struct {
	*harness.Kubelet
	n    *harness.Node
	host string // DIR of the specs
}

func (r *kubeletRun) apply(t *testing.T, name, spec string) {
	t.Helper()
	r.Apply(t, name, podManifest(r.n, r.host, name, spec))
}

// kubeletFamilies are what every kubelet can do.
var kubeletFamilies = []kubeletFamily{kubeletProbeFamily, kubeletVolumeFamily, kubeletSecurityFamily, kubeletResourceFamily, kubeletStreamFamily, kubeletFaultFamily, kubeletImageFamily}

// kubeletNewFamilies are what kubelets had to learn.
var kubeletNewFamilies = []kubeletFamily{kubeletSidecarFamily, kubeletImageVolumeFamily, kubeletOwnUsersFamily, kubeletNewStreamFamily, kubeletCollectionFamily}

// TestKubeletScenarios is what TestKubelet has no time for, on one kubelet, all pods at the same time. After each step gate SURV
// holds for a pod that none of them touches, and after the last one LEAK0.
func TestKubeletScenarios(t *testing.T) {
	runKubeletScenarios(t, slices.Concat(kubeletFamilies, kubeletNewFamilies), harness.KubeletOptions{Version: harness.KubeletCurrent, Config: map[string]any{
		"featureGates":      map[string]any{"PodAndContainerStatsFromCRI": true},
		"imageMinimumGCAge": "10s", "imageMaximumGCAge": "20s",
	}})
}

func runKubeletScenarios(t *testing.T, families []kubeletFamily, options harness.KubeletOptions) {
	t.Helper()
	wholeKubelet(t)
	checks := 0
	for _, family := range families {
		checks += len(family.steps)
	}
	recordKubelet(t, options.Version, checks)
	n := node(t)
	r := &kubeletRun{n: n, host: sharedMount(t)}
	for _, nobodys := range []string{harness.Small, harness.Pinned} { // no pod has them: for the collector
		n.Pull(t, nobodys)
	}
	r.Kubelet = harness.StartKubelet(t, n, options)
	writeSeccompProfile(t, filepath.Join(r.RootDir, "seccomp"))
	r.apply(t, "witness", kubeletWitness)
	for _, family := range families {
		for name, spec := range family.pods {
			r.apply(t, name, spec)
		}
	}
	witness := watch(t, n, r.Kubelet, "witness", "c")
	for _, family := range families {
		for _, step := range family.steps {
			t.Run(step.name, func(t *testing.T) {
				step.run(t, r)
				witness.checkSurvived(t)
			})
			if !r.Running() {
				t.Fatal("the kubelet ended")
			}
		}
	}
}
