package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crishim/internal/process"
	"crishim/internal/rowsize"
	"crishim/internal/starving"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

func testPod(id string) Pod {
	return Pod{
		ID: id, Name: "web", Namespace: "shop", UID: "1-2-3", NetNSPath: "/run/netns/" + id,
		Ports:       []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "TCP"}, {ContainerPort: 81, Protocol: "tcp"}},
		Annotations: map[string]string{IngressBandwidth: "10M"},
		DNS:         &DNS{Servers: []string{"10.96.0.10"}},
	}
}

func TestPodIsAttachedAndDetached(t *testing.T) {
	n := newNode(t, func(o *Options) { o.PodCIDRs = []string{"10.9.0.0/16", "fd00::/64"} })
	n.plugins("first", "second")
	n.write("10-net.conflist", n.list("net", "1.0.0", nil, "first", "second"))
	n.reload()
	if err := n.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		t.Fatal(err)
	}
	added, ips, err := n.Add(t.Context(), planned)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"10.9.0.5", "fd00::5"}; !slices.Equal(ips, want) || !slices.Equal(added[0].IPs(), want) {
		t.Errorf("addresses %v, want %v", ips, want)
	}
	args, err := os.ReadFile(filepath.Join(n.dir, "first.args"))
	if want := "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=pod1;K8S_POD_UID=1-2-3"; err != nil || string(args) != want {
		t.Errorf("CNI_ARGS %q, %v", args, err)
	}
	var seen struct {
		RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig"`
		PrevResult    json.RawMessage            `json:"prevResult"`
	}
	wantRuntime := map[string]string{
		"portMappings": `[{"containerPort":80,"hostPort":8080,"protocol":"tcp"}]`,
		"bandwidth":    `{"ingressBurst":2147483647,"ingressRate":10000000}`,
		"ipRanges":     `[[{"subnet":"10.9.0.0/16"}],[{"subnet":"fd00::/64"}]]`,
		"dns":          `{"servers":["10.96.0.10"]}`,
	}
	check := func(file string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(n.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &seen); err != nil {
			t.Fatal(err)
		}
		if len(seen.RuntimeConfig) != len(wantRuntime) {
			t.Errorf("%s: runtimeConfig %s", file, data)
		}
		for key, want := range wantRuntime {
			var a, b any
			if err := json.Unmarshal(seen.RuntimeConfig[key], &a); err != nil {
				t.Errorf("%s: %s: %v", file, key, err)
			}
			_ = json.Unmarshal([]byte(want), &b)
			if !reflect.DeepEqual(a, b) {
				t.Errorf("%s: %s is %s, want %s", file, key, seen.RuntimeConfig[key], want)
			}
		}
	}
	check("second.ADD")

	// The record survives JSON, and DEL gets what ADD got, with the result.
	data, err := json.Marshal(added)
	if err != nil {
		t.Fatal(err)
	}
	var recorded []Attachment
	if err := json.Unmarshal(data, &recorded); err != nil {
		t.Fatal(err)
	}
	n.calls()
	if err := n.Check(t.Context(), recorded); err != nil {
		t.Fatal(err)
	}
	if err := n.Del(t.Context(), recorded); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`CHECK first pod1 netns="/run/netns/pod1"`, `CHECK second pod1 netns="/run/netns/pod1"`,
		`DEL second pod1 netns="/run/netns/pod1"`, `DEL first pod1 netns="/run/netns/pod1"`,
	}
	if got := n.calls(); !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
	check("first.DEL")
	if !strings.Contains(string(seen.PrevResult), "10.9.0.5") {
		t.Errorf("DEL got the previous result %s", seen.PrevResult)
	}
	if files := n.cached(); len(files) != 0 {
		t.Errorf("cache left: %v", files)
	}
	if err := n.Del(t.Context(), recorded); err != nil {
		t.Errorf("second DEL: %v", err)
	}
}

