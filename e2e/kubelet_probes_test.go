package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// What a kubelet asks of a runtime in the course of a container's life: probes that fail, hooks, restarts.
var kubeletProbeFamily = kubeletFamily{
	pods: map[string]string{
		"failing": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: exec
    image: IMAGE
    command: [sh, -c, "echo > /tmp/healthy; exec testserver on-term 0"]
    livenessProbe: {exec: {command: [test, -e, /tmp/healthy]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
  - name: tcp
    image: IMAGE
    command: [sh, -c, "testserver tcp :7 & echo $! > /tmp/pid; trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    startupProbe: {tcpSocket: {port: 7}, periodSeconds: 1, failureThreshold: 60}
    livenessProbe: {tcpSocket: {port: 7}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
  - name: untouched
    image: IMAGE
    command: [testserver, on-term, "0"]`,

		"never-starts": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: startup
    image: IMAGE
    command: [testserver, on-term, "0"]
    startupProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 2}
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
  - name: slow
    image: IMAGE
    command: [testserver, http, ":82"]
    livenessProbe: {httpGet: {port: 82, path: /slow/30000}, periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 1}
  - name: hook
    image: IMAGE
    command: [testserver, on-term, "0"]
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo no; exit 3"]}}}
  - name: logs
    image: IMAGE
    command: [sh, -c, "echo first; echo the last words >&2; exit 4"]
    terminationMessagePolicy: FallbackToLogsOnError`,

		"pre-stop": `
  terminationGracePeriodSeconds: 10
  containers:
  - name: web
    image: IMAGE
    command: [sh, -c, "trap 'exit 0' TERM; httpd -f -vv -p 84 -h /tmp 2>> /host/pre-stop & while :; do sleep 0.1; done"]
    startupProbe: {tcpSocket: {port: 84}, periodSeconds: 1, failureThreshold: 60}
    lifecycle: {preStop: {httpGet: {port: 84, path: /the-end}}}
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: DIR}}]`,
	},
	steps: []kubeletStep{
		{"containers whose exec and tcp liveness fail are restarted, and no other", kubeletLivenessFails},
		{"startup probes, slow answers and postStart hooks that fail restart, with back-off", kubeletNeverStarts},
		{"a termination message is taken from the log", kubeletMessageFromLog},
		{"a preStop hook by http comes before SIGTERM", kubeletPreStopHTTP},
	},
}

// Sidecars are Kubernetes' own since 1.29.
var kubeletSidecarFamily = kubeletFamily{
	pods: map[string]string{
		"sidecars": `
  terminationGracePeriodSeconds: 10
  initContainers:
  - name: sidecar
    image: IMAGE
    restartPolicy: Always
    command: [sh, -c, "echo sidecar >> /host/sidecars; trap 'echo sidecar ends >> /host/sidecars; exit 0' TERM; touch /tmp/up; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 60}
    volumeMounts: [{name: host, mountPath: /host}]
  - name: second
    image: IMAGE
    command: [sh, -c, "echo init >> /host/sidecars"]
    volumeMounts: [{name: host, mountPath: /host}]
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "echo main >> /host/sidecars; trap 'echo main ends >> /host/sidecars; exit 0' TERM; while :; do sleep 0.1; done"]
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: DIR}}]`,
	},
	steps: []kubeletStep{
		{"sidecars start before and end after the containers, and are restarted alone", kubeletSidecars},
	},
}

// restarted waits for a container's nth restart.
func restarted(t *testing.T, r *kubeletRun, pod, container string, times int) harness.KubeletPod {
	t.Helper()
	return r.WaitPod(t, pod, 2*time.Minute, fmt.Sprintf("container %s to be restarted %d times", container, times), func(p harness.KubeletPod) error {
		if c := p.Container(container); c.RestartCount < times || c.LastState.Terminated == nil {
			return fmt.Errorf("it is %+v", c)
		}
		return nil
	})
}

func kubeletLivenessFails(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "failing")
	r.Shell(t, "failing", "exec", "rm /tmp/healthy")
	r.Shell(t, "failing", "tcp", "kill $(cat /tmp/pid)")
	restarted(t, r, "failing", "exec", 1)
	restarted(t, r, "failing", "tcp", 1)
	pod := r.WaitReady(t, "failing")
	for name, want := range map[string]int{"exec": 1, "tcp": 1, "untouched": 0} {
		if got := pod.Container(name).RestartCount; got != want {
			t.Errorf("container %s was restarted %d times, want %d", name, got, want)
		}
	}
}

func kubeletNeverStarts(t *testing.T, r *kubeletRun) {
	for _, name := range []string{"startup", "slow", "hook"} {
		pod := restarted(t, r, "never-starts", name, 1)
		if c := pod.Container(name); c.Ready && name != "slow" {
			t.Errorf("container %s is ready: %+v", name, c)
		}
	}
	r.WaitPod(t, "never-starts", 2*time.Minute, "its hook to be named, and its restarts to be put off", func(p harness.KubeletPod) error {
		if c := p.Container("logs"); c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" {
			return fmt.Errorf("container logs is %+v", c.State)
		}
		return nil
	})
}

func kubeletMessageFromLog(t *testing.T, r *kubeletRun) {
	pod := restarted(t, r, "never-starts", "logs", 1)
	if end := pod.Container("logs").LastState.Terminated; end.ExitCode != 4 || end.Message != "first\nthe last words\n" && end.Message != "the last words\nfirst\n" {
		t.Errorf("it ended so: %+v", end) // the order of two streams is nobody's
	}
}

func kubeletSidecars(t *testing.T, r *kubeletRun) {
	before := r.WaitReady(t, "sidecars")
	file := filepath.Join(r.host, "sidecars")
	harness.Eventually(t, 20*time.Second, "the container's first words", func() error { // it is ready before its first command
		got, err := os.ReadFile(file)
		if err == nil && string(got) != "sidecar\ninit\nmain\n" {
			err = fmt.Errorf("%s has %q", file, got)
		}
		return err
	})
	// The end of the first process takes the others of its namespace along, this one too if it is still there.
	err := r.Exec(ctx(t), "sidecars", "sidecar", harness.Streams{Stdout: io.Discard}, "sh", "-c", "kill 1")
	if err != nil && err != harness.ExitError(137) {
		t.Fatal(err)
	}
	r.WaitPod(t, "sidecars", time.Minute, "its sidecar to be restarted", func(p harness.KubeletPod) error {
		if c := p.Container("sidecar"); c.RestartCount != 1 || c.State.Running == nil || !p.Ready() {
			return fmt.Errorf("it is %+v", c)
		}
		return nil
	})
	if after := r.WaitReady(t, "sidecars"); after.Container("main").ContainerID != before.Container("main").ContainerID {
		t.Error("the container beside the sidecar was restarted too")
	}
	wantFile(t, file, "sidecar\ninit\nmain\nsidecar ends\nsidecar\n")
	r.Delete(t, "sidecars")
	waitEnded(t, r.Kubelet, "sidecars", time.Minute)
	wantFile(t, file, "sidecar\ninit\nmain\nsidecar ends\nsidecar\nmain ends\nsidecar ends\n")
}

func kubeletPreStopHTTP(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "pre-stop")
	r.Delete(t, "pre-stop")
	waitEnded(t, r.Kubelet, "pre-stop", time.Minute)
	data, err := os.ReadFile(filepath.Join(r.host, "pre-stop"))
	if err == nil && !strings.Contains(string(data), "/the-end") {
		err = errors.New("nobody asked for the page")
	}
	if err != nil {
		t.Errorf("%v: %q", err, data)
	}
}
