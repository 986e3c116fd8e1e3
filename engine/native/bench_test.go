package native

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/monitor"
)

// sink keeps what it is told.
type sink struct {
	mu      sync.Mutex
	synced  chan struct{}
	once    sync.Once
	changes map[engine.ContainerID][]engine.ContainerStatus
}

func (s *sink) Health(engine.Health)                {}
func (s *sink) Resync(engine.Snapshot)              { s.once.Do(func() { close(s.synced) }) }
func (s *sink) PodChanged(engine.PodStatus)         {}
func (s *sink) PodRemoved(engine.PodID)             {}
func (s *sink) ContainerRemoved(engine.ContainerID) {}
func (s *sink) ImagesChanged()                      {}
func (s *sink) ContainerChanged(st engine.ContainerStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes[st.ID] = append(s.changes[st.ID], st)
}

// exits are the ends that were told of a container.
func (s *sink) exits(id engine.ContainerID) (told []engine.ContainerStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.changes[id] {
		if st.State == engine.ContainerExited {
			told = append(told, st)
		}
	}
	return told
}

// serve watches the engine, as the daemon does, until die.
func (b *bench) serve(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	b.sink = &sink{synced: make(chan struct{}), changes: map[engine.ContainerID][]engine.ContainerStatus{}}
	ended := make(chan error, 1)
	e := b.Engine
	go func() { ended <- e.Watch(ctx, b.sink) }()
	b.unwatch = func() { cancel(); <-ended }
	select {
	case <-b.sink.synced:
	case <-time.After(30 * time.Second):
		t.Fatal("the engine does not get ready")
	}
}