// Rows: R35
func TestFailedAddIsUndoneForEveryPluginOfTheChain(t *testing.T) {
	chain := []string{"p1", "p2", "p3"}
	for _, failure := range []string{"fail", "crash", "garbage", "nothing", "version", "flood"} {
		for _, at := range []string{"p1", "p3"} {
			t.Run(failure+" in "+at, func(t *testing.T) {
				n := newNode(t)
				n.plugins(chain...)
				// DEL of another plugin fails too: the others still get theirs.
				n.write("10.conflist", n.list("net", "1.0.0", map[string]map[string]string{at: {"ADD": failure}, "p2": {"DEL": "fail"}}, chain...))
				n.reload()
				planned, err := n.Plan(testPod("pod1"))
				if err != nil {
					t.Fatal(err)
				}
				_, _, err = n.Add(t.Context(), planned)
				if err == nil || errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("error %v, want the plugin's", err)
				}
				if failure == "flood" && !strings.Contains(err.Error(), strconv.Itoa(maxResult)) {
					t.Errorf("the limit is not told: %v", err)
				}
				var undo *UndoError
				if !errors.As(err, &undo) || !strings.Contains(err.Error(), "DEL of plugin p2") {
					t.Errorf("the DEL that failed is not told: %v", err)
				}
				calls := n.calls()
				for _, p := range chain {
					if !slices.Contains(calls, `DEL `+p+` pod1 netns="/run/netns/pod1"`) {
						t.Errorf("no DEL of %s in %q", p, calls)
					}
				}
				if files := n.cached(); len(files) != 0 {
					t.Errorf("cache left: %v", files)
				}
			})
		}
	}
}

// A pod that got no address is of no use to anybody, and nothing of it may stay.
func TestAnAddWithoutAnAddressIsUndone(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", map[string]map[string]string{"p1": {"ADD": "no address"}}, "p1"))
	n.reload()
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.Add(t.Context(), planned); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("error %v", err)
	}
	if calls := n.calls(); len(calls) != 2 || !strings.HasPrefix(calls[1], "DEL p1 pod1 ") {
		t.Errorf("calls %q", calls)
	}
}

// What has a result keeps it, and its address; what was planned before its namespace was there knows the namespace from ADD on.
func TestAddIsDoneOnceAndKnowsTheNamespace(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	n.ns.gone["/run/netns/pod1"] = true
	planned, err := n.Plan(testPod("pod1"))
	if err != nil || planned[0].NetNSInode != 0 {
		t.Fatalf("%+v, %v", planned, err)
	}
	n.ns.gone["/run/netns/pod1"] = false
	added, first, err := n.Add(t.Context(), planned)
	if err != nil || added[0].NetNSInode == 0 {
		t.Fatalf("%+v, %v", added, err)
	}
	n.calls()
	again, second, err := n.Add(t.Context(), added)
	if err != nil || !reflect.DeepEqual(again, added) || !slices.Equal(first, second) {
		t.Errorf("%+v with %v became %+v with %v, %v", added, first, again, second, err)
	}
	if calls := n.calls(); len(calls) != 1 || calls[0] != "" {
		t.Errorf("calls %q", calls)
	}
}

// Rows: R35 (part)
func TestMissingBinaryDoesNotKeepOtherPluginsFromTheirDel(t *testing.T) {
	n := newNode(t)
	n.plugins("p1", "p2")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1", "p2"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	if err := os.Remove(filepath.Join(n.bin, "p2")); err != nil {
		t.Fatal(err)
	}
	n.calls()
	if err := n.Del(t.Context(), added); err == nil {
		t.Fatal("DEL without the plugin succeeded")
	}
	if calls := n.calls(); !slices.Equal(calls, []string{`DEL p1 pod1 netns="/run/netns/pod1"`}) {
		t.Errorf("calls %q", calls)
	}
	if len(n.cached()) != 1 {
		t.Error("the cached result is gone before the DEL is done")
	}
	n.plugins("p2")
	if err := n.Del(t.Context(), added); err != nil {
		t.Fatal(err)
	}
}

func mustAdd(t *testing.T, n *node, id string) []Attachment {
	t.Helper()
	planned, err := n.Plan(testPod(id))
	if err != nil {
		t.Fatal(err)
	}
	added, _, err := n.Add(t.Context(), planned)
	if err != nil {
		t.Fatal(err)
	}
	return added
}

