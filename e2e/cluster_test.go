package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// clusterRun is a control plane, its node, and what its manifests may name.
type clusterRun struct {
	*harness.Cluster
	n       *harness.Node
	kubelet *harness.Kubelet
	host    string
}

// clusterManifests are applied at once; IMAGE and DIR as in podManifest.
const clusterManifests = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: IMAGE
        command: [sh, -c, "echo $VERSION > /tmp/version; exec httpd -f -p 80 -h /tmp"]
        env: [{name: VERSION, value: one}]
        readinessProbe: {httpGet: {port: 80, path: /version}, periodSeconds: 1}
---
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  completions: 3
  parallelism: 3
  template:
    spec:
      restartPolicy: OnFailure
      containers:
      - {name: c, image: IMAGE, command: [sh, -c, "echo done by $HOSTNAME"]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: every}
spec:
  selector: {matchLabels: {app: every}}
  template:
    metadata: {labels: {app: every}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: IMAGE, command: [testserver, log, "1"]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: stateful}
spec:
  serviceName: stateful
  replicas: 2
  selector: {matchLabels: {app: stateful}}
  template:
    metadata: {labels: {app: stateful}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: IMAGE
        command: [sh, -c, "echo started >> /data/$HOSTNAME; exec testserver on-term 0"]
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, hostPath: {path: DIR}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {key: from the config map}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {key: from the secret}
---
apiVersion: v1
kind: Pod
metadata: {name: configured}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: IMAGE
    command: [testserver, on-term, "0"]
    env: [{name: FROM_SECRET, valueFrom: {secretKeyRef: {name: hidden, key: key}}}]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 32Mi}}
    volumeMounts: [{name: settings, mountPath: /settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: shell, image: IMAGE, command: [httpd, -f, -p, "80", -h, /tmp]}
  - {name: pipe, image: IMAGE, stdin: true, command: [sh, -c, "while read x; do echo got $x; done"]}
`

// TestCluster runs a control plane of one node: what people do with a cluster, by kubectl, which reaches containers by WebSocket
// through API server and kubelet. After each step gate SURV holds for the daemon set's pod, which none of them touches.
func TestCluster(t *testing.T) {
	wholeKubelet(t)
	recordKubelet(t, harness.KubeletCurrent, len(clusterSteps))
	n := node(t)
	c := &clusterRun{n: n, host: t.TempDir(), Cluster: harness.StartCluster(t, n)}
	c.kubelet = harness.StartKubelet(t, n, harness.KubeletOptions{Cluster: c.Cluster, Config: map[string]any{
		"featureGates": map[string]any{"PodAndContainerStatsFromCRI": true},
	}})
	c.waitFor(t, "the node to be ready", "True", "get", "node", "e2e", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	c.waitFor(t, "the account of the pods", "default", "get", "serviceaccount", "default", "-o", "jsonpath={.metadata.name}")
	c.apply(t, clusterManifests)
	c.Must(t, "rollout", "status", "daemonset/every", "--timeout=2m")
	witness := &survivor{n: n, name: "every",
		id: func(t *testing.T) string {
			return c.Must(t, "get", "pods", "-l", "app=every", "-o", "jsonpath={.items[*].status.containerStatuses[*].containerID}")
		},
		log: func(t *testing.T) string { return c.Must(t, "logs", "-l", "app=every", "--tail=-1") },
	}
	witness.remember(t)
	for _, step := range clusterSteps {
		t.Run(step.name, func(t *testing.T) {
			step.run(t, c)
			witness.checkSurvived(t)
		})
	}
}

// clusterSteps are taken in order.
var clusterSteps = []struct {
	name string
	run  func(*testing.T, *clusterRun)
}{
	{"the node says what it runs", clusterNode},
	{"a deployment is rolled out, anew, and back", clusterDeployment},
	{"pods reach each other", clusterNetwork},
	{"a job is done", clusterJob},
	{"a daemon set is on the node", clusterDaemonSet},
	{"a stateful set keeps its data", clusterStatefulSet},
	{"a runtime class chooses, or is refused", clusterRuntimeClass},
	{"config maps, secrets and tokens are in the pod", clusterConfiguration},
	{"a pod is resized in place", clusterResize},
	{"kubectl exec, by WebSocket", clusterExec},
	{"kubectl exec with a terminal", clusterTerminal},
	{"kubectl attach and run", clusterAttach},
	{"kubectl cp, both ways", clusterCopy},
	{"kubectl logs, followed", clusterLogs},
	{"kubectl port-forward", clusterForward},
	{"kubectl debug adds a container that sees the others' processes", clusterDebug},
	{"all streams were WebSockets, up to the kubelet", clusterWebSockets},
	{"kubectl top's figures come through the node's proxy", clusterFigures},
	{"kubectl delete", clusterDelete},
}

func (c *clusterRun) apply(t *testing.T, manifest string) {
	t.Helper()
	c.Apply(t, strings.NewReplacer("IMAGE", c.n.Registry.Ref(harness.Busybox), "DIR", c.host).Replace(manifest))
}

// waitFor waits until kubectl prints so.
func (c *clusterRun) waitFor(t *testing.T, what, want string, args ...string) {
	t.Helper()
	harness.Eventually(t, 2*time.Minute, what, func() error {
		got, err := c.Run(t, "", args...)
		if err == nil && strings.TrimSpace(got) != want {
			err = fmt.Errorf("kubectl %s says %q, want %q", strings.Join(args, " "), got, want)
		}
		return err
	})
}

func (c *clusterRun) waitReady(t *testing.T, pod string) {
	t.Helper()
	c.Must(t, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=2m")
}

func clusterNode(t *testing.T, c *clusterRun) {
	got := c.Must(t, "get", "node", "e2e", "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion} {.status.nodeInfo.kubeletVersion} {.spec.podCIDR}")
	fields := strings.Fields(got)
	if len(fields) != 3 || strings.HasSuffix(fields[0], "Unknown") || !strings.HasPrefix(fields[0], runtimeName()+"://") || fields[1] != harness.KubeletCurrent || fields[2] != c.n.CNI.Subnet+".0/24" {
		t.Errorf("runtime, kubelet and addresses are %q", got)
	}
}

func clusterDeployment(t *testing.T, c *clusterRun) {
	versions := func(want string) {
		t.Helper()
		c.Must(t, "rollout", "status", "deployment/web", "--timeout=2m")
		harness.Eventually(t, time.Minute, "the pods of the other version to go", func() error {
			addresses := strings.Fields(c.Must(t, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
			if len(addresses) != 2 {
				return fmt.Errorf("there are pods %v", addresses)
			}
			for _, address := range addresses {
				if body, err := tryGet(address + "/version"); err != nil || body != want+"\n" {
					return fmt.Errorf("%s says %q, %v", address, body, err)
				}
			}
			return nil
		})
	}
	versions("one")
	c.Must(t, "set", "env", "deployment/web", "VERSION=two")
	versions("two")
	c.Must(t, "rollout", "undo", "deployment/web")
	versions("one")
	c.Must(t, "scale", "deployment/web", "--replicas=1")
	c.waitFor(t, "one pod to be left", "1", "get", "pods", "-l", "app=web", "-o", "go-template={{len .items}}") // the other one is gone, not only ending
}

func clusterNetwork(t *testing.T, c *clusterRun) {
	c.waitReady(t, "shell")
	address := strings.Fields(c.Must(t, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))[0]
	if got := c.Must(t, "exec", "shell", "-c", "shell", "--", "wget", "-qO-", "http://"+address+"/version"); got != "one\n" {
		t.Errorf("from another pod it says %q", got)
	}
}

func clusterJob(t *testing.T, c *clusterRun) {
	c.Must(t, "wait", "--for=condition=Complete", "job/job", "--timeout=2m")
	if got := c.Must(t, "logs", "-l", "job-name=job", "--tail=-1"); strings.Count(got, "done by job-") != 3 {
		t.Errorf("the logs are %q", got)
	}
}

func clusterDaemonSet(t *testing.T, c *clusterRun) {
	c.Must(t, "rollout", "status", "daemonset/every", "--timeout=2m")
	c.waitFor(t, "one pod on the one node", "1", "get", "daemonset", "every", "-o", "jsonpath={.status.numberReady}")
}

func clusterStatefulSet(t *testing.T, c *clusterRun) {
	c.Must(t, "rollout", "status", "statefulset/stateful", "--timeout=2m")
	starts := func(pod, want string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, "the data of "+pod, func() error { // it is ready before its first command
			got, err := os.ReadFile(filepath.Join(c.host, pod))
			if err == nil && string(got) != want {
				err = fmt.Errorf("it has %q", got)
			}
			return err
		})
	}
	starts("stateful-0", "started\n")
	uid := func() string {
		return c.Must(t, "get", "pod", "stateful-0", "-o", "jsonpath={.metadata.uid}", "--ignore-not-found")
	}
	before := uid()
	c.Must(t, "delete", "pod", "stateful-0", "--timeout=1m")
	harness.Eventually(t, time.Minute, "the pod of the same name", func() error {
		if now := uid(); now == "" || now == before {
			return errors.New("it is not there")
		}
		return nil
	})
	c.waitReady(t, "stateful-0")
	starts("stateful-0", "started\nstarted\n")
	starts("stateful-1", "started\n")
}

func clusterRuntimeClass(t *testing.T, c *clusterRun) {
	handlers := []string{"nobody"}
	switch {
	case c.n.Shim.Both():
		handlers = append(handlers, "docker", "native")
	case c.n.Docker != nil && canLowerScores(): // else every pod needs the harness's own OCI runtime
		handlers = append(handlers, "runc")
	}
	for _, handler := range handlers {
		users := "hostUsers: true"
		if handler == "native" {
			users = "hostUsers: false" // which Docker cannot
		}
		c.apply(t, fmt.Sprintf(`
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: class-%[1]s}
handler: %[1]s
---
apiVersion: v1
kind: Pod
metadata: {name: of-%[1]s}
spec:
  terminationGracePeriodSeconds: 1
  runtimeClassName: class-%[1]s
  %[2]s
  containers: [{name: c, image: IMAGE, command: [testserver, log, "2"], readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 20}}]
