package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// Many callers at once, each with pods of its own and with its hands on the others', on a node where the daemon is killed,
// dockerd, or the native engine's monitors, are killed, stopped and restarted, plugins fail, the daemon's disk is full and containers vanish. No call takes long or fails in a way that is
// not in the contract; no container goes back to a state that it was seen to have left; containers that nobody touches live
// through all of it with every line of their log; and in the end everything is gone. E2E_SOAK is the time (`make soak`).
//
// Rows: R12 (part), R19 (part), R45
func TestSoak(t *testing.T) {
	length := 12 * time.Second
	if text := os.Getenv("E2E_SOAK"); text != "" {
		parsed, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("E2E_SOAK: %v", err)
		}
		length = parsed
	}
	report := soakReport{Seed: rand.Uint64(), began: time.Now(), asked: length}
	t.Logf("seed %d", report.Seed)
	harness.Require(t)
	t.Cleanup(func() { report.write(t) }) // the last cleanup: what the gates find counts
	root := ext4(t, filepath.Join(harness.WorkDir(t, "s"), "root"), 128<<20)
	n := newNodeWith(t, harness.DockerOptions{LiveRestore: true}, map[string]any{"root_dir": root.dir})
	report.Engine = "native"
	if n.Docker != nil {
		report.Engine, _ = n.Docker.Version() // "" where it cannot be had
	}
	s := &soak{t: t, n: n, root: root, image: n.Registry.Ref(harness.Busybox), faults: map[string]int{}, end: time.Now().Add(length), report: &report}
	s.warm()
	n.NoLeaks(t)
	alive := n.RunPod(t, untouched, inDockersCgroup(n))
	chatty := alive.RunChatty(s.image, 20)
	s.end = time.Now().Add(length) // anew: on a busy machine the warming up alone takes so long

	var clients sync.WaitGroup
	for i := range uint64(6) {
		c := &soakClient{soak: s, random: rand.New(rand.NewPCG(report.Seed, i))}
		clients.Go(func() {
			for time.Now().Before(s.end) && !t.Failed() {
				c.onePod()
			}
		})
	}
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() { s.eachMinute(stop) })
	s.breakThings(rand.New(rand.NewPCG(report.Seed, 1<<32)))
	clients.Wait()
	close(stop)
	watcher.Wait()
	s.tell()
	s.collect(alive.ID)

	list, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Id != alive.ID {
		t.Errorf("in the end there are pods %v, %v; want %s alone", list.GetItems(), err, alive.ID)
	}
	chatty.CheckSurvived()
	report.Ops, report.Excused, report.Faults = s.ops.Load(), s.excused.Load(), maps.Clone(s.faults)
	if report.Ops == 0 || len(s.faults) == 0 {
		t.Errorf("nothing was done: %d calls, faults %v", report.Ops, s.faults)
	}
}

// soak is what the clients and the one who breaks things share.
type soak struct {
	t      *testing.T
	n      *harness.Node
	root   *disk // the daemon's root_dir: records, and the native engine's images and containers
	image  string
	end    time.Time
	report *soakReport

	containers   sync.Map // id → *soakContainer, of all clients
	ops, excused atomic.Int64
	// broken is how many faults are under way, whole when the last one ended.
	broken atomic.Int64
	whole  atomic.Int64
	faults map[string]int // guarded by mu
	mu     sync.Mutex
}

// settle is how long after a fault a call may still fail by it: a client's connection tries again after a pause.
const settle = 20 * time.Second

// disturbed says that a fault is under way, or was a moment ago.
func (s *soak) disturbed() bool {
	return s.broken.Load() > 0 || time.Since(time.Unix(0, s.whole.Load())) < settle
}

// call does one call and judges its error: a legal one is nil, another fails the test unless a fault excuses it.
func (s *soak) call(what string, limit time.Duration, do func(context.Context) error, legal ...codes.Code) error {
	disturbed := s.disturbed()
	c, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := do(c)
	s.ops.Add(1)
	code := harness.Code(err)
	for _, l := range legal {
		if code == l {
			return nil
		}
	}
	switch {
	case err == nil:
	case strings.Contains(err.Error(), "panic") || code == codes.Unimplemented || code == codes.InvalidArgument || code == codes.DataLoss:
		s.t.Errorf("%s: %v", what, err)
	case disturbed || s.disturbed():
		s.excused.Add(1)
	default:
		s.t.Errorf("%s while nothing was broken: %v", what, err)
	}
	return err
}

// warm has everything once that is made once: connections, threads, profiles' own memory.
func (s *soak) warm() {
	for i := range uint64(3) {
		(&soakClient{soak: s, random: rand.New(rand.NewPCG(s.report.Seed, 100+i))}).onePod()
	}
}

// collect removes what nobody owns, as the kubelet does: a dockerd that hung may make a pod long after its caller was told
// that it failed. Such a pod is NOTREADY.
func (s *soak) collect(alive string) {
	time.Sleep(2 * time.Second) // what dockerd still had to do
	list, err := s.n.Shim.Runtime.ListPodSandbox(ctx(s.t), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		s.t.Error(err)
	}
	for _, pod := range list.GetItems() {
		if pod.Id == alive {
			continue
		}
		if pod.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			s.t.Errorf("pod %s is READY, and its maker was told that it failed or that it is removed", pod.Metadata.Name)
		}
		if err := s.n.End(pod.Id, 3); err != nil {
			s.t.Errorf("pod %s, which nobody owns: %v", pod.Metadata.Name, err)
		}
	}
}

// eachMinute prints a line a minute.
func (s *soak) eachMinute(stop <-chan struct{}) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.tell()
		case <-stop:
			return
		}
	}
}

func (s *soak) tell() {
	s.mu.Lock()
	faults := 0
	for _, n := range s.faults {
		faults += n
	}
	s.mu.Unlock()
	s.t.Logf("%v: %d calls (%d excused by a fault), %d faults; the daemon: %v", time.Since(s.report.began).Round(time.Second), s.ops.Load(), s.excused.Load(), faults, s.n.Shim.Usage())
}

// soakReport is the last soak as internal/reliability shows it.
type soakReport struct {
	Date    string         `json:"date"`
	Length  string         `json:"length"`
	Passed  bool           `json:"passed"`
	Engine  string         `json:"engine"`
	Kernel  string         `json:"kernel"`
	Race    bool           `json:"race"`
	Seed    uint64         `json:"seed"`
	Ops     int64          `json:"ops"`
	Excused int64          `json:"excused"`
	Faults  map[string]int `json:"faults"`

	began time.Time
	asked time.Duration
}

// write writes the report where E2E_SOAK_REPORT says.
func (r *soakReport) write(t *testing.T) {
	t.Helper()
	file := os.Getenv("E2E_SOAK_REPORT")
	if file == "" {
		return
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Error(err)
	}
	r.Date, r.Length, r.Passed = r.began.UTC().Format(time.DateOnly), r.asked.String(), !t.Failed()
	r.Kernel, r.Race = unix.ByteSliceToString(host.Release[:]), os.Getenv("E2E_RACE") != ""
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
		t.Errorf("writing the report: %v", err)
	}
	t.Logf("report: %s", fmt.Sprint(string(data)))
}

// inDockersCgroup leaves no cgroup per pod, which the kubelet would remove.
func inDockersCgroup(n *harness.Node) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = n.CgroupParent() }
}