// Rows: R36
func TestHangingPluginDiesWithItsChildrenAtTheBudget(t *testing.T) {
	n := newNode(t, func(o *Options) { o.AddTimeout = 5 * time.Second })
	n.plugins("slow", "quick")
	n.write("10.conflist", n.list("net", "1.0.0", map[string]map[string]string{"slow": {"ADD": "hang"}}, "slow"))
	n.reload()
	count := rowsize.Of(2, 20)
	done := make(chan error, count)
	for i := range count {
		planned, err := n.Plan(testPod(fmt.Sprintf("hangs%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _, err := n.Add(t.Context(), planned)
			done <- err
		}()
	}
	var children []string
	eventually(t, "the plugins hang", 30*time.Second, func() bool {
		data, _ := os.ReadFile(filepath.Join(n.dir, "child"))
		children = strings.Fields(string(data))
		return len(children) == count
	})
	// Meanwhile Status answers and another pod is attached.
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("Status %v", err)
	}
	n.write("10.conflist", n.list("net", "1.0.0", nil, "quick"))
	n.reload()
	mustAdd(t, n, "pod2")
	for range count {
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) || !errdefs.IsUnavailable(err) {
			t.Errorf("error %v, want a deadline of class unavailable", err)
		}
	}
	for _, child := range children {
		pid, err := strconv.Atoi(child)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the plugin's child is dead", 30*time.Second, func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return errors.Is(unix.Kill(pid, 0), unix.ESRCH) || err == nil && strings.Contains(string(stat), ") Z ")
		})
	}
}

// Rows: R38 (part)
func TestHangingDelLeavesTimeForTheOtherPlugins(t *testing.T) {
	n := newNode(t)
	n.plugins("p1", "p2")
	n.write("10.conflist", n.list("net", "1.0.0", map[string]map[string]string{"p2": {"DEL": "hang"}}, "p1", "p2"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	n.calls()
	// What is left of the time is to be enough for the other one; where the machine is slow, that is of a longer time.
	for n.opts.DelTimeout = 4 * time.Second; ; n.opts.DelTimeout *= 4 {
		if err := n.Del(t.Context(), added); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		calls := n.calls()
		if slices.Contains(calls, `DEL p1 pod1 netns="/run/netns/pod1"`) {
			return
		}
		if n.opts.DelTimeout > 2*time.Minute {
			t.Fatalf("calls %q", calls)
		}
	}
}

// On a node with much too much to do a plugin took ten seconds, the equal part of one of three: v1.22 of the kubelet, for a static
// pod, does not try again.
func TestAPluginThatIsOnlySlowHasMostOfTheTime(t *testing.T) {
	minute, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	network, cancel := shareOf(minute, 2)
	defer cancel()
	plugin, cancel := shareOf(network, 3)
	defer cancel()
	deadline, ok := plugin.Deadline()
	if left := time.Until(deadline); !ok || left < 30*time.Second {
		t.Errorf("the first of three plugins of the first of two networks has %v of a minute", left)
	}
	last, cancel := shareOf(minute, 1)
	defer cancel()
	whole, _ := minute.Deadline()
	if deadline, ok := last.Deadline(); !ok || !deadline.Equal(whole) {
		t.Errorf("the last has until %v, not %v", deadline, whole)
	}
}

// Rows: R36 (part)
func TestCallerWhoLeavesEndsThePluginAndTheAddIsUndone(t *testing.T) {
	n := newNode(t)
	n.plugins("slow")
	n.write("10.conflist", n.list("net", "1.0.0", map[string]map[string]string{"slow": {"ADD": "hang"}}, "slow"))
	n.reload()
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(n.dir, "child")); err == nil {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	if _, _, err := n.Add(ctx, planned); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if calls := n.calls(); !slices.Contains(calls, `DEL slow pod1 netns="/run/netns/pod1"`) {
		t.Errorf("calls %q", calls)
	}
}

// Rows: R38
func TestDelUsesTheRecordAfterTheConfigurationChanged(t *testing.T) {
	n := newNode(t)
	n.plugins("p1", "p2")
	one, two := n.list("one", "1.0.0", nil, "p1"), n.list("two", "1.0.0", nil, "p2")
	n.write("10.conflist", one)
	n.write("20.conflist", two)
	n.reload()
	added := mustAdd(t, n, "pod1")
	// The two files swapped, then all gone, and the cache too.
	n.write("10.conflist", two)
	n.write("20.conflist", one)
	n.reload()
	if n.Name() != "two" {
		t.Fatalf("network %q", n.Name())
	}
	other := mustAdd(t, n, "pod2")
	for _, dir := range []string{n.conf, filepath.Join(n.opts.CacheDir, "results")} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	n.reload()
	n.calls()
	if err := errors.Join(n.Del(t.Context(), added), n.Del(t.Context(), other)); err != nil {
		t.Fatal(err)
	}
	want := []string{`DEL p1 pod1 netns="/run/netns/pod1"`, `DEL p2 pod2 netns="/run/netns/pod2"`}
	if calls := n.calls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q", calls)
	}
	data, err := os.ReadFile(filepath.Join(n.dir, "p1.DEL"))
	if err != nil || !strings.Contains(string(data), "10.9.0.5") {
		t.Errorf("DEL without the recorded result: %s, %v", data, err)
	}
}

// Rows: R37
func TestDelAfterACrashBeforeTheResultWasRecorded(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.Add(t.Context(), planned); err != nil {
		t.Fatal(err)
	}
	if err := n.Del(t.Context(), planned); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(n.dir, "p1.DEL"))
	if err != nil || !strings.Contains(string(data), "10.9.0.5") {
		t.Errorf("DEL without the cached result: %s, %v", data, err)
	}
}

