package cni

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// realPlugins is where Debian's package containernetworking-plugins puts them.
const realPlugins = "/usr/lib/cni"

// The main thread stays with the main goroutine: no test may move it to another namespace, since it cannot end.
func init() { runtime.LockOSThread() }

// inOwnNetwork moves the test into a network namespace that ends with it: plugins and iptables started by this goroutine
// see that one as the host's.
func inOwnNetwork(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, path := range []string{realPlugins + "/bridge", realPlugins + "/host-local", realPlugins + "/portmap"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("needs the package containernetworking-plugins: %v", err)
		}
	}
	if _, err := exec.LookPath("iptables-save"); err != nil {
		t.Skipf("needs iptables: %v", err)
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs to make network namespaces: %v", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("lo: %v: %s", err, out)
	}
}

// podNamespace makes a network namespace and returns its path; end lets it die.
func podNamespace(t *testing.T) (path string, end func()) {
	t.Helper()
	made, stop, ended := make(chan string), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		made <- fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		<-stop
	}()
	path = <-made
	var once bool
	end = func() {
		if once {
			return
		}
		once = true
		close(stop)
		<-ended
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(path); err != nil {
				return
			}
		}
		t.Error("the pod's namespace does not end")
	}
	t.Cleanup(end)
	return path, end
}

