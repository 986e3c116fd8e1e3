// Package harness runs crishim from outside, as root on a Linux host: a private Docker Engine or the daemon's own, CNI plugins, a registry on
// loopback with images of its own, the daemon as a subprocess, CRI clients, pod configurations as the kubelet makes them,
// and the gates that tell whether anything was left behind.
//
// A test package calls Main from TestMain. The tests then run in network and mount namespaces of their own, so that
// bridges, NAT rules, sysctls and mounts cannot meet the host's, and what a crash leaves there goes with them. Each
// test calls Shared for the node that all of them use, or StartDocker, NewCNI and StartShim for one that it may break.
// Whatever is started is stopped by the test's cleanup, which also checks that no process, mount, cgroup or file stays.
//
// It imports nothing of the daemon: what it knows of crishim is its command line, its configuration file and its sockets.
package harness

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// T is what the harness needs of a test: *testing.T has it, and so has the Session that outlives single tests.
type T interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// Require skips the test, with the reason, where this machine cannot run it.
func Require(t testing.TB) {
	t.Helper()
	if reason := missing(); reason != "" {
		t.Skip(reason)
	}
}

// missing is why the end-to-end tests cannot run here, "" where they can. `make test` installs what can be installed.
var missing = sync.OnceValue(func() string {
	if os.Geteuid() != 0 {
		return "end-to-end tests need root"
	}
	if testing.Short() {
		return "end-to-end tests are left out by -short"
	}
	for _, program := range []string{"iptables", "ip", "go"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Sprintf("end-to-end tests need %s on PATH: run `make test`, which installs it", program)
		}
	}
	return missingEngine()
})