// Rows: R41, R24 (part)
func TestDelOfADeadOrForeignNamespaceGetsNone(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // no iptables: this test must not look at the host's rules
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	dead, foreign, unknown := mustAdd(t, n, "dead"), mustAdd(t, n, "foreign"), mustAdd(t, n, "unknown")
	n.ns.gone["/run/netns/dead"] = true
	foreign[0].NetNSInode++ // another namespace is at the path by now
	unknown[0].NetNSInode = 0
	n.calls()
	if err := errors.Join(n.Del(t.Context(), dead), n.Del(t.Context(), foreign), n.Del(t.Context(), unknown)); err != nil {
		t.Fatal(err)
	}
	want := []string{`DEL p1 dead netns=""`, `DEL p1 foreign netns=""`, `DEL p1 unknown netns="/run/netns/unknown"`}
	if calls := n.calls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q", calls)
	}
}

// An adopted pod has an attachment to lo, of which its namespace leaves nothing: a plugin for it may be gone with the old shim.
func TestDelOfADeadNamespaceNeedsNoLoopbackPlugin(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	n := newNode(t)
	list := n.list("cni-loopback", "0.4.0", nil, "loopback")
	if err := n.Del(t.Context(), []Attachment{{PodID: "pod1", Network: "cni-loopback", IfName: "lo", Config: json.RawMessage(list), CacheDir: n.opts.CacheDir}}); err != nil {
		t.Error(err)
	}
}

// Rows: R41 (part)
func TestHostsNamespaceAndPlainFilesAreNoPodNamespace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", file, filepath.Dir(file), file + "-absent", "/proc/self/ns/net", "/proc/self/ns/mnt", "/dev/null"} {
		if _, err := (kernelNamespaces{}).inode(path); err == nil {
			t.Errorf("%q is taken for a pod's namespace", path)
		}
	}
}

