package enginetest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
)

// Fixture is an engine for one test of the suite, and what the suite must know of its surroundings. The test leaves no
// pod and no container in it.
type Fixture struct {
	// Engine is not being watched: the suite does that, one Watch after another where several tests share an engine.
	Engine engine.Engine
	// Image is a reference by tag that the store holds; its programs are those of Commands.
	Image    string
	Commands Commands
	// PauseImage, CgroupParent and Handler go into the pods' specs.
	PauseImage   string
	CgroupParent string
	Handler      string
	// RealProcesses says that processes can be seen in /proc of this machine and network namespaces in its file system.
	RealProcesses bool

	// The rest may be nil or empty; the tests that need it are skipped then.

	// Pullable is a reference that PullImage finds and the suite may remove.
	Pullable string
	// Removable is a reference in the store that the suite may remove; without one it takes Pullable.
	Removable string
	// Resources reads what is in effect for a container.
	Resources func(t *testing.T, id engine.ContainerID) engine.Resources
	// Forget removes a container behind the engine interface's back.
	Forget func(t *testing.T, id engine.ContainerID)
	// Gap runs during while the engine's events are lost, and lets them come again.
	Gap func(t *testing.T, during func())
}

// Commands are the programs the suite runs.
type Commands struct {
	// Run ends with 0 on SIGTERM, Stubborn only by SIGKILL; Cat copies input to output; Missing does not exist.
	Run, Stubborn, Cat, Missing []string
	// Tick writes "tick 0", "tick 1", … some milliseconds apart until stopped.
	Tick []string
	// Exit ends with the code.
	Exit func(code int) []string
	// Print writes a line to each stream and ends with 0. The words hold no spaces.
	Print func(stdout, stderr string) []string
	// Lines writes the lines 1 to n and ends with 0.
	Lines func(n int) []string
	// Sleep ends with 0 after the seconds; the number stands in its command line.
	Sleep func(seconds int) []string
	// Hold ends at once and leaves a child that keeps the output open for the seconds.
	Hold func(seconds int) []string
	// Hostname writes the variable HOSTNAME as its environment has it; nil where programs have no environment.
	Hostname []string
}

// ShellCommands are for images with a POSIX shell, sleep, cat and seq.
func ShellCommands() Commands {
	sh := func(format string, args ...any) []string { return []string{"sh", "-c", fmt.Sprintf(format, args...)} }
	return Commands{
		Run:      sh("trap 'exit 0' TERM; while :; do sleep 0.05; done"),
		Stubborn: sh("trap '' TERM; while :; do sleep 1; done"),
		Cat:      []string{"cat"},
		Missing:  []string{"/nonexistent/program"},
		Tick:     sh("trap 'exit 0' TERM; n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.02; done"),
		Exit:     func(code int) []string { return sh("exit %d", code) },
		Print:    func(stdout, stderr string) []string { return sh("echo %s; echo %s >&2", stdout, stderr) },
		Lines:    func(n int) []string { return []string{"seq", "1", fmt.Sprint(n)} },
		Sleep:    func(seconds int) []string { return []string{"sleep", fmt.Sprint(seconds)} },
		Hold:     func(seconds int) []string { return sh("sleep %d & exit 0", seconds) },
		Hostname: sh("env | grep ^HOSTNAME= || echo none"),
	}
}

// MemoryCommands are for Memory.
func MemoryCommands() Commands {
	number := func(name string) func(int) []string {
		return func(n int) []string { return []string{name, fmt.Sprint(n)} }
	}
	return Commands{
		Run: []string{"run"}, Stubborn: []string{"stubborn"}, Cat: []string{"cat"}, Missing: []string{"missing"},
		Tick: []string{"tick"}, Exit: number("exit"), Lines: number("lines"), Sleep: number("sleep"), Hold: number("hold"),
		Print: func(stdout, stderr string) []string { return []string{"print", stdout, stderr} },
	}
}

// Run holds the engine to every promise of package engine. It makes a Fixture for each test.
func Run(t *testing.T, fixture func(t *testing.T) Fixture) {
	for _, group := range []struct {
		name  string
		tests map[string]func(*suite)
	}{
		{"pods", podTests},
		{"containers", containerTests},
		{"logs", logTests},
		{"execs", execTests},
		{"watch", watchTests},
		{"images", imageTests},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, name := range slices.Sorted(maps.Keys(group.tests)) {
				t.Run(name, func(t *testing.T) {
					s := &suite{T: t, Fixture: fixture(t), seen: newRecorder()}
					s.start()
					group.tests[name](s)
				})
			}
		})
	}
}