`, handler, users))
	}
	harness.Eventually(t, time.Minute, "the event about a handler that nobody has", func() error {
		events := c.Must(t, "events", "--for=pod/of-nobody")
		if !strings.Contains(events, "FailedCreatePodSandBox") || !strings.Contains(events, "unknown runtime handler") {
			return fmt.Errorf("the events are %q", events)
		}
		return nil
	})
	c.Must(t, "delete", "pod", "of-nobody", "--timeout=1m")
	var both []*survivor
	for _, handler := range handlers[1:] {
		pod := "of-" + handler
		c.waitReady(t, pod)
		if handler == "runc" {
			continue
		}
		s := &survivor{n: c.n, name: pod,
			id: func(t *testing.T) string {
				return c.Must(t, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[*].containerID}")
			},
			log: func(t *testing.T) string { return c.Must(t, "logs", pod) },
		}
		s.remember(t)
		both = append(both, s)
		_, id, _ := strings.Cut(c.Must(t, "get", "pod", "of-"+handler, "-o", "jsonpath={.status.containerStatuses[0].containerID}"), "://")
		ids, err := c.n.Docker.Containers()
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(ids, id) != (handler == "docker") {
			t.Errorf("the container of class %s is %s; the Docker Engine has %v", handler, id, ids)
		}
		if got := c.Must(t, "exec", "of-"+handler, "--", "echo", "there"); got != "there\n" {
			t.Errorf("a command in the pod of class %s says %q", handler, got)
		}
		users := strings.Fields(c.Must(t, "exec", pod, "--", "cat", "/proc/self/uid_map"))
		if own := len(users) == 3 && users[1] != "0"; own != (handler == "native") {
			t.Errorf("the users of the pod of class %s are %v", handler, users)
		}
		harness.Eventually(t, time.Minute, "the figures of the pod of class "+handler, func() error {
			for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes"} {
				if got := series(c.kubelet.Get(t, "/metrics/resource"), name, `pod="`+pod+`"`, `container="c"`); got <= 0 {
					return fmt.Errorf("%s is %v", name, got)
				}
			}
			return nil
		})
	}
	if len(both) > 0 {
		c.n.Shim.KillAndRestart()
	}
	for _, s := range both {
		s.checkSurvived(t)
		c.waitReady(t, s.name)
	}
}

func clusterConfiguration(t *testing.T, c *clusterRun) {
	c.waitReady(t, "configured")
	got := c.Must(t, "exec", "configured", "--", "sh", "-c", "cat /settings/key; echo; echo $FROM_SECRET; ls /var/run/secrets/kubernetes.io/serviceaccount")
	if got != "from the config map\nfrom the secret\nca.crt\nnamespace\ntoken\n" {
		t.Errorf("the pod has %q", got)
	}
}

func clusterResize(t *testing.T, c *clusterRun) {
	c.waitReady(t, "configured")
	id := c.Must(t, "get", "pod", "configured", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	c.Must(t, "patch", "pod", "configured", "--subresource=resize", "-p", `{"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "300m", "memory": "64Mi"}}}]}}`)
	c.waitFor(t, "the new limits", "300m 64Mi", "get", "pod", "configured", "-o", "jsonpath={.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].resources.limits.memory}")
	script := "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null; :"
	if got := c.Must(t, "exec", "configured", "--", "sh", "-c", script); got != "67108864\n30000\n" && got != "67108864\n30000 100000\n" {
		t.Errorf("its cgroup has %q", got)
	}
	if now := c.Must(t, "get", "pod", "configured", "-o", "jsonpath={.status.containerStatuses[0].containerID}"); now != id {
		t.Errorf("it was container %s and is %s", id, now)
	}
}

