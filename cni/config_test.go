package cni

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim/internal/rowsize"
	"crishim/internal/starving"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// running starts the node's Run and ends it with the test.
func (n *node) running() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	n.t.Cleanup(func() { cancel(); <-done })
}

func (n *node) ready() bool { return n.Status(n.t.Context()) == nil }

// readySoon is the promise: within 2 s after the configuration and the plugins are both there, in any order.
func (n *node) readySoon(what string) {
	n.t.Helper()
	eventually(n.t, "ready after "+what, 2*time.Second, n.ready)
}

// Rows: R39
func TestReadyWithinTwoSecondsAfterConfigAndPluginInAnyOrder(t *testing.T) {
	for round := range rowsize.Of(1, 200) {
		for _, order := range []string{"config first", "plugin first", "plugin right after config", "folders come later"} {
			t.Run(fmt.Sprint(order, " ", round), func(t *testing.T) { readyAfter(t, order) })
		}
	}
}

func readyAfter(t *testing.T, order string) {
	t.Helper()
	n := newNode(t)
	config := n.list("net", "1.0.0", nil, "p1")
	if order == "folders come later" {
		for _, dir := range []string{n.conf, n.bin} {
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.running()
	if err := n.Status(t.Context()); err == nil || !strings.Contains(err.Error(), n.conf) {
		t.Fatalf("Status %v, want the folder without a configuration named", err)
	}
	switch order {
	case "config first":
		n.write("10.conflist", config)
		eventually(t, "the missing plugin is named", 30*time.Second, func() bool {
			err := n.Status(t.Context())
			return err != nil && strings.Contains(err.Error(), "plugin p1")
		})
		n.plugins("p1")
	case "plugin first":
		n.plugins("p1")
		n.write("10.conflist", config)
	case "plugin right after config":
		n.write("10.conflist", config)
		n.plugins("p1")
	default:
		if err := os.MkdirAll(n.bin, 0o755); err != nil {
			t.Fatal(err)
		}
		n.plugins("p1")
		if err := os.MkdirAll(n.conf, 0o755); err != nil {
			t.Fatal(err)
		}
		n.write("10.conflist", config)
	}
	n.readySoon(order)
}

// Rows: R39 (part), R49 (part)
func TestWithoutInotifyTheDirectoriesArePolled(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.watch(ctx, func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE })
	}()
	defer func() { cancel(); <-done }()
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.plugins("p1")
	n.readySoon("both are there")
}

// Rows: R39 (part)
func TestConfigurationIsEditedSwappedAndRemoved(t *testing.T) {
	n := newNode(t)
	n.plugins("p1", "p2")
	n.write("10.conflist", n.list("one", "1.0.0", nil, "p1"))
	n.running()
	n.readySoon("start")

	n.write("10.conflist", `{"name": "broken", "plug`)
	eventually(t, "the problem is told", 30*time.Second, func() bool { return n.Problem() != nil })
	n.write("20.conflist", n.list("two", "1.0.0", nil, "p2"))
	n.reload()
	if n.Name() != "one" || !n.ready() {
		t.Errorf("network %q: a broken edit moved pods to another network", n.Name())
	}
	// An atomic replacement mends it.
	temp := filepath.Join(n.conf, "new")
	if err := os.WriteFile(temp, []byte(n.list("mended", "1.0.0", nil, "p1")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(n.conf, "10.conflist")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mended configuration", 30*time.Second, func() bool { return n.Name() == "mended" && n.Problem() == nil })
	// The next by name when the first goes; none when all are gone.
	for _, file := range []string{"10.conflist", "20.conflist"} {
		if err := os.Remove(filepath.Join(n.conf, file)); err != nil {
			t.Fatal(err)
		}
		if file == "10.conflist" {
			eventually(t, "the next configuration", 30*time.Second, func() bool { return n.Name() == "two" })
		}
	}
	eventually(t, "no configuration", 30*time.Second, func() bool { return n.Name() == "" && !n.ready() })
}

func TestMissingPluginsAreThoseThatAreMissingNow(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1", "p2"))
	n.reload()
	if err := n.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "plugin p1, p2 of") {
		t.Errorf("without plugins: %v", err)
	}
	n.plugins("p1")
	n.reload()
	if err := n.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "plugin p2 of") {
		t.Errorf("with one of two plugins: %v", err)
	}
}