// slack is what a busy machine may add to a time that is measured; patience bounds every wait of the suite. Where the machine
// is emulated (make test-vm), a time only tells what is done from what is not: the shortest that slack is held against is half a
// minute.
var slack, patience = times()

func times() (slack, patience time.Duration) {
	if os.Getenv("CRISHIM_VM") != "" {
		return 25 * time.Second, 2 * time.Minute
	}
	return 6 * time.Second, 20 * time.Second
}

// suite is one test.
type suite struct {
	*testing.T
	Fixture
	seen  *recorder
	image engine.Image
	made  int
}

// start watches the engine and waits until it can be used.
func (s *suite) start() {
	s.Helper()
	s.watch(s.seen)
	image, err := s.Engine.Image(s.Context(), s.Image)
	s.ok(err, "find the fixture's image")
	s.image = *image
}

// watch delivers to sink until the test ends, and waits for the first snapshot.
func (s *suite) watch(sink *recorder) {
	s.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Engine.Watch(ctx, sink) }()
	stop := func() {
		select {
		case err := <-ended:
			s.Errorf("Watch returned before its context ended: %v", err)
			return
		default:
		}
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			s.Errorf("Watch goes on after its context ended")
		}
	}
	s.Cleanup(stop)
	s.eventually("the engine is ready and listed", func() bool { return sink.ready() && sink.resyncs() > 0 })
}

// ok ends the test on an error.
func (s *suite) ok(err error, what string) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// class wants an error for which is says yes.
func (s *suite) class(err error, is func(error) bool, what string) {
	s.Helper()
	if err == nil || !is(err) {
		s.Errorf("%s: error %v has another class", what, err)
	}
}

func (s *suite) eventually(what string, holds func() bool) {
	s.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("never happened: %s", what)
		}
	}
}

// within runs f and wants it to take between least and most.
func (s *suite) within(least, most time.Duration, what string, f func()) {
	s.Helper()
	begun := time.Now()
	f()
	if took := time.Since(begun); took < least || took > most {
		s.Errorf("%s took %v; want %v to %v", what, took, least, most)
	}
}

func (s *suite) name(prefix string) string {
	s.made++
	return fmt.Sprintf("%s-%d", prefix, s.made)
}

func (s *suite) podSpec() *engine.PodSpec {
	name := s.name("pod")
	return &engine.PodSpec{
		Handler:      s.Handler,
		Key:          engine.PodKey{Name: name, Namespace: "enginetest", UID: fmt.Sprintf("%s-%d", name, time.Now().UnixNano())},
		Hostname:     name,
		PauseImage:   s.PauseImage,
		CgroupParent: s.CgroupParent,
		LogDirectory: s.TempDir(),
		Namespaces:   engine.Namespaces{Network: engine.NamespacePod, PID: engine.NamespaceContainer, IPC: engine.NamespacePod},
	}
}

// createPod makes a pod that the test's end takes away.
func (s *suite) createPod(spec *engine.PodSpec) engine.PodID {
	s.Helper()
	id, err := s.Engine.CreatePod(s.Context(), spec)
	s.ok(err, "create a pod")
	if id == "" {
		s.Fatal("a pod without an id")
	}
	s.Cleanup(func() { s.clearPod(id) })
	return id
}

func (s *suite) clearPod(id engine.PodID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.Context()), patience)
	defer cancel()
	for what, f := range map[string]func(context.Context, engine.PodID) error{"stop": s.Engine.StopPod, "release": s.Engine.ReleaseNetNS} {
		if err := f(ctx, id); err != nil {
			s.Errorf("clean up: %s pod: %v", what, err)
		}
	}
	if err := s.Engine.RemovePod(ctx, id); err != nil {
		s.Errorf("clean up: remove pod: %v", err)
	}
}

// runPod makes and starts a pod.
func (s *suite) runPod() (engine.PodID, *engine.PodSpec) {
	s.Helper()
	spec := s.podSpec()
	id := s.createPod(spec)
	_, err := s.Engine.StartPod(s.Context(), id, spec)
	s.ok(err, "start a pod")
	return id, spec
}

// containerSpec is of a container with a log in a pod of its own.
func (s *suite) containerSpec(command []string) *engine.ContainerSpec {
	s.Helper()
	id, pod := s.runPod()
	return s.containerSpecIn(id, pod, command)
}

