package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/internal/rowsize"
)

// The test binary is the fake plugin: it acts as one when CNI_COMMAND is set.
func TestMain(m *testing.M) {
	if command := os.Getenv("CNI_COMMAND"); command != "" {
		os.Exit(fakePlugin(command))
	}
	// A binary built with -race sleeps a second at its end, and the fake plugins run often.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

type fakeConf struct {
	CNIVersion string `json:"cniVersion"`
	Type       string `json:"type"`
	// Dir gets a line per call in calls, and stdin of the last call of each command in TYPE.COMMAND.
	Dir string `json:"dir"`
	// Do is what to do instead of succeeding, by command.
	Do         map[string]string `json:"do"`
	PrevResult json.RawMessage   `json:"prevResult"`
}

func fakePlugin(command string) int {
	stdin, _ := io.ReadAll(os.Stdin)
	var conf fakeConf
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return 3
	}
	if command == "VERSION" {
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}`)
		return 0
	}
	_ = os.WriteFile(filepath.Join(conf.Dir, conf.Type+"."+command), stdin, 0o600)
	_ = os.WriteFile(filepath.Join(conf.Dir, conf.Type+".args"), []byte(os.Getenv("CNI_ARGS")), 0o600)
	record(conf.Dir, fmt.Sprintf("%s %s %s netns=%q", command, conf.Type, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_NETNS")))
	do := conf.Do[command]
	if data, err := os.ReadFile(filepath.Join(conf.Dir, "do."+command)); err == nil {
		do = string(data)
	}
	switch do {
	case "fail":
		fmt.Printf(`{"cniVersion":"1.0.0","code":7,"msg":"no address left"}`)
		return 1
	case "unavailable":
		fmt.Printf(`{"cniVersion":"1.1.0","code":50,"msg":"agent is down"}`)
		return 1
	case "crash":
		fmt.Fprintln(os.Stderr, "out of cheese")
		return 2
	case "garbage":
		fmt.Println("hello")
		return 0
	case "nothing":
		return 0
	case "no address":
		fmt.Printf(`{"cniVersion":%q,"interfaces":[{"name":"eth0","sandbox":"/x"}]}`, conf.CNIVersion)
		return 0
	case "version":
		fmt.Println(`{"cniVersion":"9.0.0"}`)
		return 0
	case "flood":
		for {
			if _, err := fmt.Println(strings.Repeat("x", 1<<16)); err != nil {
				return 1
			}
		}
	case "wait":
		for {
			if _, err := os.Stat(filepath.Join(conf.Dir, "go on")); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	case "hang":
		child := exec.Command("sleep", "300")
		child.Stdout = os.Stdout
		_ = child.Start()
		f, _ := os.OpenFile(filepath.Join(conf.Dir, "child"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		_, _ = fmt.Fprintln(f, child.Process.Pid)
		time.Sleep(5 * time.Minute)
	}
	switch {
	case command != "ADD":
	case len(conf.PrevResult) > 0:
		fmt.Println(string(conf.PrevResult))
	default:
		fmt.Printf(`{"cniVersion":%q,"interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/x"}],"ips":[`+
			`{"address":"10.9.0.1/16","interface":0},{"address":"10.9.0.5/16","interface":1},{"address":"fd00::5/64","interface":1}]}`, conf.CNIVersion)
	}
	return 0
}

func record(dir, line string) {
	f, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, _ = fmt.Fprintln(f, line)
		_ = f.Close()
	}
}

// fakeNamespaces has a namespace at every path but those that are gone.
type fakeNamespaces struct {
	gone   map[string]bool
	bare   bool         // without the pods' interfaces
	fails  error        // of looking at any
	guards atomic.Int64 // of the node's loopback
}

func (f *fakeNamespaces) inode(path string) (uint64, error) {
	if path == "" || f.gone[path] {
		return 0, errdefs.ErrNotFound
	}
	if f.fails != nil {
		return 0, f.fails
	}
	return 4711, nil
}

func (f *fakeNamespaces) hasLink(path, _ string) bool { return !f.gone[path] && !f.bare }

func (f *fakeNamespaces) loopbackUp(string) error { return nil }

func (f *fakeNamespaces) guardLoopback(context.Context) error { f.guards.Add(1); return nil }

// node is a Network on folders of its own with fake plugins.
type node struct {
	*Network
	t    *testing.T
	dir  string // where the plugins leave what they saw
	conf string
	bin  string
	ns   *fakeNamespaces
}

func newNode(t *testing.T, change ...func(*Options)) *node {
	t.Helper()
	root := t.TempDir()
	n := &node{t: t, dir: filepath.Join(root, "seen"), conf: filepath.Join(root, "net.d"), bin: filepath.Join(root, "bin"), ns: &fakeNamespaces{gone: map[string]bool{}}}
	for _, dir := range []string{n.dir, n.conf, n.bin} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	opts := Options{ConfDir: n.conf, BinDirs: []string{n.bin}, CacheDir: filepath.Join(root, "cache"), OwedDir: filepath.Join(root, "owed"), AddTimeout: 20 * time.Second, DelTimeout: 20 * time.Second}
	for _, c := range change {
		c(&opts)
	}
	network, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	network.ns = n.ns
	n.Network = network
	return n
}

func (n *node) plugins(names ...string) {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Symlink(self, filepath.Join(n.bin, name)); err != nil {
			n.t.Fatal(err)
		}
	}
}

// list is a configuration list of fake plugins; do is JSON of what each plugin does, by type.
func (n *node) list(name, cniVersion string, do map[string]map[string]string, types ...string) string {
	var plugins []string
	for _, typ := range types {
		d, _ := json.Marshal(do[typ])
		plugins = append(plugins, fmt.Sprintf(`{"type":%q,"dir":%q,"do":%s,"capabilities":{"portMappings":true,"bandwidth":true,"ipRanges":true,"dns":true,"io.kubernetes.cri.pod-annotations":false}}`, typ, n.dir, d))
	}
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, cniVersion, name, strings.Join(plugins, ","))
}

func (n *node) write(file, content string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.conf, file), []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// calls are the plugin calls since the last look.
func (n *node) calls() []string {
	n.t.Helper()
	path := filepath.Join(n.dir, "calls")
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	_ = os.Remove(path)
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func (n *node) cached() []string {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.opts.CacheDir, "results", "*"))
	if err != nil {
		n.t.Fatal(err)
	}
	return files
}

// eventually gives what takes that long at most ten times as long, but in `make counts`: the machine may have more to do.
func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	within *= time.Duration(rowsize.Of(10, 1))
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
