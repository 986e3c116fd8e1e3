package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

// versionVerb is what a plugin of a test answers to VERSION.
const versionVerb = `VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0;;`

// withPlugin puts a further plugin at the end of the node's chain for the rest of the test, and waits until it is in use.
// Its script is the cases of ADD and DEL; result passes on what the plugins before gave.
func withPlugin(t *testing.T, n *harness.Node, name, cases string) {
	t.Helper()
	n.CNI.AddPlugin(t, name, `input=$(cat)
result() { printf '%s' "$input" | sed -e 's/.*"prevResult":\({.*}\).*/\1/' -e 's/,"type":"[^"]*"}*$//'; }
case $CNI_COMMAND in
`+versionVerb+cases+"\nesac\n")
	list := n.CNI.List(false)
	list["plugins"] = append(slices.Clone(list["plugins"].([]any)), map[string]any{"type": name})
	n.CNI.Write(n.CNI.ConfFile, list)
	t.Cleanup(func() {
		n.CNI.Write(n.CNI.ConfFile, n.CNI.List(false))
		inUse(t, n, `"type": "bandwidth"`, name)
	})
	inUse(t, n, name, "")
}

// inUse waits until the network configuration that the daemon uses has one text and not the other.
func inUse(t *testing.T, n *harness.Node, has, hasNot string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the network configuration to be in use", func() error {
		asking, cancel := context.WithTimeout(context.Background(), time.Minute) // in a cleanup the test's own has ended
		defer cancel()
		reply, err := n.Shim.Runtime.Status(asking, &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			return err
		}
		config := reply.Info["cniconfig"]
		if !strings.Contains(strings.ReplaceAll(config, " ", ""), strings.ReplaceAll(has, " ", "")) || hasNot != "" && strings.Contains(config, hasNot) {
			return fmt.Errorf("it is %s", config)
		}
		return nil
	})
}

// failsToRun expects that a pod is refused with a text, and returns its configuration.
func failsToRun(t *testing.T, n *harness.Node, name, text string) *runtimeapi.PodSandboxConfig {
	t.Helper()
	config := n.PodConfig(name)
	config.PortMappings = append(config.PortMappings, &runtimeapi.PortMapping{HostPort: 18091, ContainerPort: 80})
	n.PreparePod(t, config)
	reply, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err == nil {
		t.Fatalf("pod %s ran as %s", name, reply.PodSandboxId)
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("pod %s: %v; want %q in it", name, err, text)
	}
	return config
}

// However an ADD fails, nothing of it stays, and the same pod runs once the plugin works.
//
// Rows: R35, R11 (part)
func TestAddsThatFail(t *testing.T) {
	for name, fault := range map[string]struct{ cases, text string }{
		"crashes":        {`ADD) kill -SEGV $$;;`, "segmentation fault"},
		"says nothing":   {`ADD) exit 0;;`, "crooked"},
		"says garbage":   {`ADD) echo '{"cniVersion": "1.0.0", "ips": [';;`, "crooked"},
		"is partly done": {`ADD) ip link add crooked0 type veth peer name crooked1; echo '{"cniVersion":"1.0.0","code":11,"msg":"half done"}'; exit 1;; DEL) ip link del crooked0;;`, "half done"},
	} {
		t.Run(name, func(t *testing.T) {
			n := node(t)
			var config *runtimeapi.PodSandboxConfig
			t.Run("fails", func(t *testing.T) {
				withPlugin(t, n, "crooked", fault.cases)
				config = failsToRun(t, n, "crooked", fault.text)
				if left := n.CNI.Addresses(); len(left) != 0 {
					t.Errorf("addresses %v stay of a pod that failed", left)
				}
			})
			n.RunPodConfig(t, config, "").IP()
		})
	}
}

