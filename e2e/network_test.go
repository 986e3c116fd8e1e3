package e2e

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// Rows: S63 (part)
func TestHostPortReachesThePodAndIsFreeAfterwards(t *testing.T) {
	n := node(t)
	for range 2 { // the second pod takes the same port
		pod := n.RunPod(t, "port", hostPort(18082, 80), func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{Protocol: runtimeapi.Protocol_UDP, HostPort: 18083, ContainerPort: 7})
		})
		pod.Run("web", n.Registry.Ref(harness.Web), nil)
		pod.Run("udp", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "udp", ":7"})
		for _, address := range []string{"127.0.0.1:18082", n.CNI.Gateway + ":18082"} {
			if body := httpGet(t, address); body != "host=port path=/\n" {
				t.Errorf("%s says %q", address, body)
			}
		}
		harness.Eventually(t, 10*time.Second, "an echo over UDP", func() error { return udpEcho(n.CNI.Gateway + ":18083") })
		pod.Remove()
		if !refused("127.0.0.1:18082") {
			t.Error("the port is still open")
		}
	}
}

func udpEcho(address string) error {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	back := make([]byte, 16)
	count, err := conn.Read(back)
	if err != nil {
		return err
	}
	if got := string(back[:count]); got != "ping" {
		return fmt.Errorf("%q came back", got)
	}
	return nil
}

func TestPodsReachEachOther(t *testing.T) {
	n := node(t)
	server, client := n.RunPod(t, "server"), n.RunPod(t, "client")
	server.Run("web", n.Registry.Ref(harness.Web), nil)
	ip := server.IP()
	httpGet(t, ip+":80")
	c := client.Run("c", n.Registry.Ref(harness.Busybox), forever)
	if got := c.Output("wget -qO- http://" + ip + "/"); got != "host=server path=/\n" {
		t.Errorf("the other pod says %q", got)
	}
}

func TestDualStackPodHasBothAddresses(t *testing.T) {
	harness.Require(t)
	n := harness.NewNodeOn(t, harness.CNIOptions{DualStack: true}, harness.DockerOptions{}, harness.ShimOptions{})
	pod := n.RunPod(t, "dual")
	network := pod.Status().Network
	if len(network.AdditionalIps) != 1 || !strings.Contains(network.AdditionalIps[0].Ip, ":") || strings.Contains(network.Ip, ":") {
		t.Errorf("addresses %v, want an IPv4 and an IPv6 one", network)
	}
}

// The core on the plugins of Debian's package, which are old.
func TestDebianPlugins(t *testing.T) {
	harness.Require(t)
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		t.Skip("Debian's containernetworking-plugins is not installed: run `make test`")
	}
	n := harness.NewNodeOn(t, harness.CNIOptions{Debian: true}, harness.DockerOptions{}, harness.ShimOptions{})
	pod := n.RunPod(t, "debian", hostPort(18084, 80))
	pod.Run("web", n.Pull(t, harness.Web), nil)
	if body := httpGet(t, "127.0.0.1:18084"); body != "host=debian path=/\n" {
		t.Errorf("the host port says %q", body)
	}
	pod.Remove()
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v were not given back", left)
	}
}

// networkReady is the NetworkReady condition.
func networkReady(t *testing.T, n *harness.Node) *runtimeapi.RuntimeCondition {
	t.Helper()
	reply, err := n.Shim.Runtime.Status(ctx(t), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range reply.Status.Conditions {
		if c.Type == "NetworkReady" {
			return c
		}
	}
	t.Fatal("Status has no NetworkReady")
	return nil
}

// Rows: R39 (part)
func TestNetworkConfigurationComesGoesAndComesBack(t *testing.T) {
	n := ownNode(t, harness.DockerOptions{})
	pod := n.RunPod(t, "before")
	ip := pod.IP()
	if err := os.Remove(n.CNI.ConfFile); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "NetworkReady=false", func() error {
		if c := networkReady(t, n); c.Status || c.Reason == "" || c.Message == "" {
			return fmt.Errorf("condition %v", c)
		}
		return nil
	})
	config := n.PodConfig("without")
	n.PreparePod(t, config)
	if _, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config}); err == nil {
		t.Error("a pod got a network without configuration")
	}
	// A pod of before is detached by what was recorded.
	pod.Remove()
	if left := n.CNI.Addresses(); slices.Contains(left, ip) {
		t.Errorf("address %s was not given back without the configuration", ip)
	}
	if err := os.WriteFile(n.CNI.ConfFile, []byte(`{"cniVersion":`), 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // time to be misled by a torn file
	if c := networkReady(t, n); c.Status {
		t.Error("a torn configuration makes the network ready")
	}
	n.CNI.Write(n.CNI.ConfFile, n.CNI.List(false))
	n.Shim.WaitReady()
	n.RunPod(t, "after").IP()
}

// A configuration that cannot be used, as while an add-on is being upgraded, does not take away the one that could.
func TestUnusableConfigurationLeavesTheLastGoodOne(t *testing.T) {
	n := node(t)
	list := n.CNI.List(false)
	list["plugins"] = append(slices.Clone(list["plugins"].([]any)), map[string]any{"type": "no-such-plugin"})
	n.CNI.Write(n.CNI.ConfFile, list)
	defer n.CNI.Write(n.CNI.ConfFile, n.CNI.List(false))
	time.Sleep(300 * time.Millisecond) // time to notice it
	n.RunPod(t, "last-good").IP()
}

// Rows: R35
func TestFailingPluginLeavesNothingBehind(t *testing.T) {
	n := node(t)
	n.CNI.AddPlugin(t, "failing", `case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","code":100,"msg":"no luck today"}'; exit 1;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
`)
	list := n.CNI.List(false)
	list["plugins"] = append(slices.Clone(list["plugins"].([]any)), map[string]any{"type": "failing"})
	n.CNI.Write(n.CNI.ConfFile, list)
	restore := func() { n.CNI.Write(n.CNI.ConfFile, n.CNI.List(false)) }
	defer restore()
	config := n.PodConfig("fails")
	n.PreparePod(t, config)
	harness.Eventually(t, 10*time.Second, "a pod to be refused", func() error {
		reply, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			if !strings.Contains(err.Error(), "no luck today") {
				t.Errorf("the error does not say what the plugin said: %v", err)
			}
			return nil
		}
		_, err = n.Shim.Runtime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: reply.PodSandboxId})
		return fmt.Errorf("it ran, removing it: %v", err)
	})
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v stay of a pod that failed", left)
	}
	restore()
	harness.Eventually(t, 10*time.Second, "the same pod to run", func() error {
		_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
		return err
	})
	reply, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "fails"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range reply.Items {
		if _, err := n.Shim.Runtime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			t.Error(err)
		}
	}
}