// Rows: S28 (part)
func TestHostileNamesAreRefused(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	for what, change := range map[string]func(*Pod){
		"a name that adds a key":      func(p *Pod) { p.Name = "a;K8S_POD_UID=0" },
		"a namespace with a =":        func(p *Pod) { p.Namespace = "a=b" },
		"a uid with a ;":              func(p *Pod) { p.UID = ";" },
		"a name with a line break":    func(p *Pod) { p.Name = "a\nb" },
		"an id that is a path":        func(p *Pod) { p.ID = "../../etc" },
		"an empty id":                 func(p *Pod) { p.ID = "" },
		"an unknown protocol":         func(p *Pod) { p.Ports[0].Protocol = "icmp" },
		"a host port beyond 65535":    func(p *Pod) { p.Ports[0].HostPort = 65536 },
		"a container port of 0":       func(p *Pod) { p.Ports[0].ContainerPort = 0 },
		"a host address with a shell": func(p *Pod) { p.Ports[0].HostIP = "$(id)" },
		"a bandwidth of nothing":      func(p *Pod) { p.Annotations[IngressBandwidth] = "0" },
		"a bandwidth of words":        func(p *Pod) { p.Annotations[EgressBandwidth] = "much" },
	} {
		pod := testPod("pod1")
		change(&pod)
		if _, err := n.Plan(pod); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestBitRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"1k": 1000, "10M": 10_000_000, "1.5G": 1_500_000_000, "1Mi": 1 << 20, "1000000": 1_000_000, "1P": 1e15,
		"1e6": 1_000_000, "1E6": 1_000_000, "1.5e3": 1500,
		"": 0, "M": 0, "-1M": 0, "1e99": 0, "1e": 0, "e6": 0, "1e6M": 0, "1e-3": 0, "1e1e1": 0, "10MB": 0, "999": 0, "2P": 0, "1..2M": 0, "1/2M": 0, "1 M": 0,
		"99999999999999999999999999999999999999": 0,
	} {
		if got, err := bitRate(text); got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

func TestOnlyOneVerbPerPodAtATime(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	unlock, err := n.pods.Lock(t.Context(), "pod1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := n.Del(ctx, added); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("DEL beside another call on the pod: %v", err)
	}
	unlock()
	if err := n.Del(t.Context(), added); err != nil {
		t.Error(err)
	}
}

// Who leaves while a GC runs leaves nothing locked: his next call would wait for ever.
func TestWhoLeavesDuringAGCMayComeBack(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	alone, err := n.verbs.enterAlone()
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Del(gone, added); !errors.Is(err, context.Canceled) {
		t.Errorf("DEL during a GC: %v", err)
	}
	alone()
	back, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.Del(back, added); err != nil {
		t.Error(err)
	}
}

// Rows: R40
func TestGCEndsWhatIsNotRecordedAndNothingElse(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.1.0", nil, "p1"))
	n.reload()
	kept, stale, owed := mustAdd(t, n, "kept"), mustAdd(t, n, "stale"), mustAdd(t, n, "owed")
	if err := n.Owe(owed, "test"); err != nil {
		t.Fatal(err)
	}
	n.ns.gone[stale[0].NetNSPath] = true
	n.calls()
	if err := n.GC(t.Context(), func() ([]Attachment, error) { return kept, nil }); err != nil {
		t.Fatal(err)
	}
	want := []string{`DEL p1 stale netns=""`, `GC p1  netns=""`}
	if calls := n.calls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q, want %q", calls, want)
	}
	data, err := os.ReadFile(filepath.Join(n.dir, "p1.GC"))
	if err != nil {
		t.Fatal(err)
	}
	var conf struct {
		Valid []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(data, &conf); err != nil || len(conf.Valid) != 2 {
		t.Errorf("valid attachments %s, %v", data, err)
	}
	leave, err := n.verbs.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.GC(t.Context(), func() ([]Attachment, error) { return kept, nil }); !errdefs.IsUnavailable(err) {
		t.Errorf("GC beside an ADD: %v", err)
	}
	leave()
	alone, err := n.verbs.enterAlone()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Del(t.Context(), kept); err != nil {
			t.Error(err)
		}
	})
	alone()
	wg.Wait()
}

// What is recorded cannot be told, or a file says that a network wants no GC: then nobody's network is taken for nobody's.
func TestGCEndsNothingThatMayBeInUse(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", strings.Replace(n.list("net", "1.1.0", nil, "p1"), "{", `{"disableGC":true,`, 1))
	n.reload()
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		t.Fatal(err)
	}
	second := planned[0]
	second.IfName = "eth1"
	if _, _, err := n.Add(t.Context(), append(planned, second)); err != nil {
		t.Fatal(err)
	}
	n.calls()
	unread := errors.New("the records cannot be read")
	if err := n.GC(t.Context(), func() ([]Attachment, error) { return nil, unread }); !errors.Is(err, unread) {
		t.Errorf("error %v", err)
	}
	if calls := n.calls(); len(calls) != 1 || calls[0] != "" {
		t.Errorf("without a record it called %q", calls)
	}
	if err := n.GC(t.Context(), func() ([]Attachment, error) { return planned, nil }); err != nil {
		t.Error(err)
	}
	if calls := n.calls(); !slices.Equal(calls, []string{`DEL p1 pod1 netns="/run/netns/pod1"`}) {
		t.Errorf("one of two attachments is recorded: calls %q", calls)
	}
	if left := n.cached(); len(left) != 1 || !strings.HasSuffix(left[0], "-eth0") {
		t.Errorf("in the cache are %q", left)
	}
}