// The loopback's configuration, which packages for other runtimes bring, is no network: a node with nothing else is not ready.
func TestTheLoopbackIsNoNetwork(t *testing.T) {
	n := newNode(t)
	n.plugins("loopback", "p1")
	n.write("99-loopback.conf", `{"cniVersion":"1.0.0","name":"lo","type":"loopback"}`)
	n.reload()
	if err := n.Status(t.Context()); err == nil || !strings.Contains(err.Error(), n.conf) || n.Problem() != nil {
		t.Errorf("with the loopback alone: %v, network %q, problem %v", err, n.Name(), n.Problem())
	}
	if other, err := otherConfig(n.conf); err != nil || other != "" {
		t.Errorf("no network is made of a template because of %q, %v", other, err)
	}
	n.write("99-net.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	if n.Name() != "net" || !n.ready() || n.Problem() != nil {
		t.Errorf("with an add-on's after it: network %q, problem %v", n.Name(), n.Problem())
	}
}

// A daemon without descriptors can read neither the folder nor its files, which is no sign that the node has no network any more.
func TestTheConfigurationInUseStaysWhereNoneCanBeRead(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	for name, clear := range map[string]uint32{"nothing": 0, "no file": unix.O_DIRECTORY} {
		starving.Opening(t, 0, clear, n.reload)
		if n.Name() != "net" || !n.ready() || n.Problem() == nil {
			t.Errorf("%s can be opened: network %q, problem %v", name, n.Name(), n.Problem())
		}
	}
}