// An ADD that hangs holds its own pod only, and ends with the plugin.
//
// Rows: R36 (part)
func TestAddThatHangs(t *testing.T) {
	n := node(t)
	started, release := filepath.Join(n.CNI.PluginDir, "started"), filepath.Join(n.CNI.PluginDir, "release")
	pod := n.RunPod(t, "beside")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	withPlugin(t, n, "hanging", fmt.Sprintf(`ADD) echo >>%s; while ! [ -e %s ]; do sleep 0.1; done; echo '{"cniVersion":"1.0.0","code":11,"msg":"hung"}'; exit 1;;`, started, release))
	defer os.Remove(started)
	count := rowsize.Of(2, 20)
	failed := make(chan error, count)
	for i := range count {
		config := n.PodConfig(fmt.Sprintf("hanging-%d", i))
		n.PreparePod(t, config)
		go func() {
			_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
			failed <- err
		}()
	}
	harness.Eventually(t, 20*time.Second, "the plugins to hang", func() error {
		data, err := os.ReadFile(started)
		if n := bytes.Count(data, []byte("\n")); err == nil && n < count {
			err = fmt.Errorf("%d of %d", n, count)
		}
		return err
	})
	n.CNI.Write(n.CNI.ConfFile, n.CNI.List(false))
	inUse(t, n, n.CNI.Network, "hanging")
	if condition := networkReady(t, n); !condition.Status {
		t.Errorf("one hanging pod makes the network not ready: %v", condition)
	}
	listsAreQuick(t, n)
	n.RunPod(t, "another").IP()
	if got := c.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	if err := os.WriteFile(release, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(release)
	for range count {
		if err := <-failed; err == nil || !strings.Contains(err.Error(), "hung") {
			t.Errorf("the pod whose plugin hung: %v", err)
		}
	}
}

// A DEL that keeps failing holds a pod only so long; it is then owed, over a restart of the daemon too, and paid with the
// first try that works.
//
// Rows: R38
func TestOwedDelIsPaid(t *testing.T) {
	n := node(t)
	works := filepath.Join(n.CNI.PluginDir, "works")
	defer os.Remove(works)
	withPlugin(t, n, "debtor", fmt.Sprintf(`ADD) result;; DEL) if [ -e %s ]; then ip link del owed0; exit 0; fi; ip link add owed0 type veth peer name owed1 2>/dev/null; echo '{"cniVersion":"1.0.0","code":11,"msg":"not today"}'; exit 1;;`, works))
	pod := n.RunPod(t, "debtor", hostPort(18092, 80))
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	c.WaitLog("ready")
	tries := 0
	for {
		tries++
		_, err := n.Shim.Runtime.StopPodSandbox(ctx(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID})
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "not today") || tries > 10 {
			t.Fatalf("stopping the pod, try %d: %v", tries, err)
		}
		if n.HostPID(t, c.ID) != 0 {
			t.Error("a DEL that fails keeps the pod's processes running")
		}
	}
	if tries < 2 {
		t.Error("the pod was let go at the first failure")
	}
	pod.Remove()
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("one plugin that fails keeps addresses %v", left)
	}
	n.Shim.KillAndRestart()
	if err := os.WriteFile(works, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "the owed DEL to be paid", func() error {
		left, err := filepath.Glob(filepath.Join(n.Shim.RootDir, "cni-owed", "*"))
		if len(left) > 0 {
			err = fmt.Errorf("%v", left)
		}
		return err
	})
	if _, err := os.Stat("/sys/class/net/owed0"); err == nil {
		t.Error("the DEL is said to be paid and its link is still there")
	}
}

// With the folder of addresses full, pods are refused with a clear error, those that run can go, and all is well afterwards.
//
// Rows: R19 (part), R35 (part)
func TestFullFolderOfAddresses(t *testing.T) {
	n := ownNode(t, harness.DockerOptions{})
	disk := smallDisk(t, n.CNI.DataDir)
	pod := n.RunPod(t, "before")
	disk.Fill()
	config := failsToRun(t, n, "full", "no space left on device")
	listsAreQuick(t, n)
	pod.Remove()
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v are left", left)
	}
	disk.Empty()
	n.RunPodConfig(t, config, "").IP()
}

// Two networks change their files while pods run: each pod is detached from the one that it was attached to.
//
// Rows: R38 (part), R39 (part)
func TestSwappedNetworks(t *testing.T) {
	n := ownNode(t, harness.DockerOptions{})
	second := harness.NewCNI(t, harness.CNIOptions{})
	other := filepath.Join(n.CNI.ConfDir, "05-other.conflist")
	a := n.RunPod(t, "a", hostPort(18093, 80))
	n.CNI.Write(other, second.List(false))
	inUse(t, n, second.Network, "")
	b := n.RunPod(t, "b", hostPort(18094, 80))
	if first, second := n.CNI.Addresses(), second.Addresses(); !slices.Equal(first, []string{a.IP()}) || !slices.Equal(second, []string{b.IP()}) {
		t.Fatalf("addresses %v and %v, pods have %s and %s", first, second, a.IP(), b.IP())
	}
	n.CNI.Write(n.CNI.ConfFile, second.List(false))
	n.CNI.Write(other, n.CNI.List(false))
	inUse(t, n, n.CNI.Network, "")
	b.Remove()
	if first, second := n.CNI.Addresses(), second.Addresses(); !slices.Equal(first, []string{a.IP()}) || len(second) != 0 {
		t.Errorf("addresses %v and %v after the pod on the second network went", first, second)
	}
	a.Remove()
	if left := append(n.CNI.Addresses(), second.Addresses()...); len(left) != 0 {
		t.Errorf("addresses %v are left", left)
	}
	if rules := harness.Run(t, "nft", "list", "ruleset"); strings.Contains(rules, a.ID) || strings.Contains(rules, b.ID) {
		t.Errorf("rules of the pods are left:\n%s", rules)
	}
}