func TestAdoptedPodIsDetachedWithTheOldShimsCache(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	n := newNode(t)
	n.plugins("p1")
	old := t.TempDir()
	if err := os.MkdirAll(filepath.Join(old, "results"), 0o700); err != nil {
		t.Fatal(err)
	}
	entry := map[string]any{
		"kind": "cniCacheV1", "containerId": "old1", "ifName": "eth0", "networkName": "kubenet", "netns": "/proc/4711/ns/net",
		"config":  []byte(n.list("kubenet", "0.4.0", nil, "p1")),
		"cniArgs": [][2]string{{"IgnoreUnknown", "1"}},
		"capabilityArgs": map[string]any{
			"portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
		},
		"result": map[string]any{"cniVersion": "0.4.0", "ips": []any{map[string]any{"version": "4", "address": "10.8.0.9/24"}}},
	}
	data, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(old, "results", "kubenet-old1-eth0")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	adopted, err := Adopt(old, "old1")
	if err != nil || len(adopted) != 1 {
		t.Fatalf("%v, %v", adopted, err)
	}
	a := adopted[0]
	if a.NetNSPath != "" || !slices.Equal(a.IPs(), []string{"10.8.0.9"}) || !strings.Contains(string(a.CapabilityArgs["portMappings"]), "8080") {
		t.Errorf("adopted %+v", a)
	}
	if err := n.Del(t.Context(), adopted); err != nil {
		t.Fatal(err)
	}
	if calls := n.calls(); !slices.Equal(calls, []string{`DEL p1 old1 netns=""`}) {
		t.Errorf("calls %q", calls)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old cache entry is still there: %v", err)
	}
	if none, err := Adopt(old, "old2"); err != nil || len(none) != 0 {
		t.Errorf("%v, %v", none, err)
	}
}

// A namespace that cannot be looked at for want of descriptors is not gone: a DEL without it leaves what the plugin has to give back
// from inside (a host's device, say), and what plugins leave then, nobody would look for again.
func TestDelWaitsForDescriptorsToLookAtTheNamespace(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	n.calls()
	n.ns.fails = fmt.Errorf("look at it: %w", unix.EMFILE)
	if err := n.Del(t.Context(), added); !process.Starved(err) {
		t.Errorf("DEL without a look at the namespace: %v", err)
	}
	if err := n.Check(t.Context(), added); !process.Starved(err) || errdefs.IsNotFound(err) {
		t.Errorf("CHECK without a look at the namespace: %v", err)
	}
	if calls := n.calls(); len(calls) != 1 || calls[0] != "" {
		t.Errorf("plugins were run: %v", calls)
	}
	n.ns.fails = nil
	if err := n.Del(t.Context(), added); err != nil {
		t.Error(err)
	}
}

// libcni passes over a file of its cache that it cannot open. For want of descriptors that is no sign that the pod has no network.
func TestAnAttachmentThatCannotBeReadNowIsNotAbsent(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	var found []Attachment
	var err error
	starving.Opening(t, 0, unix.O_DIRECTORY, func() { found, err = n.Cached("pod1") })
	if !process.Starved(err) {
		t.Errorf("found %v, %v", found, err)
	}
	if found, err = n.Cached("pod1"); err != nil || len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
	if found, err = n.Cached("pod2"); err != nil || len(found) != 0 {
		t.Errorf("of a pod without any: %v, %v", found, err)
	}
	if err := n.Del(t.Context(), added); err != nil {
		t.Error(err)
	}
}

// The kubelet takes the first address of each family for the pod's: one that a plugin gave another interface is not where it is reached.
func TestAPodsAddressesAreThoseOfItsInterface(t *testing.T) {
	const host, other, own, unplaced, lo = `{"name":"veth1"}`, `{"name":"net1","sandbox":"/x"}`, `{"name":"eth0","sandbox":"/x"}`, `{"name":"eth0"}`, `{"name":"lo","sandbox":"/x"}`
	for name, c := range map[string]struct {
		interfaces, ips string
		want            []string
	}{
		"of another interface too": {host + "," + other + "," + own,
			`{"address":"10.1.0.1/24","interface":1},{"address":"fd01::1/64","interface":1},{"address":"10.9.0.5/16","interface":2}`, []string{"10.9.0.5"}},
		"of the host too":                                {host + "," + own, `{"address":"10.9.0.1/16","interface":0},{"address":"fd00::5/64","interface":1},{"address":"10.9.0.5/16","interface":1}`, []string{"fd00::5", "10.9.0.5"}},
		"of an interface not named":                      {host, `{"address":"10.9.0.5/16"}`, []string{"10.9.0.5"}},
		"of another interface alone":                     {other, `{"address":"10.1.0.1/24","interface":0}`, []string{"10.1.0.1"}},
		"of an interface that nobody said is in the pod": {unplaced, `{"address":"10.9.0.5/16","interface":0}`, []string{"10.9.0.5"}},
		"of the loopback":                                {lo + "," + own, `{"address":"127.0.0.1/8","interface":0},{"address":"::1/128","interface":0},{"address":"127.0.0.2/8"}`, nil},
	} {
		result := fmt.Sprintf(`{"cniVersion":"1.0.0","interfaces":[%s],"ips":[%s]}`, c.interfaces, c.ips)
		if got, err := resultIPs([]byte(result), IfName); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}