// A plugin that is just being copied is there, and cannot be run yet.
func TestAPluginThatCannotBeRunIsMissing(t *testing.T) {
	n := newNode(t)
	plugin := filepath.Join(n.bin, "p1")
	if err := os.WriteFile(plugin, []byte("#!"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	if n.ready() {
		t.Error("it is ready with a plugin that is no program")
	}
	if err := os.Chmod(plugin, 0o755); err != nil {
		t.Fatal(err)
	}
	n.reload()
	if !n.ready() {
		t.Errorf("not ready with a program: %v", n.Status(t.Context()))
	}
}

func TestFirstValidFileByNameIsTaken(t *testing.T) {
	for what, files := range map[string]map[string]string{
		"a conflist beside a broken one":          {"05.conflist": "{", "10.conflist": `{"cniVersion":"1.0.0","name":"want","plugins":[{"type":"p1"}]}`},
		"a single plugin's conf before a list":    {"05.conf": `{"cniVersion":"0.4.0","name":"want","type":"p1"}`, "10.conflist": `{"name":"x","plugins":[{"type":"p1"}]}`},
		"a .json file":                            {"05.json": `{"name":"want","type":"p1"}`, "00.txt": "{"},
		"none with a plugin type that is a path":  {"05.conflist": `{"name":"x","plugins":[{"type":"../../sbin/reboot"}]}`, "10.conf": `{"name":"want","type":"p1"}`},
		"none with an ipam type that is a path":   {"05.conflist": `{"name":"x","plugins":[{"type":"p1","ipam":{"type":"/bin/sh"}}]}`, "10.conf": `{"name":"want","type":"p1"}`},
		"none with a name that is a path":         {"05.conf": `{"name":"../x","type":"p1"}`, "10.conf": `{"name":"want","type":"p1"}`},
		"none of a CNI version from the future":   {"05.conf": `{"cniVersion":"7.0.0","name":"x","type":"p1"}`, "10.conf": `{"name":"want","type":"p1"}`},
		"none with a list of no plugins":          {"05.conflist": `{"name":"x","plugins":[]}`, "10.conf": `{"name":"want","type":"p1"}`},
		"the newest of cniVersions that is known": {"05.conflist": `{"cniVersions":["1.0.0","1.1.0","3.0.0"],"name":"want","plugins":[{"type":"p1"}]}`},
	} {
		n := newNode(t)
		n.plugins("p1")
		for file, content := range files {
			n.write(file, content)
		}
		n.reload()
		if n.Name() != "want" {
			t.Errorf("%s: network %q, problem %v", what, n.Name(), n.Problem())
		}
	}
}

func TestPluginsBesideTheListAreRecordedWithIt(t *testing.T) {
	n := newNode(t)
	n.plugins("p1", "p2")
	n.write("10.conflist", n.list("net", "1.1.0", nil, "p1"))
	if err := os.Mkdir(filepath.Join(n.conf, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("net/20-p2.conf", `{"type":"p2","dir":"`+n.dir+`"}`)
	n.reload()
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := planned[0].list()
	if err != nil || len(list.Plugins) != 2 || list.Plugins[1].Network.Type != "p2" {
		t.Errorf("recorded %s, %v", planned[0].Config, err)
	}
}

// Rows: R36 (part)
func TestStatusVerbDecidesAndNeverBlocks(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.1.0", map[string]map[string]string{"p1": {"STATUS": "unavailable"}}, "p1"))
	n.running()
	eventually(t, "the plugin's answer is told", 30*time.Second, func() bool {
		err := n.Status(t.Context())
		return err != nil && strings.Contains(err.Error(), "agent is down")
	})
	n.write("10.conflist", n.list("net", "1.1.0", map[string]map[string]string{"p1": {"STATUS": "hang"}}, "p1"))
	eventually(t, "the plugin hangs", 30*time.Second, func() bool { _, err := os.Stat(filepath.Join(n.dir, "child")); return err == nil })
	began := time.Now()
	if err := n.Status(t.Context()); err == nil || time.Since(began) > 20*time.Second {
		t.Errorf("Status %v after %v while STATUS hangs", err, time.Since(began))
	}
	// A change ends the wait for the old configuration's answer.
	n.write("10.conflist", n.list("net", "1.1.0", nil, "p1"))
	n.readySoon("the plugin is well")
}

func TestPodCIDRsMakeAConfigurationFromTheTemplateOnlyWhereThereIsNone(t *testing.T) {
	template := filepath.Join(t.TempDir(), "template")
	text := `{"cniVersion":"1.0.0","name":"made","plugins":[{"type":"p1","ranges":"{{range .PodCIDRRanges}}{{.}} {{end}}{{.PodCIDR}} {{range .Routes}}{{.}} {{end}}"}]}`
	if err := os.WriteFile(template, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, func(o *Options) { o.Template = template })
	n.plugins("p1")
	if err := n.SetPodCIDRs([]string{"10.1.0.0/24", "not a range"}); err == nil {
		t.Error("took what is no CIDR")
	}
	if err := n.SetPodCIDRs([]string{"10.1.0.0/24", "fd01::/64"}); err != nil {
		t.Fatal(err)
	}
	if got := string(n.Config()); !strings.Contains(got, "10.1.0.0/24 fd01::/64 10.1.0.0/24 0.0.0.0/0 ::/0 ") || !n.ready() {
		t.Errorf("made %s", got)
	}
	if err := n.SetPodCIDRs([]string{"10.3.0.0/24"}); err != nil {
		t.Fatal(err)
	}
	if got := string(n.Config()); !strings.Contains(got, "10.3.0.0/24 0.0.0.0/0 ") {
		t.Errorf("with another range it stays %s", got)
	}
	n.write("05.conflist", n.list("theirs", "1.0.0", nil, "p1"))
	if err := n.SetPodCIDRs([]string{"10.2.0.0/24"}); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(filepath.Join(n.conf, TemplateTarget))
	if err != nil || strings.Contains(string(made), "10.2") {
		t.Errorf("written beside another configuration: %s, %v", made, err)
	}
}

// Antrea's daemon runs host-local itself, with a file of its own image: the host needs none.
func TestAPluginForAddressesNeedsNoFileOnTheHost(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", strings.Replace(n.list("net", "1.0.0", nil, "p1"), `"type":"p1"`, `"type":"p1","ipam":{"type":"elsewhere"}`, 1))
	n.reload()
	if err := n.Status(t.Context()); err != nil {
		t.Error(err)
	}
	mustAdd(t, n, "pod1")
}