func clusterExec(t *testing.T, c *clusterRun) {
	c.waitReady(t, "shell")
	_, err := c.Run(t, "", "exec", "shell", "-c", "shell", "--", "sh", "-c", "exit 7")
	if code := harness.ExitError(0); !errors.As(err, &code) || code != 7 {
		t.Errorf("error %v, want exit status 7", err)
	}
	input := strings.Repeat("0123456789abcde\n", 3<<20/16)
	if got, err := c.Run(t, input, "exec", "-i", "shell", "-c", "shell", "--", "cat"); err != nil || got != input {
		t.Errorf("of 3 MiB through cat come %d bytes, the same: %v, error %v", len(got), got == input, err)
	}
	// kubectl falls back to SPDY where a WebSocket fails, and says so when it is talkative.
	command := c.Kubectl(ctx(t), "exec", "-v=6", "shell", "-c", "shell", "--", "echo", "there")
	out, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "there\n") || strings.Contains(strings.ToLower(string(out)), "fallback") {
		t.Errorf("%v: %s", err, out)
	}
}

// pty is a command that makes kubectl believe in a terminal.
func (c *clusterRun) pty(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	kubectl := c.Kubectl(ctx(t), args...)
	quoted := make([]string, len(kubectl.Args))
	for i, arg := range kubectl.Args {
		quoted[i] = "'" + arg + "'"
	}
	quoted[0] = kubectl.Path
	command := exec.CommandContext(ctx(t), "script", "-qec", "stty cols 91 rows 33; "+strings.Join(quoted, " "), "/dev/null")
	command.Env, command.Stdin = kubectl.Env, strings.NewReader(stdin)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return string(out)
}

