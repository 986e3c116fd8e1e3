package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

func TestMain(m *testing.M) { harness.Main(m) }

// node is the shared node, with the busybox image, checked for leaks, but of the kinds in except, at the end of the test.
func node(t *testing.T, except ...string) *harness.Node {
	t.Helper()
	n := harness.Shared(t)
	for _, image := range []string{harness.Busybox, harness.Web} {
		n.Pull(t, image)
	}
	warmUp(t, n)
	from := n.Shim.LogSize()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log of this test:\n%s", n.Shim.LogFrom(from))
		}
	})
	n.NoLeaks(t, except...)
	return n
}

var warm = map[*harness.Node]bool{}

// warmUp runs one pod: bridges, plugin chains, the pause image and cgroup parents then are there for good.
func warmUp(t *testing.T, n *harness.Node) {
	t.Helper()
	if warm[n] {
		return
	}
	warm[n] = true
	pod := n.RunPod(t, "warm-up", hostPort(18999, 80))
	pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"true"}).WaitExit()
	pod.Remove()
	n.RunPod(t, "warm-up-host", onHostNetwork).Remove()                // dockerd keeps a mount of the host's namespace
	n.RunPod(t, "warm-up-pids", func(c *runtimeapi.PodSandboxConfig) { // the native engine keeps the root of its pause process
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}).Remove()
}

func onHostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Hostname, c.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
}

// runtimeName is what the kubelet writes into the ids of containers.
func runtimeName() string {
	if harness.Native() {
		return "crishim"
	}
	return "docker"
}

// ctx bounds one call.
func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return c
}

// wantCode checks the gRPC code of a call's error.
func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := harness.Code(err); got != want {
		t.Errorf("%s: %v (%v), want %v", what, err, got, want)
	}
}

// httpGet gets a page, trying until the server listens.
func httpGet(t *testing.T, address string) string {
	t.Helper()
	var body string
	harness.Eventually(t, 15*time.Second, "http://"+address, func() (err error) {
		body, err = tryGet(address)
		return err
	})
	return body
}

func tryGet(address string) (string, error) {
	client := http.Client{Timeout: rowsize.Of(10*time.Second, 2*time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	reply, err := client.Get("http://" + address)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	return string(body), err
}

// refused says that nobody listens at an address.
func refused(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return true
	}
	_ = conn.Close()
	return false
}

// hostPort maps a port of the host to one of the pod.
func hostPort(host, container int32) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{Protocol: runtimeapi.Protocol_TCP, HostPort: host, ContainerPort: container})
	}
}

// forever is a command that runs until it is stopped, and ends at SIGTERM.
var forever = []string{"/bin/testserver", "on-term", "0"}
