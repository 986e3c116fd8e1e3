package native

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"crishim/engine"
	"crishim/engine/native/monitor"
)

// The daemon dies and returns: what runs goes on, what ended meanwhile is told exactly, everything works again.
//
// Rows: R01 (part), R04 (part), R05 (part), R29 (part)
func TestADaemonThatReturnsFindsWhatItLeft(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	shared, sharedSpec := b.runPod(t, sharedPIDs)
	ticking := b.run(t, pod, spec, "ticking", "trap 'exit 0' TERM; n=0; while :; do echo $n; n=$((n+1)); sleep 0.01; done")
	inShared := b.run(t, shared, sharedSpec, "shared", "trap 'exit 4' TERM; while :; do sleep 0.05; done")
	gate := filepath.Join(t.TempDir(), "gate")
	var ending []engine.ContainerID
	codes := []int{0, 1, 42, 255}
	for _, code := range codes {
		s := b.containerSpec(t, pod, spec, "ends"+strconv.Itoa(code), "while [ ! -e /gate/gate ]; do sleep 0.02; done; echo bye; exit "+strconv.Itoa(code))
		s.Mounts = []engine.Mount{{ContainerPath: "/gate", HostPath: filepath.Dir(gate), Propagation: engine.PropagationPrivate}}
		st, err := b.CreateContainer(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.StartContainer(t.Context(), st.ID, s); err != nil {
			t.Fatal(err)
		}
		ending = append(ending, st.ID)
	}
	created, err := b.CreateContainer(t.Context(), b.containerSpec(t, pod, spec, "created", "exit 7"))
	if err != nil {
		t.Fatal(err)
	}
	before := b.status(t, ticking)
	killed := b.run(t, pod, spec, "killed", "sleep 1000")
	victim := b.status(t, killed).PID
	b.die(t)

	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kill(t, victim)
	left := time.Now()
	exits := filepath.Join(b.opts.RootDir, "exits")
	eventually(t, 20*time.Second, "the exits are recorded while the daemon is down", func() bool {
		return !slices.ContainsFunc(append(ending, killed), func(id engine.ContainerID) bool {
			_, err := os.Stat(filepath.Join(exits, string(id)))
			return err != nil
		})
	})
	recorded := time.Now()
	b.back(t)

	for _, id := range []engine.PodID{pod, shared} {
		if state := b.podState(t, id); state != engine.PodReady {
			t.Errorf("pod %s is %s", id, state)
		}
	}
	if st := b.status(t, ticking); st.State != engine.ContainerRunning || st.PID != before.PID || st.StartTicks != before.StartTicks || !st.StartedAt.Equal(before.StartedAt) {
		t.Errorf("%+v, before %+v", st, before)
	}
	for i, id := range append(ending, killed) {
		want := append(codes, 137)[i]
		st := b.status(t, id)
		if st.State != engine.ContainerExited || int(st.ExitCode) != want || st.FinishedAt.Before(left.Add(-time.Second)) || st.FinishedAt.After(recorded) {
			t.Errorf("want %d between %v and %v: %+v", want, left, recorded, st)
		}
	}
	if got := b.sh(t, ticking, "echo hello"); got != "hello\n" {
		t.Errorf("exec says %q", got)
	}
	if _, err := b.StartContainer(t.Context(), created.ID, nil); err != nil {
		t.Error(err)
	}
	if st := b.exited(t, created.ID); st.ExitCode != 7 {
		t.Errorf("%+v", st)
	}
	for id, want := range map[engine.ContainerID]int32{ticking: 0, inShared: 4} {
		if err := b.StopContainer(t.Context(), id, 10*time.Second); err != nil {
			t.Error(err)
		}
		if st := b.status(t, id); st.ExitCode != want {
			t.Errorf("want %d: %+v", want, st)
		}
		eventually(t, 10*time.Second, "the end is told", func() bool { return len(b.sink.exits(id)) > 0 })
	}
	for _, id := range []engine.ContainerID{ticking, inShared} {
		if told := b.sink.exits(id); len(told) != 1 {
			t.Errorf("the end was told %d times", len(told))
		}
	}
	for n, line := range lines(t, filepath.Join(spec.LogDirectory, "ticking.log")) {
		if line != strconv.Itoa(n) {
			t.Fatalf("line %d is %q", n, line)
		}
	}
	if err := b.RemoveContainer(t.Context(), ticking); err != nil {
		t.Error(err)
	}
	// What had ended while nobody looked has no mounts any more, without being removed.
	eventually(t, 10*time.Second, "the roots of ended containers are unmounted", func() bool {
		return !slices.ContainsFunc(ending, b.roots.Present)
	})
	b.removePod(t, pod)
	b.removePod(t, shared)
}

// A daemon that dies right after a start, before that is on record, leaves the time of it to the monitor.
//
// Rows: R01 (part), R29 (part)
func TestTheTimeOfAStartThatACrashLeftUnrecordedIsKnown(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	gate := filepath.Join(t.TempDir(), "gate")
	s := b.containerSpec(t, pod, spec, "c", "while [ ! -e /gate/gate ]; do sleep 0.02; done; exit 3")
	s.Mounts = []engine.Mount{{ContainerPath: "/gate", HostPath: filepath.Dir(gate), Propagation: engine.PropagationPrivate}}
	st, err := b.CreateContainer(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	started, err := b.StartContainer(t.Context(), st.ID, s)
	if err != nil {
		t.Fatal(err)
	}
	exit, dirs := b.exitFile(st.ID), []string{b.containerRecords.dir, b.containerRecords.copies}
	b.die(t)
	for _, dir := range dirs {
		damage(t, filepath.Join(dir, string(st.ID)), func(good []byte) []byte {
			return reseal(regexp.MustCompile(`"startedAt":"[^"]*",`).ReplaceAll(good, nil))
		})
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the exit is recorded while the daemon is down", func() bool {
		_, err := os.Stat(exit)
		return err == nil
	})
	for _, when := range []string{"first", "second"} { // the monitor tells but the first
		b.back(t)
		if st := b.exited(t, st.ID); st.ExitCode != 3 || !st.StartedAt.Equal(started.StartedAt) {
			t.Errorf("the %s daemon after it: started at %v, now %+v", when, started.StartedAt, st)
		}
		b.die(t)
	}
	b.back(t)
	b.removePod(t, pod)
}

// A daemon that is told to end while it starts kills nothing.
//
// Rows: R01 (part)
func TestADaemonThatEndsWhileItStartsKillsNothing(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	b.die(t)
	b.open(t)
	gone, cancel := contextThatEnded()
	defer cancel()
	if err := b.Watch(gone, &sink{synced: make(chan struct{}), changes: map[engine.ContainerID][]engine.ContainerStatus{}}); err == nil {
		t.Error("Watch goes on")
	}
	b.serve(t)
	if st := b.status(t, id); st.State != engine.ContainerRunning {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
}

// A process that was made and not started, as a crash between the two leaves it, is made anew by the next start: also if it died
// meanwhile, and if the daemon died again while it took it back.
//
// Rows: R01 (part), R11 (part)
func TestAStartThatACrashCutIsMadeAgain(t *testing.T) {
	b := serving(t)
	for name, meanwhile := range map[string]func(*testing.T, *monitor.Client, monitor.State, string){
		"it waits": func(*testing.T, *monitor.Client, monitor.State, string) {},
		"it was taken back": func(t *testing.T, client *monitor.Client, st monitor.State, exit string) {
			if err := deleteIn(t.Context(), client, st.ID); err != nil {
				t.Fatal(err)
			}
			if !exists(exit) {
				t.Error("no end of it is on record: this shows nothing")
			}
		},
		"it died": func(t *testing.T, _ *monitor.Client, st monitor.State, exit string) {
			kill(t, st.PID)
			eventually(t, 10*time.Second, "its end is on record", func() bool { return exists(exit) })
		},
	} {
		t.Run(name, func(t *testing.T) { b.cutStart(t, meanwhile) })
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func (b *bench) cutStart(t *testing.T, meanwhile func(*testing.T, *monitor.Client, monitor.State, string)) {
	pod, spec := b.runPod(t)
	s := b.containerSpec(t, pod, spec, "c", "exit 3")
	st, err := b.CreateContainer(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.container(st.ID)
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.pod(pod)
	if err != nil {
		t.Fatal(err)
	}
	b.beginStart(c)
	if err := b.saveContainer(c); err != nil {
		t.Fatal(err)
	}
	oci, err := b.readRawBundle(st.ID)
	if err != nil {
		t.Fatal(err)
	}
	created, err := b.createProcess(t.Context(), p, string(st.ID), oci, logOf(s))
	if err != nil {
		t.Fatal(err)
	}
	dir, exit := b.monitorDir(pod), b.exitFile(st.ID)
	b.die(t)
	client, err := monitor.Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	meanwhile(t, client, created, exit)
	client.Close()
	b.back(t)
	if st := b.status(t, st.ID); st.State != engine.ContainerCreated {
		t.Errorf("%+v", st)
	}
	b.die(t)
	b.back(t)
	if _, err := b.StartContainer(t.Context(), st.ID, s); err != nil {
		t.Fatal(err)
	}
	if st := b.exited(t, st.ID); st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
}

// A pod whose PID namespace died has ended, for the next daemon too.
//
// Rows: R03 (part), S60 (part)
func TestThePauseProcessIsKilled(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t, sharedPIDs)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	st, err := b.PodStatus(t.Context(), pod)
	if err != nil || st.PID == 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	kill(t, st.PID)
	eventually(t, 10*time.Second, "the pod has ended", func() bool { return b.podState(t, pod) == engine.PodNotReady })
	if st := b.exited(t, id); st.ExitCode != 137 {
		t.Errorf("%+v", st)
	}
	b.die(t)
	b.back(t)
	if state := b.podState(t, pod); state != engine.PodNotReady {
		t.Errorf("the pod is %s after a restart", state)
	}
	b.removePod(t, pod)
}