func clusterTerminal(t *testing.T, c *clusterRun) {
	got := c.pty(t, "", "exec", "-it", "shell", "-c", "shell", "--", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do [ \"$(stty size)\" = \"33 91\" ] && break; sleep 1; done; stty size; tty")
	if !strings.Contains(got, "33 91\r\n/dev/pts/") {
		t.Errorf("the terminal shows %q", got)
	}
}

func clusterAttach(t *testing.T, c *clusterRun) {
	c.waitReady(t, "shell")
	attached, cancel := context.WithCancel(ctx(t))
	defer cancel()
	command := c.Kubectl(attached, "attach", "-i", "shell", "-c", "pipe")
	in, typed := io.Pipe()
	var out harness.Buffer
	command.Stdin, command.Stdout = in, &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(typed, "by attach\n")
	out.WaitFor(t, "got by attach\n")
	cancel()
	_ = typed.Close()
	_ = command.Wait() // it was killed
	image := c.n.Registry.Ref(harness.Busybox)
	got, err := c.Run(t, "typed\n", "run", "interactive", "-i", "--rm", "--restart=Never", "--quiet", "--image="+image, "--", "sh", "-c", "read x; echo heard $x")
	if err != nil || !strings.Contains(got, "heard typed\n") {
		t.Errorf("kubectl run -i --rm says %q, %v", got, err)
	}
	if left := c.Must(t, "get", "pod", "interactive", "--ignore-not-found"); left != "" {
		t.Errorf("it is left: %s", left)
	}
}

func clusterCopy(t *testing.T, c *clusterRun) {
	c.waitReady(t, "shell")
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	content := bytes.Repeat([]byte("copied"), 50000)
	if err := os.WriteFile(from, content, 0o644); err != nil {
		t.Fatal(err)
	}
	c.Must(t, "cp", from, "shell:/tmp/copy", "-c", "shell")
	c.Must(t, "cp", "shell:/tmp/copy", to, "-c", "shell")
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back, error %v", len(got), err)
	}
}

func clusterLogs(t *testing.T, c *clusterRun) {
	image := c.n.Registry.Ref(harness.Busybox)
	c.Must(t, "run", "chatty", "--image="+image, "--restart=Never", "--", "testserver", "log", "100", "300")
	c.Must(t, "wait", "--for=jsonpath={.status.containerStatuses[0].started}=true", "pod/chatty", "--timeout=1m")
	got := c.Must(t, "logs", "-f", "chatty")
	if lines := strings.Split(got, "\n"); len(lines) != 301 || !strings.HasPrefix(lines[0], "line 0 ") || !strings.HasPrefix(lines[299], "line 299 ") {
		t.Errorf("%d lines follow, the first is %q", len(lines), lines[0])
	}
}

