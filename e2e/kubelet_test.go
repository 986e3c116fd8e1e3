package e2e

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// kubeletPods are the manifests of the pods of TestKubelet, which all run at the same time. IMAGE is the busybox image, DIR a
// folder of the host, LINES how much the chatty one writes.
var kubeletPods = map[string]string{
	"web": `
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: IMAGE, command: [sh, -c, "echo one > /data/index.html"], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: second, image: IMAGE, command: [sh, -c, "cat /data/index.html && echo two >> /data/index.html"], volumeMounts: [{name: data, mountPath: /data}]}
  containers:
  - name: web
    image: IMAGE
    command: [httpd, -f, -p, "80", -h, /data]
    ports: [{containerPort: 80, hostPort: 18180}]
    startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 60}
    readinessProbe: {httpGet: {port: 80, path: /}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, -e, /data/index.html]}, periodSeconds: 5, timeoutSeconds: 20}
    env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]`,

	"probes": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: ready
    image: IMAGE
    command: [testserver, on-term, "0"]
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
  - name: live
    image: IMAGE
    command: [sh, -c, "echo ok > /tmp/healthy; exec httpd -f -p 81 -h /tmp"]
    livenessProbe: {httpGet: {port: 81, path: /healthy}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1, initialDelaySeconds: 2}
  - name: hangs
    image: IMAGE
    command: [testserver, on-term, "0"]
    startupProbe: {exec: {command: [sh, -c, "sleep 4321 & sleep 1234"]}, periodSeconds: 2, timeoutSeconds: 1, failureThreshold: 1000}`,

	"crash": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: crash
    image: IMAGE
    command: [sh, -c, "echo about to fail; echo the reason > /dev/termination-log; exit 3"]
  - name: oom
    image: IMAGE
    command: [testserver, alloc, "200"]
    resources: {limits: {memory: 32Mi}}`,

	"once": `
  restartPolicy: Never
  containers:
  - {name: fine, image: IMAGE, command: [sh, -c, "echo done"]}
  - {name: pulled, image: IMAGE, imagePullPolicy: Always, command: ["true"]}`,

	"volumes": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: IMAGE
    command: [testserver, on-term, "0"]
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo started > /host/post-start"]}}}
    volumeMounts:
    - {name: host, mountPath: /host}
    - {name: host, mountPath: /sub, subPath: sub/dir}
    - {name: host, mountPath: /read-only, readOnly: true}
    - {name: memory, mountPath: /memory}
    - {name: scratch, mountPath: /scratch}
  volumes:
  - {name: host, hostPath: {path: DIR, type: Directory}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: scratch, emptyDir: {}}`,

	"chatty": `
  terminationGracePeriodSeconds: 1
  containers:
  - {name: slow, image: IMAGE, command: [testserver, log, "4"]}
  - name: chatty
    image: IMAGE
    command: [sh, -c, "testserver log 300 LINES 100; exec testserver on-term 0"]`,

	"graceful": `
  terminationGracePeriodSeconds: 20
  containers:
  - name: graceful
    image: IMAGE
    command: [sh, -c, "trap 'echo term >> /host/end; exit 0' TERM; echo ready; while :; do sleep 0.1; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "sleep 1; echo pre-stop >> /host/end"]}}}
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: DIR}}]`,

	"stubborn": `
  terminationGracePeriodSeconds: 2
  containers:
  - {name: stubborn, image: IMAGE, command: [testserver, ignore-term]}`,
}

// chattyLines fill several log files of the size that the harness's kubelet allows, and fewer than it keeps.
const chattyLines = 6000

// kubeletCore are the steps of TestKubelet, in order.
var kubeletCore = []struct {
	name string
	run  func(*testing.T, *harness.Node, *harness.Kubelet, string)
}{
	{"init containers prepare what a web server shows on the pod's address and the host's port", kubeletServes},
	{"readiness and liveness follow the probes", kubeletProbes},
	{"a probe that times out leaves no process", kubeletProbeTimeout},
	{"a container that crashes is restarted, with its message and log kept", kubeletCrash},
	{"the OOM killer is named", kubeletOOM},
	{"a pod of commands succeeds", kubeletSucceeds},
	{"volumes are mounted as the pod says", kubeletVolumes},
	{"exec, run and port-forward reach the containers", kubeletStreams},
	{"logs are returned by number of lines, and as they are written", kubeletLogs},
	{"rotated logs have every line", kubeletRotation},
	{"statistics and metrics name processor, memory, files and network", kubeletStats},
	{"a kubelet that restarts finds its containers", kubeletRestarts},
	{"a shim killed and restarted keeps the kubelet's containers", kubeletShimKilled},
	{"a deleted pod ends in order, its preStop hook first", kubeletGraceful},
	{"a pod that ignores SIGTERM is killed after its grace period", kubeletStubborn},
	{"a changed manifest is a new pod", kubeletChange},
}

// TestKubelet runs static pods by a real kubelet: what it sees through the shim, and what the world sees of the pods. The pods
// are started together and the steps follow one another, as a node's life does. What else is run by a kubelet, and where,
// stands in kubelet_scenarios_test.go.
func TestKubelet(t *testing.T) {
	recordKubelet(t, harness.KubeletCurrent, len(kubeletCore))
	n := node(t)
	host := t.TempDir()
	k := harness.StartKubelet(t, n, harness.KubeletOptions{Config: map[string]any{
		"featureGates": map[string]any{"PodAndContainerStatsFromCRI": true}, // else only containerd's and CRI-O's pods have figures
	}})
	runKubeletCore(t, n, k, host)
}

// runKubeletCore starts the pods of the core and takes its steps, but those named.
func runKubeletCore(t *testing.T, n *harness.Node, k *harness.Kubelet, host string, without ...string) {
	t.Helper()
	for name, spec := range kubeletPods {
		k.Apply(t, name, podManifest(n, host, name, spec))
	}
	for _, step := range kubeletCore {
		if slices.Contains(without, step.name) {
			continue
		}
		if !t.Run(step.name, func(t *testing.T) { step.run(t, n, k, host) }) && !k.Running() {
			t.Fatal("the kubelet ended")
		}
	}
}

// podManifest is a static pod of one of the specs above.
func podManifest(n *harness.Node, host, name, spec string) string {
	spec = strings.NewReplacer("IMAGE", n.Registry.Ref(harness.Busybox), "DIR", host, "LINES", fmt.Sprint(chattyLines), "REGISTRY", n.Registry.Host, "FILES", n.Registry.Ref(harness.VolumeFiles)).Replace(spec)
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:%s\n", name, spec)
}

func kubeletServes(t *testing.T, n *harness.Node, k *harness.Kubelet, _ string) {
	pod := k.WaitReady(t, "web")
	if !slices.Contains(n.CNI.Addresses(), pod.Status.PodIP) {
		t.Errorf("the pod's address is %q; the network gave out %v", pod.Status.PodIP, n.CNI.Addresses())
	}
	for _, address := range []string{net.JoinHostPort(pod.Status.PodIP, "80"), n.CNI.Gateway + ":18180"} {
		if body := httpGet(t, address); body != "one\ntwo\n" {
			t.Errorf("%s says %q", address, body)
		}
	}
	for _, name := range []string{"first", "second"} {
		if end := pod.Container(name).State.Terminated; end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
			t.Errorf("init container %s ended so: %+v", name, end)
		}
	}
	if got := k.Logs(t, "web", "second"); got != "one\n" {
		t.Errorf("the log of the second init container is %q", got)
	}
	if got := k.Shell(t, "web", "web", "echo $POD_IP; cat /etc/resolv.conf"); !strings.HasPrefix(got, pod.Status.PodIP+"\n") || !strings.Contains(got, "nameserver 192.0.2.53") {
		t.Errorf("the container's POD_IP and resolver are %q", got)
	}
}

func kubeletProbes(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	ready := func(want bool) func(harness.KubeletPod) error {
		return func(p harness.KubeletPod) error {
			if c := p.Container("ready"); c.State.Running == nil || c.Ready != want {
				return fmt.Errorf("container ready has ready=%v", c.Ready)
			}
			return nil
		}
	}
	pod := k.WaitPod(t, "probes", time.Minute, "to run", ready(false))
	k.Shell(t, "probes", "ready", "touch /tmp/ready")
	k.WaitPod(t, "probes", 20*time.Second, "to be ready by its exec probe", ready(true))
	k.Shell(t, "probes", "ready", "rm /tmp/ready")
	k.WaitPod(t, "probes", 20*time.Second, "not to be ready any more", ready(false))

	before := pod.Container("live")
	if before.RestartCount != 0 || before.State.Running == nil {
		t.Errorf("container live before its probe fails: %+v", before)
	}
	k.Shell(t, "probes", "live", "rm /tmp/healthy")
	pod = k.WaitPod(t, "probes", time.Minute, "its container to be restarted by liveness", func(p harness.KubeletPod) error {
		if c := p.Container("live"); c.RestartCount != 1 || c.State.Running == nil {
			return fmt.Errorf("container live is %+v", c)
		}
		return nil
	})
	if pod.Container("live").ContainerID == before.ContainerID {
		t.Error("a restart is to be a new container")
	}
	if pod.Container("ready").RestartCount != 0 {
		t.Error("the container beside it was restarted too")
	}
}

func kubeletProbeTimeout(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	k.WaitPod(t, "probes", time.Minute, "its startup probe to time out", func(p harness.KubeletPod) error {
		if c := p.Container("hangs"); c.State.Running == nil || c.Started == nil || *c.Started || c.RestartCount != 0 {
			return fmt.Errorf("container hangs is %+v", c)
		}
		if failed := series(k.Get(t, "/metrics/probes"), "prober_probe_total", `pod="probes-e2e"`, `container="hangs"`, `probe_type="Startup"`, `result="failed"`); failed < 3 {
			return fmt.Errorf("its probe failed %v times", failed)
		}
		return nil
	})
	if got := series(k.Get(t, "/metrics/probes"), "prober_probe_total", `pod="probes-e2e"`, `container="hangs"`, `probe_type="Startup"`, `result="successful"`); got > 0 {
		t.Errorf("its probe, which takes %v times as long as it may, succeeded %v times", 1234, got)
	}
	// One probe may be under way; those before it are over.
	if ps := k.Shell(t, "probes", "hangs", "ps"); strings.Count(ps, "sleep 1234") > 2 || strings.Count(ps, "sleep 4321") > 2 {
		t.Errorf("processes of probes that timed out are left:\n%s", ps)
	}
}

func kubeletCrash(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	pod := k.WaitPod(t, "crash", 90*time.Second, "to crash twice", func(p harness.KubeletPod) error {
		if c := p.Container("crash"); c.RestartCount < 1 || c.LastState.Terminated == nil {
			return fmt.Errorf("%d restarts", c.RestartCount)
		}
		return nil
	})
	if end := pod.Container("crash").LastState.Terminated; end.ExitCode != 3 || end.Reason != "Error" || end.Message != "the reason\n" {
		t.Errorf("it ended so: %+v", end)
	}
	// The kubelet may just have removed the one that it takes for the one before, as there is a newer one.
	harness.Eventually(t, 30*time.Second, "the log of the one before", func() error {
		if got := k.Logs(t, "crash", "crash", "previous=true"); got != "about to fail\n" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

func kubeletOOM(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	pod := k.WaitPod(t, "crash", 90*time.Second, "its other container to be killed", func(p harness.KubeletPod) error {
		if c := p.Container("oom"); c.LastState.Terminated == nil {
			return fmt.Errorf("container oom is %+v", c)
		}
		return nil
	})
	if end := pod.Container("oom").LastState.Terminated; end.ExitCode != 137 || end.Reason != "OOMKilled" {
		t.Errorf("it ended so: %+v", end)
	}
}

func kubeletSucceeds(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	pod := k.WaitPod(t, "once", time.Minute, "to succeed", func(p harness.KubeletPod) error {
		if p.Status.Phase != "Succeeded" {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
	for _, c := range pod.Status.ContainerStatuses {
		if c.RestartCount != 0 || c.State.Terminated == nil || c.State.Terminated.Reason != "Completed" || c.ImageID == "" {
			t.Errorf("container %s: %+v", c.Name, c)
		}
	}
	if got := k.Logs(t, "once", "fine"); got != "done\n" {
		t.Errorf("the log of an ended container is %q", got)
	}
}

func kubeletVolumes(t *testing.T, _ *harness.Node, k *harness.Kubelet, host string) {
	k.WaitReady(t, "volumes")
	wantFile(t, filepath.Join(host, "post-start"), "started\n")
	k.Shell(t, "volumes", "c", "echo by the container > /host/file; echo below > /sub/file; echo kept > /scratch/file")
	wantFile(t, filepath.Join(host, "file"), "by the container\n")
	wantFile(t, filepath.Join(host, "sub", "dir", "file"), "below\n")
	if got := k.Shell(t, "volumes", "c", "cat /read-only/file; echo x 2>/dev/null > /read-only/file || echo refused"); !strings.Contains(got, "by the container\nrefused\n") {
		t.Errorf("the read-only mount says %q", got)
	}
	if got := k.Shell(t, "volumes", "c", "grep ' /memory ' /proc/mounts; df -k /memory | tail -1"); !strings.HasPrefix(got, "tmpfs ") || !strings.Contains(got, " 1024 ") {
		t.Errorf("the volume in memory is %q, want a tmpfs of 1 MiB", got)
	}
}

func wantFile(t *testing.T, file, want string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
	} else if string(got) != want {
		t.Errorf("%s has %q, want %q", file, got, want)
	}
}

func kubeletStreams(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	k.WaitReady(t, "web")
	var stdout, stderr harness.Buffer
	streams := harness.Streams{Stdin: strings.NewReader("typed\n"), Stdout: &stdout, Stderr: &stderr}
	err := k.Exec(ctx(t), "web", "web", streams, "sh", "-c", "read x; echo got $x; echo err >&2; exit 9")
	if err != harness.ExitError(9) {
		t.Errorf("error %v, want exit status 9", err)
	}
	if stdout.String() != "got typed\n" || stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
	var terminal harness.Buffer
	streams = harness.Streams{Stdout: &terminal, TTY: true, Resize: harness.TerminalSize{Width: 123, Height: 45}}
	if err := k.Exec(ctx(t), "web", "web", streams, "sh", "-c", "while [ \"$(stty size)\" != '45 123' ]; do sleep 0.1; done; tty"); err != nil {
		t.Errorf("exec with a terminal: %v", err)
	}
	if !strings.Contains(terminal.String(), "/dev/pts/0\r\n") {
		t.Errorf("the terminal is %q", terminal.String())
	}

	if got, err := k.Run("web", "web", "cat", "/data/index.html"); err != nil || got != "one\ntwo\n" {
		t.Errorf("/run returns %q, %v", got, err)
	}
	if _, err := k.Run("web", "web", "false"); err == nil {
		t.Error("/run of a command that fails is no error")
	}

	forward, err := k.PortForward("web", 80)
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	defer forward.End()
	if _, err := io.WriteString(forward, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	reply, err := io.ReadAll(forward)
	if err != nil || !strings.HasSuffix(string(reply), "one\ntwo\n") {
		t.Errorf("through the port-forward comes %q, %v", reply, err)
	}
	nobody, err := k.PortForward("web", 4321)
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	defer nobody.End()
	if err := nobody.Err(); err == nil {
		t.Error("a port-forward to a port where nobody listens is no error")
	}
}

func kubeletLogs(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	k.WaitReady(t, "chatty")
	follow := k.FollowLogs(t, "chatty", "slow")
	defer follow.Close()
	already := strings.Count(k.Logs(t, "chatty", "slow"), "\n")
	lines := bufio.NewScanner(follow)
	for i := range already + 5 {
		if want := fmt.Sprintf("line %d ", i); !lines.Scan() || lines.Text() != want {
			t.Fatalf("line %d that follows is %q, %v", i, lines.Text(), lines.Err())
		}
	}

	tail := strings.Split(strings.TrimSuffix(k.Logs(t, "chatty", "slow", "tailLines=3", "timestamps=true"), "\n"), "\n")
	if len(tail) != 3 {
		t.Fatalf("the last three lines are %q", tail)
	}
	for _, line := range tail {
		stamp, text, _ := strings.Cut(line, " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err != nil || time.Since(at) > time.Hour || !strings.HasPrefix(text, "line ") {
			t.Errorf("a line with its time is %q", line)
		}
	}
}

func kubeletRotation(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	pod := k.WaitReady(t, "chatty")
	dir := filepath.Join(k.PodLogs, "default_"+pod.Metadata.Name+"_"+pod.Metadata.UID, "chatty")
	last := fmt.Sprintf("line %d ", chattyLines-1)
	var lines []string
	harness.Eventually(t, time.Minute, "the last line of a log that is rotated", func() (err error) {
		if lines, err = rotatedLog(dir); err != nil {
			return err
		}
		if i := len(lines) - 2; i < 0 || !strings.HasPrefix(lines[i], last) || lines[i+1] != "ready" {
			return fmt.Errorf("%d lines, the last are %.90q", len(lines), lines[max(0, len(lines)-2):])
		}
		return nil
	})
	if files, _ := filepath.Glob(filepath.Join(dir, "0.log.*")); len(files) == 0 { // how often it looks differs between kubelets
		t.Error("the kubelet did not rotate the log")
	}
	for i, line := range lines[:len(lines)-1] {
		if want := fmt.Sprintf("line %d ", i); !strings.HasPrefix(line, want) {
			t.Fatalf("line %d of the log is %.40q: a line was lost, doubled or torn", i, line)
		}
	}
}

// rotatedLog is the text of a container's CRI log files, those that the kubelet compressed among them, oldest first.
func rotatedLog(dir string) ([]string, error) {
	rotated, err := filepath.Glob(filepath.Join(dir, "0.log.*"))
	if err != nil {
		return nil, err
	}
	slices.Sort(rotated) // the rest of the name is a time
	var lines []string
	for _, file := range append(rotated, filepath.Join(dir, "0.log")) {
		data, err := readMaybeCompressed(file)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(data) {
			fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(fields) < 4 || fields[2] != "F" {
				return nil, fmt.Errorf("%s has %q", file, line)
			}
			lines = append(lines, fields[3])
		}
	}
	return lines, nil
}

func readMaybeCompressed(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	var from io.Reader = file
	if strings.HasSuffix(name, ".gz") {
		if from, err = gzip.NewReader(file); err != nil {
			return "", err
		}
	}
	data, err := io.ReadAll(from)
	return string(data), err
}

func kubeletStats(t *testing.T, _ *harness.Node, k *harness.Kubelet, _ string) {
	pod := k.WaitReady(t, "web")
	for range 20 {
		httpGet(t, net.JoinHostPort(pod.Status.PodIP, "80"))
	}
	harness.Eventually(t, 30*time.Second, "the pod's figures", func() error {
		stats, err := k.StatsSummary("web")
		if err != nil {
			return err
		}
		if stats.CPU.UsageCoreNanoSeconds == 0 || stats.Memory.WorkingSetBytes == 0 || stats.Network.RxBytes < 1000 || stats.Network.TxBytes < 1000 {
			return fmt.Errorf("of the pod: %+v", stats)
		}
		if len(stats.Containers) != 1 || stats.Containers[0].Name != "web" {
			return fmt.Errorf("containers: %+v", stats.Containers)
		}
		c := stats.Containers[0]
		if c.CPU.UsageCoreNanoSeconds == 0 || c.Memory.WorkingSetBytes == 0 || c.RootFS.UsedBytes == nil || c.Logs.UsedBytes == nil {
			return fmt.Errorf("of the container: %+v", c)
		}
		return nil
	})
	// What a kubelet's own cAdvisor says of containerd's pods, and of nobody else's, comes from the CRI.
	harness.Eventually(t, 30*time.Second, "the pod's metrics", func() error {
		metrics := k.Get(t, "/metrics/cadvisor")
		if got := series(metrics, "container_cpu_usage_seconds_total", `namespace="default"`, `pod="web-e2e"`, `container="web"`); got < 0 { // whole seconds: CRI has no other
			return errors.New("container_cpu_usage_seconds_total has no row for the container")
		}
		for name, label := range map[string]string{
			"container_memory_working_set_bytes": `container="web"`, "container_start_time_seconds": `container="web"`,
			"container_network_receive_bytes_total": `interface="eth0"`, "container_network_transmit_bytes_total": `interface="eth0"`,
		} {
			if got := series(metrics, name, `namespace="default"`, `pod="web-e2e"`, label); got <= 0 {
				return fmt.Errorf("%s of the pod is %v", name, got)
			}
		}
		return nil
	})
}

// series is the value of the first row of that name with these labels in metrics of Prometheus's text format; −1 where there is none.
func series(metrics, name string, labels ...string) float64 {
	for line := range strings.Lines(metrics) {
		rest, found := strings.CutPrefix(line, name)
		if !found || rest[0] != ' ' && rest[0] != '{' || slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			continue
		}
		if at := strings.LastIndex(rest, "}"); at >= 0 {
			rest = rest[at+1:]
		}
		if number, err := strconv.ParseFloat(strings.Fields(rest)[0], 64); err == nil { // a time may follow
			return number
		}
	}
	return -1
}

// longLived are the pods whose containers nothing restarts.
var longLived = []string{"web", "volumes", "chatty", "graceful", "stubborn"}

func kubeletRestarts(t *testing.T, n *harness.Node, k *harness.Kubelet, _ string) {
	checkKept(t, n, k, k.Restart)
}

func kubeletShimKilled(t *testing.T, n *harness.Node, k *harness.Kubelet, _ string) {
	checkKept(t, n, k, n.Shim.KillAndRestart)
}

// checkKept checks that what disturb does restarts no container and loses no line of a log (gate SURV), and that the kubelet then
// still works with all of them.
func checkKept(t *testing.T, n *harness.Node, k *harness.Kubelet, disturb func()) {
	t.Helper()
	before := map[string]map[string]string{}
	for _, name := range longLived {
		before[name] = k.WaitReady(t, name).ContainerIDs()
	}
	slow := watch(t, n, k, "chatty", "slow")
	disturb()
	disturbed := time.Now()
	for _, name := range longLived {
		k.WaitReady(t, name)
	}
	// A kubelet that mistook something restarts it in its next look at the pods, which comes every ten seconds.
	harness.Eventually(t, time.Minute, "a round of the kubelet", func() error {
		if time.Since(disturbed) < 15*time.Second {
			return errors.New("not yet")
		}
		return nil
	})
	for _, name := range longLived {
		pod := k.WaitReady(t, name)
		for container, id := range pod.ContainerIDs() {
			if was := before[name][container]; was != id {
				t.Errorf("container %s of pod %s was %s and is %s", container, name, was, id)
			}
		}
	}
	slow.checkSurvived(t)
	web := k.WaitReady(t, "web")
	for _, address := range []string{net.JoinHostPort(web.Status.PodIP, "80"), n.CNI.Gateway + ":18180"} {
		if body := httpGet(t, address); body != "one\ntwo\n" {
			t.Errorf("%s says %q", address, body)
		}
	}
	harness.Eventually(t, time.Minute, "figures of a container's own files", func() error {
		stats, err := k.StatsSummary("volumes")
		if err == nil && (len(stats.Containers) != 1 || stats.Containers[0].RootFS.UsedBytes == nil) {
			err = fmt.Errorf("they are %+v", stats)
		}
		return err
	})
	if got := k.Shell(t, "volumes", "c", "cat /scratch/file"); got != "kept\n" {
		t.Errorf("the volume has %q", got)
	}
}

// waitEnded waits until no sandbox of a pod that was deleted is ready, and returns how long that took.
func waitEnded(t *testing.T, k *harness.Kubelet, name string, limit time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	harness.Eventually(t, limit, "the end of pod "+name, func() error {
		states, err := k.Sandboxes(name)
		if err == nil && slices.Contains(states, runtimeapi.PodSandboxState_SANDBOX_READY) {
			err = fmt.Errorf("its sandboxes are %v", states)
		}
		return err
	})
	return time.Since(began)
}

func kubeletGraceful(t *testing.T, _ *harness.Node, k *harness.Kubelet, host string) {
	k.WaitReady(t, "graceful")
	k.Delete(t, "graceful")
	if took := waitEnded(t, k, "graceful", 40*time.Second); took > 20*time.Second {
		t.Errorf("it took %v: the container ends at SIGTERM", took)
	}
	wantFile(t, filepath.Join(host, "end"), "pre-stop\nterm\n")
}

func kubeletStubborn(t *testing.T, n *harness.Node, k *harness.Kubelet, _ string) {
	_, id, _ := strings.Cut(k.WaitReady(t, "stubborn").Container("stubborn").ContainerID, "://")
	pid := n.HostPID(t, id)
	started := harness.StartTime(pid)
	k.Delete(t, "stubborn")
	if took := waitEnded(t, k, "stubborn", 40*time.Second); took < 2*time.Second || took > 20*time.Second {
		t.Errorf("it took %v, want the grace period of 2 s and a little", took)
	}
	if harness.StartTime(pid) == started {
		t.Errorf("process %d of it still runs", pid)
	}
}

func kubeletChange(t *testing.T, n *harness.Node, k *harness.Kubelet, host string) {
	before := k.WaitReady(t, "web")
	k.Apply(t, "web", podManifest(n, host, "web", strings.ReplaceAll(kubeletPods["web"], "echo two", "echo three")))
	after := k.WaitPod(t, "web", 2*time.Minute, "to be ready in its new form", func(p harness.KubeletPod) error {
		if p.Metadata.UID == before.Metadata.UID || !p.Ready() {
			return errors.New("it is not")
		}
		return nil
	})
	for _, address := range []string{net.JoinHostPort(after.Status.PodIP, "80"), n.CNI.Gateway + ":18180"} {
		if body := httpGet(t, address); body != "one\nthree\n" {
			t.Errorf("%s says %q", address, body)
		}
	}
	k.Delete(t, "web")
	waitEnded(t, k, "web", time.Minute)
	if !refused(n.CNI.Gateway + ":18180") {
		t.Error("the host port of a deleted pod answers")
	}
}