func realNetwork(t *testing.T, subnet string) (n *Network, leases string) {
	t.Helper()
	root := t.TempDir()
	leases = filepath.Join(root, "leases")
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"real","plugins":[
		{"type":"bridge","bridge":"cshtest0","isGateway":true,"ipMasq":true,"hairpinMode":true,
		 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}],[{"subnet":"fd00:9::/64"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`, leases, subnet)
	if err := os.Mkdir(filepath.Join(root, "net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "net.d", "10.conflist"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	n, err := New(Options{ConfDir: filepath.Join(root, "net.d"), BinDirs: []string{realPlugins}, CacheDir: filepath.Join(root, "cache"), OwedDir: filepath.Join(root, "owed")})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n, leases
}

// left is what attachments have left on the "host": addresses, veths, chains and rules of pods.
func left(t *testing.T, leases string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{leases + "/real/*.*", leases + "/real/*:*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if !strings.Contains(file, "last_reserved") {
				found = append(found, file)
			}
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if link.Type() == "veth" {
			found = append(found, link.Attrs().Name)
		}
	}
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(save, "-t", "nat").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(out) {
			if line := string(line); strings.Contains(line, `id: \"`) || strings.Contains(line, "CNI-") && !strings.Contains(line, "CNI-HOSTPORT-") {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found
}

func TestRealPlugins(t *testing.T) {
	inOwnNetwork(t)
	n, leases := realNetwork(t, "10.77.0.0/24")

	attach := func(id string) ([]Attachment, func()) {
		path, end := podNamespace(t)
		pod := testPod(id)
		pod.NetNSPath, pod.Ports = path, []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}
		planned, err := n.Plan(pod)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		added, ips, err := n.Add(t.Context(), planned)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("ADD of %s took %v: %v", id, time.Since(began), ips)
		if len(ips) != 2 || !strings.HasPrefix(ips[0], "10.77.0.") || !strings.HasPrefix(ips[1], "fd00:9::") {
			t.Errorf("addresses %v", ips)
		}
		return added, end
	}

	alive, _ := attach("alive")
	ns, err := netns.GetFromPath(alive[0].NetNSPath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	in, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for _, name := range []string{"lo", "eth0"} {
		if link, err := in.LinkByName(name); err != nil || link.Attrs().RawFlags&unix.IFF_UP == 0 {
			t.Errorf("%s is not up in the pod: %v", name, err)
		}
	}
	if err := n.Del(t.Context(), alive); err != nil {
		t.Fatal(err)
	}
	if found := left(t, leases); len(found) != 0 {
		t.Errorf("after DEL: %q", found)
	}

	// The bridge plugin leaks its ipMasq chain and rules when the namespace is gone; a neighbour's must stay.
	neighbour, _ := attach("neighbour")
	before := len(left(t, leases))
	dead, end := attach("neighbour2")
	end()
	if err := n.Del(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	if found := left(t, leases); len(found) != before {
		t.Errorf("%d things, want the %d of the neighbour: %q", len(found), before, found)
	}
	if err := n.Del(t.Context(), dead); err != nil {
		t.Errorf("second DEL: %v", err)
	}
	// Nor are they found where a DEL before was killed, or failed, when it had taken the interface away.
	cut, _ := attach("neighbour3")
	removeLink(t, cut[0].NetNSPath, "eth0")
	if err := n.Del(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	if found := left(t, leases); len(found) != before {
		t.Errorf("after a DEL that was cut off: %d things, want the %d of the neighbour: %q", len(found), before, found)
	}
	if err := n.Del(t.Context(), neighbour); err != nil {
		t.Fatal(err)
	}
	if found := left(t, leases); len(found) != 0 {
		t.Errorf("at the end: %q", found)
	}
}

func removeLink(t *testing.T, netns, name string) {
	t.Helper()
	err := within(netns, func(handle *netlink.Handle) error {
		link, err := handle.LinkByName(name)
		if err != nil {
			return err
		}
		return handle.LinkDel(link)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Rows: R35 (part)
func TestRealPluginsWithAllAddressesTaken(t *testing.T) {
	inOwnNetwork(t)
	n, leases := realNetwork(t, "10.77.0.0/30") // one address for pods
	add := func(id string) ([]Attachment, error) {
		path, _ := podNamespace(t)
		pod := testPod(id)
		pod.NetNSPath, pod.Ports = path, nil
		planned, err := n.Plan(pod)
		if err != nil {
			t.Fatal(err)
		}
		added, _, err := n.Add(t.Context(), planned)
		return added, err
	}
	first, err := add("first")
	if err != nil {
		t.Fatal(err)
	}
	// Not with host ports: CHECK of portmap 1.1.1 looks for IPv4 rules in the IPv6 table of a dual-stack pod.
	if err := n.Check(t.Context(), first); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	before := len(left(t, leases))
	if _, err := add("second"); err == nil {
		t.Fatal("attached a second pod to a network of one address")
	}
	if found := left(t, leases); len(found) != before {
		t.Errorf("the failed ADD left something: %q", found)
	}
	if err := n.Del(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	again, err := add("third")
	if err != nil {
		t.Fatalf("the address was not freed: %v", err)
	}
	if err := n.Del(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if found := left(t, leases); len(found) != 0 {
		t.Errorf("at the end: %q", found)
	}
}

// Rows: S63 (part)
func TestLeakedNftRulesOfADeadPodGo(t *testing.T) {
	inOwnNetwork(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skipf("needs nft: %v", err)
	}
	nft := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("nft", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	nft("add", "table", "inet", masqTable)
	nft("add", "chain", "inet", masqTable, masqChain)
	for _, pod := range []string{"pod1", "pod2"} {
		owner := hashed(16, "", "real") + "-" + hashed(16, "", "eth0:"+pod)
		nft("add", "rule", "inet", masqTable, masqChain, "ip saddr 10.77.0.2 masquerade comment \""+owner+", net: real, if: eth0, id: "+pod+"\"")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := removeLeakedRules(ctx, &Attachment{PodID: "pod1", Network: "real", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if out := nft("list", "ruleset"); strings.Contains(out, "id: pod1") || !strings.Contains(out, "id: pod2") {
		t.Errorf("rules:\n%s", out)
	}
}

// Rows: S63 (part)
func TestVersionsOfRealPlugins(t *testing.T) {
	inOwnNetwork(t)
	n, _ := realNetwork(t, "10.77.0.0/24")
	versions, err := n.PluginVersions(t.Context())
	if err != nil || len(versions) != 3 {
		t.Fatalf("%+v, %v", versions, err)
	}
	for _, v := range versions {
		t.Logf("%+v", v)
		if v.Path != filepath.Join(realPlugins, v.Type) || v.Version == "" && !v.Old {
			t.Errorf("%+v: Debian 12 has 1.1.1, which tells no version and knows no CNI 1.1", v)
		}
	}
}
