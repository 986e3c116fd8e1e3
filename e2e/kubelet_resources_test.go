package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// Limits as cgroups and scores, and what the kubelet tells of their use.
var kubeletResourceFamily = kubeletFamily{
	pods: map[string]string{
		"guaranteed": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: IMAGE
    command: [testserver, on-term, "0"]
    resources: {limits: {cpu: 200m, memory: 64Mi}}
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}`,

		"burstable": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: IMAGE
    command: [testserver, on-term, "0"]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {memory: 32Mi}}
  - name: other
    image: IMAGE
    command: [testserver, on-term, "0"]`,
	},
	steps: []kubeletStep{
		{"limits and scores are the pod's class", kubeletLimits},
		{"metrics of resources and probes have every container", kubeletResourceMetrics},
	},
}

// podCgroup reads a file, by its name on cgroup v1 or v2, of a cgroup below the pod's own, "" for the latter.
func podCgroup(t *testing.T, r *kubeletRun, class, uid, below, controller, v1, v2 string) string {
	t.Helper()
	at := filepath.Join(r.Cgroup(), "kubepods", class, "pod"+uid, below)
	for _, file := range []string{filepath.Join("/sys/fs/cgroup", controller, at, v1), filepath.Join("/sys/fs/cgroup", at, v2)} {
		if data, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(data))
		}
	}
	t.Errorf("cgroup %s has neither %s nor %s", at, v1, v2)
	return ""
}

func kubeletLimits(t *testing.T, r *kubeletRun) {
	pod := r.WaitReady(t, "guaranteed")
	if pod.Status.QOSClass != "Guaranteed" {
		t.Errorf("its class is %s", pod.Status.QOSClass)
	}
	_, id, _ := strings.Cut(pod.Container("c").ContainerID, "://")
	for _, below := range []string{"", id} {
		if got := podCgroup(t, r, "", pod.Metadata.UID, below, "memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" {
			t.Errorf("memory of %q is limited to %s", below, got)
		}
		if got := podCgroup(t, r, "", pod.Metadata.UID, below, "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "20000" && got != "20000 100000" {
			t.Errorf("the processor of %q is limited to %s", below, got)
		}
	}
	burstable := r.WaitReady(t, "burstable")
	_, id, _ = strings.Cut(burstable.Container("c").ContainerID, "://")
	if got := podCgroup(t, r, "burstable", burstable.Metadata.UID, id, "memory", "memory.limit_in_bytes", "memory.max"); got != "33554432" {
		t.Errorf("memory of the burstable container is limited to %s", got)
	}
	if os.Getenv("E2E_OOM_SCORES") == "" && !canLowerScores() {
		t.Log("the OOM scores are not looked at: without CAP_SYS_RESOURCE nobody can lower one")
		return
	}
	if got := r.Shell(t, "guaranteed", "c", "cat /proc/1/oom_score_adj"); got != "-997\n" {
		t.Errorf("the OOM score of a guaranteed container is %s", got)
	}
}

// canLowerScores says whether this machine lets root lower a process's score of the OOM killer.
func canLowerScores() bool {
	before, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil || os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0) != nil {
		return false
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", before, 0)
	return true
}

func kubeletResourceMetrics(t *testing.T, r *kubeletRun) {
	for _, name := range []string{"guaranteed", "burstable"} {
		r.WaitReady(t, name)
	}
	harness.Eventually(t, time.Minute, "the metrics of resources", func() error {
		metrics := r.Get(t, "/metrics/resource")
		for _, labels := range [][]string{{`pod="guaranteed-e2e"`, `container="c"`}, {`pod="burstable-e2e"`, `container="c"`}, {`pod="burstable-e2e"`, `container="other"`}} {
			for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds"} {
				if got := series(metrics, name, labels...); got <= 0 {
					return fmt.Errorf("%s of %v is %v", name, labels, got)
				}
			}
		}
		for _, name := range []string{"pod_cpu_usage_seconds_total", "pod_memory_working_set_bytes"} {
			if got := series(metrics, name, `pod="guaranteed-e2e"`); got <= 0 {
				return fmt.Errorf("%s of the pod is %v", name, got)
			}
		}
		if !strings.Contains(metrics, "\nnode_memory_working_set_bytes ") || !strings.Contains(metrics, "\nresource_scrape_error 0") && !strings.Contains(metrics, "\nscrape_error 0") {
			return fmt.Errorf("the node's are missing: %.300s", metrics)
		}
		return nil
	})
	if metrics := r.Get(t, "/metrics/probes"); series(metrics, "prober_probe_total", `pod="guaranteed-e2e"`, `probe_type="Readiness"`, `result="successful"`) <= 0 {
		t.Error("the metrics of probes have no row for the pod's")
	}
	for _, name := range []string{"guaranteed", "burstable"} {
		harness.Eventually(t, time.Minute, "figures of all containers of pod "+name, func() error {
			stats, err := r.StatsSummary(name)
			if err != nil {
				return err
			}
			pod := r.WaitReady(t, name)
			if len(stats.Containers) != len(pod.Status.ContainerStatuses) {
				return fmt.Errorf("%d containers have them, of %d", len(stats.Containers), len(pod.Status.ContainerStatuses))
			}
			for _, c := range stats.Containers {
				if c.Memory.WorkingSetBytes == 0 || c.RootFS.UsedBytes == nil || c.Logs.UsedBytes == nil {
					return fmt.Errorf("of container %s: %+v", c.Name, c)
				}
			}
			return nil
		})
	}
}