func clusterForward(t *testing.T, c *clusterRun) {
	c.waitReady(t, "shell")
	c.Must(t, "exec", "shell", "-c", "shell", "--", "sh", "-c", "echo forwarded > /tmp/page")
	forwarding, cancel := context.WithCancel(ctx(t))
	defer cancel()
	command := c.Kubectl(forwarding, "port-forward", "--address=127.0.0.1", "pod/shell", ":80")
	var out harness.Buffer
	command.Stdout, command.Stderr = &out, &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	out.WaitFor(t, " -> 80\n")
	_, rest, _ := strings.Cut(out.String(), "Forwarding from ")
	address, _, _ := strings.Cut(rest, " ")
	for range 3 {
		if body := httpGet(t, address+"/page"); body != "forwarded\n" {
			t.Errorf("through it comes %q; it says %s", body, out.String())
		}
	}
	cancel()
	_ = command.Wait() // it was killed
}

func clusterDebug(t *testing.T, c *clusterRun) {
	c.waitReady(t, "shell")
	image := c.n.Registry.Ref(harness.Busybox)
	c.Must(t, "debug", "shell", "--image="+image, "--target=shell", "--container=debugger", "--profile=general", "--", "sh", "-c", "ps; exec testserver on-term 0")
	c.waitFor(t, "the ephemeral container to run", "1", "get", "pod", "shell", "-o", "go-template={{range .status.ephemeralContainerStatuses}}{{if .state.running}}1{{end}}{{end}}")
	harness.Eventually(t, 30*time.Second, "what it sees", func() error {
		if got := c.Must(t, "logs", "shell", "-c", "debugger"); !strings.Contains(got, "httpd -f -p 80") {
			return fmt.Errorf("it sees %q", got)
		}
		return nil
	})
	if got := c.Must(t, "exec", "shell", "-c", "debugger", "--", "cat", "/proc/1/root/tmp/page"); got != "forwarded\n" {
		t.Errorf("the target's file has %q", got)
	}
}

// clusterWebSockets checks that nobody fell back to SPDY: neither kubectl, whose requests the kubelet would count among all but not
// among those by WebSocket, nor the API server, which would translate.
func clusterWebSockets(t *testing.T, c *clusterRun) {
	server, kubelet := c.Must(t, "get", "--raw", "/metrics"), c.kubelet.Get(t, "/metrics")
	for subresource, path := range map[string]string{"exec": "exec", "attach": "attach", "portforward": "portForward"} {
		of := `subresource="` + subresource + `"`
		proxied := series(server, "apiserver_websocket_streaming_requests_total", of, `proxy_type="proxied_to_kubelet"`)
		if translated := series(server, "apiserver_websocket_streaming_requests_total", of, `proxy_type="translated_at_apiserver"`); proxied < 1 || translated > 0 {
			t.Errorf("of %s the API server passed on %v WebSockets and translated %v", subresource, proxied, translated)
		}
		all := 0.0
		for _, method := range []string{"GET", "POST"} { // SPDY is POST
			all += max(0, series(kubelet, "kubelet_http_requests_total", `method="`+method+`"`, `path="`+path+`"`))
		}
		if sockets := series(kubelet, "kubelet_websocket_streaming_requests_total", of); sockets != all || sockets < 1 {
			t.Errorf("of %v requests of %s that reached the kubelet %v were WebSockets", all, subresource, sockets)
		}
	}
}

func clusterFigures(t *testing.T, c *clusterRun) {
	harness.Eventually(t, time.Minute, "the figures", func() error {
		got, err := c.Run(t, "", "get", "--raw", "/api/v1/nodes/e2e/proxy/metrics/resource")
		if err == nil && series(got, "container_memory_working_set_bytes", `pod="shell"`, `container="shell"`, `namespace="default"`) <= 0 {
			err = errors.New("the pod is not among them")
		}
		return err
	})
}

func clusterDelete(t *testing.T, c *clusterRun) {
	c.Must(t, "delete", "pod", "shell", "--timeout=1m")
	c.Must(t, "delete", "deployment", "web", "--cascade=foreground", "--timeout=1m")
	if left := c.Must(t, "get", "pods", "-l", "app=web", "-o", "name"); left != "" {
		t.Errorf("pods are left: %s", left)
	}
}