// When dockerd takes all pods with it, their addresses, links, rules and chains go at their Stop.
//
// Rows: R07, S63 (part)
func TestNothingStaysOfPodsThatDiedWithDockerd(t *testing.T) {
	harness.AboutDocker(t)
	n := ownNode(t, harness.DockerOptions{})
	before := rules(t)
	var pods []*harness.Pod
	for i := range int32(3) {
		pods = append(pods, n.RunPod(t, fmt.Sprintf("dies-%d", i), hostPort(18100+i, 80), func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{Protocol: runtimeapi.Protocol_UDP, HostPort: 18100 + i, ContainerPort: 7})
		}))
	}
	if len(rules(t)) <= len(before) {
		t.Fatal("host ports make no rule: this test would see nothing")
	}
	n.Docker.Restart()
	n.Shim.WaitReady()
	for _, pod := range pods {
		harness.Eventually(t, 10*time.Second, "the pod to be not ready", func() error {
			if state := pod.Status().State; state != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				return fmt.Errorf("it is %v", state)
			}
			return nil
		})
		pod.Stop()
	}
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v are left", left)
	}
	for _, rule := range rules(t) {
		if !slices.Contains(before, rule) {
			t.Errorf("left behind: %s", rule)
		}
	}
	if pins, err := os.ReadDir(filepath.Join(n.Shim.RunDir, "docker", "netns")); err != nil || len(pins) != 0 {
		t.Errorf("pins %v, %v are left", pins, err)
	}
}

// rules are all rules and chains of iptables and nftables, without counters.
func rules(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, command := range [][]string{{"iptables-save"}, {"ip6tables-save"}, {"nft", "-s", "list", "ruleset"}} {
		for line := range strings.Lines(harness.Run(t, command[0], command[1:]...)) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " [")
			if line != "" && !strings.HasPrefix(line, "#") {
				list = append(list, command[0]+" "+line)
			}
		}
	}
	return list
}

// Whatever became of a pod's pinned network namespace, the pod can be stopped and removed, its address comes back, and
// what was put in its place is left alone.
//
// Rows: R41
func TestPinOfANetworkNamespaceIsTamperedWith(t *testing.T) {
	n := node(t)
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(harness.WorkDir(t, "v"), "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	put := func(t *testing.T, pin string, replace func(string) error) {
		t.Helper()
		if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
		if err := replace(pin); err != nil {
			t.Fatal(err)
		}
	}
	for name, replace := range map[string]func(string) error{
		"gone":   func(string) error { return nil },
		"file":   func(pin string) error { return os.WriteFile(pin, nil, 0o600) },
		"folder": func(pin string) error { return os.Mkdir(pin, 0o700) },
		"link":   func(pin string) error { return os.Symlink(victim, pin) },
		"host's": func(pin string) error {
			if err := os.WriteFile(pin, nil, 0o600); err != nil {
				return err
			}
			return unix.Mount("/proc/self/ns/net", pin, "", unix.MS_BIND, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			links := bridges(t)
			pod := n.RunPod(t, "pin", hostPort(18095, 80))
			ip := pod.IP()
			pin := filepath.Join(n.Shim.RunDir, "docker", "netns", pod.ID)
			if harness.Native() {
				pin = filepath.Join(n.Shim.RunDir, "native", "ns", pod.ID, "net")
			}
			put(t, pin, replace)
			pod.Remove()
			if slices.Contains(n.CNI.Addresses(), ip) {
				t.Errorf("address %s was not given back", ip)
			}
			if now, _ := os.Readlink("/proc/self/ns/net"); now != ours {
				t.Errorf("the host's namespace %s became %s", ours, now)
			}
			if now := bridges(t); !slices.Equal(now, links) {
				t.Errorf("the host's bridges were %v and are %v", links, now)
			}
			if data, err := os.ReadFile(victim); err != nil || string(data) != "mine" {
				t.Errorf("the file that the pin was made to name: %q, %v", data, err)
			}
		})
	}
}

func bridges(t *testing.T) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(harness.Run(t, "ip", "-br", "link", "show", "type", "bridge")) {
		names = append(names, strings.Fields(line)[0])
	}
	return names
}