// die is the daemon's death: nothing is stopped, monitors and containers go on.
func (b *bench) die(t testing.TB) {
	t.Helper()
	if b.Engine == nil {
		return
	}
	if b.unwatch != nil {
		b.unwatch()
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	b.Engine, b.unwatch = nil, nil
}

// back is its next start.
func (b *bench) back(t testing.TB) {
	t.Helper()
	b.open(t)
	b.serve(t)
}

// serving is a bench whose engine is watched.
func serving(t testing.TB) *bench {
	t.Helper()
	b := newBench(t)
	b.serve(t)
	return b
}

var podCount int

func (b *bench) podSpec(t testing.TB, change ...func(*engine.PodSpec)) *engine.PodSpec {
	podCount++
	name := fmt.Sprintf("p%d", podCount)
	s := &engine.PodSpec{
		Key:      engine.PodKey{Name: name, Namespace: "native", UID: fmt.Sprintf("%s-%d", name, time.Now().UnixNano())},
		Hostname: name, CgroupParent: testCgroup, LogDirectory: t.TempDir(),
		Namespaces: engine.Namespaces{Network: engine.NamespacePod, PID: engine.NamespaceContainer, IPC: engine.NamespacePod},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func sharedPIDs(s *engine.PodSpec) { s.Namespaces.PID = engine.NamespacePod }

// runPod makes a pod that the test's end takes away, if it is there still.
func (b *bench) runPod(t testing.TB, change ...func(*engine.PodSpec)) (engine.PodID, *engine.PodSpec) {
	t.Helper()
	s := b.podSpec(t, change...)
	id, err := b.CreatePod(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.StartPod(t.Context(), id, s); err != nil {
		t.Fatal(err)
	}
	return id, s
}

// removePod is what the server does to end one.
func (b *bench) removePod(t testing.TB, id engine.PodID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 40*time.Second)
	defer cancel()
	if err := b.StopPod(ctx, id); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	if err := b.ReleaseNetNS(ctx, id); err != nil {
		t.Errorf("release the network namespace: %v", err)
	}
	if err := b.RemovePod(ctx, id); err != nil {
		t.Errorf("remove pod: %v", err)
	}
}

func (b *bench) containerSpec(t testing.TB, pod engine.PodID, s *engine.PodSpec, name, script string) *engine.ContainerSpec {
	t.Helper()
	image, err := b.Image(t.Context(), b.image)
	if err != nil {
		t.Fatal(err)
	}
	return &engine.ContainerSpec{
		Pod: pod, PodKey: s.Key, Key: engine.ContainerKey{Name: name}, Image: engine.ImageRef{Ref: b.image, ID: image.ID},
		Command: []string{"sh", "-c", script}, LogDirectory: s.LogDirectory, LogPath: filepath.Join(s.LogDirectory, name+".log"),
		Namespaces: s.Namespaces, CgroupParent: s.CgroupParent,
	}
}

// run runs a script in a new container. One that traps SIGTERM does so by then: before, a stop would do something else.
func (b *bench) run(t *testing.T, pod engine.PodID, s *engine.PodSpec, name, script string) engine.ContainerID {
	t.Helper()
	spec := b.containerSpec(t, pod, s, name, script)
	st, err := b.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if st, err = b.StartContainer(t.Context(), st.ID, spec); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(script, "trap ") {
		eventually(t, 20*time.Second, "container "+name+" traps SIGTERM", func() bool { return traps(st.PID, unix.SIGTERM) })
	}
	return st.ID
}

// traps says whether a shell catches or ignores a signal. Before there is the shell its process is a Go program, which catches nearly
// all, SIGURG too, of which no script here knows.
func traps(pid int, signal unix.Signal) bool {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	var trapped uint64
	for line := range strings.Lines(string(data)) {
		name, mask, _ := strings.Cut(line, ":")
		if set, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64); err == nil && (name == "SigCgt" || name == "SigIgn") {
			trapped |= set
		}
	}
	has := func(signal unix.Signal) bool { return trapped>>(signal-1)&1 == 1 }
	return has(signal) && !has(unix.SIGURG)
}

func (b *bench) status(t testing.TB, id engine.ContainerID) engine.ContainerStatus {
	t.Helper()
	st, err := b.ContainerStatus(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (b *bench) podState(t *testing.T, id engine.PodID) engine.PodState {
	t.Helper()
	st, err := b.PodStatus(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return st.State
}

// exited waits for a container's end.
func (b *bench) exited(t testing.TB, id engine.ContainerID) engine.ContainerStatus {
	t.Helper()
	eventually(t, 20*time.Second, "container "+string(id)+" exits", func() bool { return b.status(t, id).State == engine.ContainerExited })
	return b.status(t, id)
}

// output is that of both streams.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// sh runs a script in a running container and returns what it wrote.
func (b *bench) sh(t *testing.T, id engine.ContainerID, script string) string {
	t.Helper()
	var out output
	code, err := b.Exec(t.Context(), id, &engine.ExecSpec{Command: []string{"sh", "-c", script}, Streams: engine.Streams{Stdout: &out, Stderr: &out}})
	if err != nil || code != 0 {
		t.Fatalf("exec %q: code %d, %v, %s", script, code, err, out.String())
	}
	return out.String()
}

// eventually gives what takes that long at most five times as long: the machine may have more to do.
func eventually(t testing.TB, patience time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// monitorOf reads which process is a pod's monitor.
func (b *bench) monitorPID(t *testing.T, id engine.PodID) int {
	t.Helper()
	record, err := monitor.ReadRecord(filepath.Join(b.opts.RunDir, "monitors", string(id)))
	if err != nil {
		t.Fatal(err)
	}
	return record.PID
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// runs says whether a process does, zombies excepted.
func runs(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// lines are the messages of a container's log.
func lines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || fields[2] != "F" {
			t.Fatalf("a torn line: %q", line)
		}
		out = append(out, fields[3])
	}
	return out
}

// processes are those that have a word in their command line.
func processes(t *testing.T, word string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		var pid int
		if _, err := fmt.Sscan(entry.Name(), &pid); err != nil || !runs(pid) {
			continue
		}
		if data, err := os.ReadFile("/proc/" + entry.Name() + "/cmdline"); err == nil && strings.Contains(string(data), word) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// BenchmarkContainer is the life of a container in a pod that is there: each step alone, in ms.
func BenchmarkContainer(b *testing.B) {
	n := serving(b)
	pod, spec := n.runPod(b)
	took := map[string]time.Duration{}
	step := func(name string, do func() error) {
		began := time.Now()
		if err := do(); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		took[name] += time.Since(began)
	}
	for b.Loop() {
		s := n.containerSpec(b, pod, spec, "c", "trap 'exit 0' TERM; while :; do sleep 1000; done")
		var id engine.ContainerID
		step("create", func() error {
			st, err := n.CreateContainer(b.Context(), s)
			id = st.ID
			return err
		})
		step("start", func() error { _, err := n.StartContainer(b.Context(), id, s); return err })
		step("stop", func() error { return n.StopContainer(b.Context(), id, 0) })
		step("remove", func() error { return n.RemoveContainer(b.Context(), id) })
	}
	for name, d := range took {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), name+"-ms/op")
	}
	n.removePod(b, pod)
}