// Main runs the tests of a package in network and mount namespaces of their own and closes the session after them.
func Main(m *testing.M) {
	if os.Getenv(limitedVariable) != "" {
		fmt.Fprintln(os.Stderr, "starting a daemon with limits:", becomeLimited())
		os.Exit(1)
	}
	flag.Parse() // testing.Short is asked before m.Run
	if missing() == "" && os.Getenv(insideVariable) == "" {
		if err := session.prepare(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(reexecInNamespaces())
	}
	if os.Getenv(insideVariable) != "" {
		if err := prepareNamespaces(); err != nil {
			fmt.Fprintln(os.Stderr, "preparing the namespaces of the tests:", err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if !session.close() && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// session outlives single tests: the shared node lives in it.
var session Session

// Session is a T whose cleanup comes after the last test. Where it fails during a test, that test fails.
type Session struct {
	current  T
	cleanups []func()
	failed   bool
}

// Helper does nothing.
func (s *Session) Helper() {}

// Name is short: it goes into folder names.
func (s *Session) Name() string { return "session" }

// Logf writes to the current test, or to standard error after the last one.
func (s *Session) Logf(format string, args ...any) {
	if s.current != nil {
		s.current.Logf(format, args...)
		return
	}
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// Errorf fails the current test, or the whole package after the last one.
func (s *Session) Errorf(format string, args ...any) {
	s.failed = true
	if s.current != nil {
		s.current.Errorf(format, args...)
		return
	}
	fmt.Fprintf(os.Stderr, "FAIL: "+format+"\n", args...)
}

// Fatalf ends the current test.
func (s *Session) Fatalf(format string, args ...any) {
	s.failed = true
	if s.current != nil {
		s.current.Fatalf(format, args...)
	}
	panic(fmt.Sprintf(format, args...))
}

// Cleanup runs f after the last test.
func (s *Session) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

// run starts something of the session on behalf of a test, which fails if that does. Tests that share run one after another.
func (s *Session) run(t T, f func()) {
	if s.current != nil {
		f()
		return
	}
	s.current = t
	defer func() { s.current = nil }()
	f()
}

// prepare builds and fetches, while the network is still the host's, what the tests need of it.
func (s *Session) prepare() (err error) {
	defer func() {
		if failure := recover(); failure != nil { // Fatalf without a test
			err = fmt.Errorf("preparing the end-to-end tests: %v", failure)
		}
	}()
	testServer(s)
	BusyboxFile(s)
	cniPlugins(s)
	nativeHelper(s)
	if !Native() {
		DockerEngine(s, os.Getenv(engineVariable))
		if !hasSysResource() {
			ociWrapper(s)
		}
	}
	// The daemon is built where a test wants it, in the variant that it wants; its modules are fetched now.
	return goTool(root(), nil, "list", "-deps", "./cmd/shim")
}

func (s *Session) close() bool {
	for len(s.cleanups) > 0 {
		last := s.cleanups[len(s.cleanups)-1]
		s.cleanups = s.cleanups[:len(s.cleanups)-1]
		last()
	}
	return !s.failed
}

// Node is a machine with everything that a kubelet would find on it.
type Node struct {
	// Docker is nil where the tests run on the native engine.
	Docker   *Docker
	Registry *Registry
	CNI      *CNI
	Shim     *Shim
}

var shared *Node

// Shared is the node of all tests that break nothing of it, started by the first that asks.
func Shared(t *testing.T) *Node {
	t.Helper()
	Require(t)
	session.run(t, func() {
		if shared != nil {
			return
		}
		shared = NewNode(&session, DockerOptions{}, ShimOptions{})
	})
	if shared == nil {
		t.Fatalf("the shared node did not start: the first test that asked for it says why")
	}
	if !shared.Shim.Running() {
		t.Fatalf("the shared shim ended: see %s", shared.Shim.LogFile)
	}
	return shared
}

// NewNode is a node for one test, which may break it.
func NewNode(t T, docker DockerOptions, shim ShimOptions) *Node {
	t.Helper()
	return NewNodeOn(t, CNIOptions{}, docker, shim)
}

// NewNodeOn is NewNode on another network.
func NewNodeOn(t T, network CNIOptions, docker DockerOptions, shim ShimOptions) *Node {
	t.Helper()
	node := &Node{Registry: SharedRegistry(t)}
	if !Native() {
		node.Docker = StartDocker(t, docker)
	}
	node.CNI = NewCNI(t, network)
	node.Shim = StartShim(t, node.Docker, node.CNI, shim)
	return node
}

// Pull pulls an image of the registry through the shim, once, and returns its reference.
func (n *Node) Pull(t T, repository string) string {
	t.Helper()
	ref := n.Registry.Ref(repository)
	n.Shim.PullOnce(t, ref)
	return ref
}

// ID is a short random name.
func ID() string {
	random := make([]byte, 4)
	_, _ = rand.Read(random) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(random)
}

// WorkDir makes a folder with a short name (sockets go into it) on a file system that overlay can use as its upper layer, removed
// by the cleanup: under $E2E_DIR, /var/tmp, /tmp or the checkout, whichever first is one.
func WorkDir(t T, prefix string) string {
	t.Helper()
	dir := filepath.Join(workRoot(t), "ce2e-"+prefix+"-"+ID())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatalf("making a folder for the test: %v", err)
	}
	t.Cleanup(func() {
		if os.Getenv("E2E_KEEP") != "" {
			t.Logf("kept %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the test's folder: %v", err)
		}
	})
	return dir
}

func workRoot(t T) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("E2E_DIR"), "/var/tmp", "/tmp", cacheDir()} {
		var fs unix.Statfs_t
		if dir == "" || unix.Statfs(dir, &fs) != nil {
			continue
		}
		if fs.Type != unix.OVERLAYFS_SUPER_MAGIC && fs.Type != unix.TMPFS_MAGIC {
			return dir
		}
	}
	t.Fatalf("no folder on a real file system for a Docker Engine: set E2E_DIR")
	return ""
}

// patience is how many times as long as usual things may take: `make counts` and `make soak` have the machine for themselves, elsewhere
// a limit of time only tells what hangs from what waits for a busy machine.
func patience() time.Duration {
	if os.Getenv("E2E_COUNTS") == "full" || os.Getenv("E2E_SOAK") != "" {
		return 1
	}
	return 3
}

// Eventually polls until condition is true and fails the test, naming what was waited for and the last error, after limit, or
// what patience makes of it.
func Eventually(t T, limit time.Duration, what string, condition func() error) {
	t.Helper()
	limit *= patience()
	deadline := time.Now().Add(limit)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Run runs a command of this machine and returns its output; the test fails with it where the command does.
func Run(t T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// within is a context for one call, given up by the cleanup at the latest.
func within(t T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}
