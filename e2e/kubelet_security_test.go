package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// What a pod's and a container's securityContext become by way of a kubelet.
var kubeletSecurityFamily = kubeletFamily{
	pods: map[string]string{
		"user": `
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsUser: 1234
    runAsGroup: 2345
    supplementalGroups: [3456]
    fsGroup: 4567
    runAsNonRoot: true
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "81"}]
  containers:
  - name: pod
    image: IMAGE
    command: [testserver, on-term, "0"]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  - name: own
    image: IMAGE
    command: [testserver, on-term, "0"]
    securityContext: {runAsUser: 99}
  volumes: [{name: scratch, emptyDir: {}}]`,

		"is-root": `
  containers:
  - name: c
    image: IMAGE
    command: ["true"]
    securityContext: {runAsNonRoot: true}`,

		"rights": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: few
    image: IMAGE
    command: [testserver, on-term, "0"]
    securityContext:
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      seccompProfile: {type: RuntimeDefault}
  - name: unconfined
    image: IMAGE
    command: [testserver, on-term, "0"]
    securityContext: {seccompProfile: {type: Unconfined}}
  - name: localhost
    image: IMAGE
    command: [testserver, on-term, "0"]
    securityContext: {seccompProfile: {type: Localhost, localhostProfile: profiles/no-mkdir.json}}
  - name: privileged
    image: IMAGE
    command: [testserver, on-term, "0"]
    securityContext: {privileged: true}`,

		"host": `
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  hostPID: true
  hostIPC: true
  containers:
  - name: c
    image: IMAGE
    command: [testserver, http, ":18181"]
    readinessProbe: {httpGet: {port: 18181}, periodSeconds: 1}`,

		"shared-pids": `
  terminationGracePeriodSeconds: 1
  shareProcessNamespace: true
  containers:
  - {name: one, image: IMAGE, command: [testserver, on-term, "11"]}
  - {name: two, image: IMAGE, command: [testserver, on-term, "22"]}`,
	},
	steps: []kubeletStep{
		{"users, groups and sysctls are the pod's", kubeletUsers},
		{"a container that must not be root's and is does not start", kubeletIsRoot},
		{"capabilities, seccomp profiles and a read-only root are the container's", kubeletRights},
		{"a pod may be in the host's namespaces", kubeletHostNamespaces},
		{"containers share processes", kubeletSharedPIDs},
	},
}

// Pods have users of their own since Kubernetes 1.33.
var kubeletOwnUsersFamily = kubeletFamily{
	pods: map[string]string{
		"own-users": `
  terminationGracePeriodSeconds: 1
  hostUsers: false
  containers:
  - name: c
    image: IMAGE
    command: [testserver, on-term, "0"]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes: [{name: scratch, emptyDir: {}}]`,
	},
	steps: []kubeletStep{
		{"a pod has users of its own where the engine can", kubeletOwnUsers},
	},
}

// writeSeccompProfile makes a profile that allows all but making folders, where the kubelet looks for it.
func writeSeccompProfile(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "profiles"), 0o755); err != nil {
		t.Fatal(err)
	}
	profile := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(filepath.Join(dir, "profiles", "no-mkdir.json"), []byte(profile), 0o644); err != nil {
		t.Fatal(err)
	}
}

func kubeletUsers(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "user")
	script := "id -u; id -g; for g in $(id -G); do echo $g; done | sort | tr '\\n' ' '"
	if got := r.Shell(t, "user", "pod", script); got != "1234\n2345\n2345 3456 4567 " {
		t.Errorf("user, group and groups are %q", got)
	}
	if got := r.Shell(t, "user", "own", script); got != "99\n2345\n2345 3456 4567 " {
		t.Errorf("of the container with a user of its own: %q", got)
	}
	if got := r.Shell(t, "user", "pod", "echo x > /scratch/file; stat -c %u:%g /scratch/file; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "1234:4567\n81\n" {
		t.Errorf("the owner of a file in the volume, and the sysctl: %q", got)
	}
}

func kubeletIsRoot(t *testing.T, r *kubeletRun) {
	r.WaitPod(t, "is-root", time.Minute, "to be refused", func(p harness.KubeletPod) error {
		if c := p.Container("c"); c.State.Waiting == nil || c.State.Waiting.Reason != "CreateContainerConfigError" {
			return fmt.Errorf("it is %+v", c.State)
		}
		return nil
	})
}

func kubeletRights(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "rights")
	status := "sed -n 's/^\\(CapEff\\|NoNewPrivs\\|Seccomp\\):\\s*//p' /proc/1/status"
	for container, want := range map[string]string{
		"few": "0000000000000400\n1\n2\n", "unconfined": "00000000a80425fb\n0\n0\n", "localhost": "00000000a80425fb\n0\n2\n",
	} {
		if got := r.Shell(t, "rights", container, status); got != want {
			t.Errorf("container %s has capabilities, no_new_privs and seccomp %q, want %q", container, got, want)
		}
	}
	if got := r.Shell(t, "rights", "privileged", status); !strings.HasSuffix(got, "\n0\n0\n") || got == "00000000a80425fb\n0\n0\n" {
		t.Errorf("the privileged one has %q", got)
	}
	for container, want := range map[string]string{"few": "fails", "unconfined": "works", "localhost": "fails", "privileged": "works"} {
		if got := r.Shell(t, "rights", container, "mkdir /folder 2>/dev/null && echo works || echo fails"); got != want+"\n" {
			t.Errorf("making a folder in container %s %s, want %s", container, got, want)
		}
	}
}

func kubeletHostNamespaces(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "host")
	for _, kind := range []string{"net", "pid", "ipc"} {
		want, err := os.Readlink("/proc/thread-self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(r.Shell(t, "host", "c", "readlink /proc/self/ns/"+kind)); got != want {
			t.Errorf("its namespace %s is %s, the host's is %s", kind, got, want)
		}
	}
	if body := httpGet(t, "127.0.0.1:18181"); !strings.HasPrefix(body, "host=") {
		t.Errorf("on the host's network it says %q", body)
	}
	forward, err := r.PortForward("host", 18181)
	if err != nil {
		t.Fatal(err)
	}
	forward.End()
}

func kubeletSharedPIDs(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "shared-pids")
	if ps := r.Shell(t, "shared-pids", "one", "ps"); !strings.Contains(ps, "testserver on-term 22") {
		t.Errorf("container one does not see the process of the other:\n%s", ps)
	}
}

func kubeletOwnUsers(t *testing.T, r *kubeletRun) {
	status, err := r.n.Shim.Runtime.Status(ctx(t), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	can := len(status.RuntimeHandlers) > 0 && status.RuntimeHandlers[0].GetFeatures().GetUserNamespaces()
	if can != harness.Native() {
		t.Fatalf("the handlers of engine %s are %v: the native one can, Docker's cannot", harness.EngineName(t), status.RuntimeHandlers)
	}
	if !can {
		// No pod may run as root of the host instead. What it is refused for is an event, which a kubelet without an API server only logs.
		harness.Eventually(t, time.Minute, "the kubelet to refuse it", func() error {
			log, err := os.ReadFile(r.LogFile)
			if err == nil && !strings.Contains(string(log), "does not support user namespaces") {
				err = errors.New("it says nothing of user namespaces")
			}
			return err
		})
		if sandboxes, err := r.Sandboxes("own-users"); err != nil || len(sandboxes) != 0 {
			t.Errorf("an engine without user namespaces has made %v, %v", sandboxes, err)
		}
		return
	}
	r.WaitReady(t, "own-users")
	if got := strings.Fields(r.Shell(t, "own-users", "c", "cat /proc/self/uid_map")); len(got) != 3 || got[0] != "0" || got[1] == "0" {
		t.Errorf("its users are %v", got)
	}
	if got := r.Shell(t, "own-users", "c", "id -u; echo x > /scratch/file; stat -c %u /scratch/file"); got != "0\n0\n" {
		t.Errorf("its user and the owner of a file in the volume are %q", got)
	}
}