func (s *suite) containerSpecIn(pod engine.PodID, podSpec *engine.PodSpec, command []string) *engine.ContainerSpec {
	name := s.name("container")
	return &engine.ContainerSpec{
		Pod: pod, PodKey: podSpec.Key, Key: engine.ContainerKey{Name: name},
		Image:        engine.ImageRef{Ref: s.Image, ID: s.image.ID},
		Command:      command,
		LogDirectory: podSpec.LogDirectory,
		LogPath:      filepath.Join(podSpec.LogDirectory, name+".log"),
		Namespaces:   podSpec.Namespaces,
		CgroupParent: podSpec.CgroupParent,
	}
}

// createContainer makes a container that the test's end takes away.
func (s *suite) createContainer(spec *engine.ContainerSpec) engine.ContainerStatus {
	s.Helper()
	st, err := s.Engine.CreateContainer(s.Context(), spec)
	s.ok(err, "create a container")
	if st.ID == "" || st.State != engine.ContainerCreated {
		s.Fatalf("created: %+v", st)
	}
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.Context()), patience)
		defer cancel()
		if err := s.Engine.RemoveContainer(ctx, st.ID); err != nil {
			s.Errorf("clean up: remove container: %v", err)
		}
	})
	return st
}

// runContainer makes and starts a container.
func (s *suite) runContainer(spec *engine.ContainerSpec) engine.ContainerID {
	s.Helper()
	st := s.createContainer(spec)
	_, err := s.Engine.StartContainer(s.Context(), st.ID, spec)
	s.ok(err, "start a container")
	return st.ID
}

func (s *suite) status(id engine.ContainerID) engine.ContainerStatus {
	s.Helper()
	st, err := s.Engine.ContainerStatus(s.Context(), id)
	s.ok(err, "status of a container")
	return st
}

// exited waits for the container's end.
func (s *suite) exited(id engine.ContainerID) engine.ContainerStatus {
	s.Helper()
	var st engine.ContainerStatus
	s.eventually("the container exits", func() bool {
		st = s.status(id)
		return st.State == engine.ContainerExited
	})
	return st
}

// recorder is a sink that keeps what it was told.
type recorder struct {
	mu         sync.Mutex
	order      []string
	health     engine.Health
	synced     int
	pods       map[engine.PodID]engine.PodStatus
	containers map[engine.ContainerID]engine.ContainerStatus
	images     int
}

func newRecorder() *recorder {
	return &recorder{pods: map[engine.PodID]engine.PodStatus{}, containers: map[engine.ContainerID]engine.ContainerStatus{}}
}

func (r *recorder) note(what string, change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = append(r.order, what)
	change()
}

func (r *recorder) Health(h engine.Health) { r.note("health", func() { r.health = h }) }

func (r *recorder) Resync(snap engine.Snapshot) {
	r.note("resync", func() {
		r.synced++
		clear(r.pods)
		clear(r.containers)
		for _, p := range snap.Pods {
			r.pods[p.ID] = p
		}
		for _, c := range snap.Containers {
			r.containers[c.ID] = c
		}
	})
}

func (r *recorder) PodChanged(st engine.PodStatus) {
	r.note("change", func() { r.pods[st.ID] = st })
}

func (r *recorder) ContainerChanged(st engine.ContainerStatus) {
	r.note("change", func() { r.containers[st.ID] = st })
}

func (r *recorder) PodRemoved(id engine.PodID) { r.note("removal", func() { delete(r.pods, id) }) }

func (r *recorder) ContainerRemoved(id engine.ContainerID) {
	r.note("removal", func() { delete(r.containers, id) })
}

func (r *recorder) ImagesChanged() { r.note("images", func() { r.images++ }) }

func (r *recorder) ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.health.Ready
}

func (r *recorder) resyncs() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.synced
}

func (r *recorder) imageChanges() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.images
}

func (r *recorder) pod(id engine.PodID) (engine.PodStatus, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st, ok := r.pods[id]
	return st, ok
}

func (r *recorder) container(id engine.ContainerID) (engine.ContainerStatus, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st, ok := r.containers[id]
	return st, ok
}

func (r *recorder) first(n int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.order[:min(n, len(r.order))])
}

func isCanceled(err error) bool {
	return errdefs.IsCanceled(err) || errdefs.IsDeadlineExceeded(err)
}
