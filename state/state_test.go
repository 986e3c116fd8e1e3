package state

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crishim/engine"
	"crishim/internal/atomicfile"
	"crishim/internal/process"
	"crishim/internal/starving"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var errFailedPrecondition = errdefs.ErrFailedPrecondition

func openStore(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(root, filepath.Join(root, "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newTestStore(t testing.TB) *Store {
	return openStore(t, filepath.Join(t.TempDir(), "state"))
}

// filledRoot holds pods a, b, c with a container each.
func filledRoot(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "state")
	s := openStore(t, root)
	for _, name := range []string{"a", "b", "c"} {
		must(t, s.PutPod(samplePod(name)))
		must(t, s.PutContainer(sampleContainer(engine.PodID("pod-"+name), name)))
	}
	must(t, s.Close())
	return root
}

func recordPath(root, kind, name string) string {
	if kind == "pod" {
		return filepath.Join(root, "pods", podKeyName(samplePod(name).Spec.Key)+".json")
	}
	return filepath.Join(root, "containers", containerKeyName(engine.PodID("pod-"+name), engine.ContainerKey{Name: name})+".json")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// Rows: R46 (part)
func TestRecordsComeBackInOrderOfCreation(t *testing.T) {
	root := filledRoot(t)
	temp := filepath.Join(root, "pods", atomicfile.TempPrefix+"x")
	must(t, os.WriteFile(temp, nil, 0o600))
	s := openStore(t, root)
	if _, err := os.Stat(temp); !os.IsNotExist(err) {
		t.Errorf("the temporary file of a crash is still there: %v", err)
	}
	var names []string
	for _, p := range s.Pods() {
		names = append(names, p.Spec.Key.Name)
		if !p.Recorded || p.Status.ID != p.ID {
			t.Errorf("view %+v", p)
		}
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("order %v", names)
	}
	must(t, s.PutPod(samplePod("0")))
	if p, _ := s.PodByKey(samplePod("0").Spec.Key); p.Seq <= s.Containers()[2].Seq {
		t.Errorf("sequence number %d was used before", p.Seq)
	}
	for _, path := range []string{root, filepath.Join(root, "pods"), filepath.Join(root, "run")} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if info, err := os.Stat(recordPath(root, "pod", "a")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("record: %v, %v", info.Mode(), err)
	}
}

func TestPutUpdateDelete(t *testing.T) {
	s := newTestStore(t)
	pod := samplePod("a")
	pod.ID, pod.Phase = "", PhaseIntent
	must(t, s.PutPod(pod))
	if err := s.PutPod(pod); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second put: %v", err)
	}
	if v, ok := s.PodByKey(pod.Spec.Key); !ok || v.State != engine.PodNotReady || v.ID != "" {
		t.Errorf("intent: %+v, %v", v, ok)
	}
	must(t, s.UpdatePodByKey(pod.Spec.Key, func(p *Pod) error {
		p.ID, p.Phase = "abc1", PhaseCreated
		return nil
	}))
	must(t, s.UpdatePod("abc1", func(p *Pod) error { p.Returned = true; return nil }))
	stop := errors.New("stop")
	if err := s.UpdatePod("abc1", func(p *Pod) error { p.Returned = false; return stop }); err != stop {
		t.Errorf("the error of change: %v", err)
	}
	if v, ok := s.Pod("abc1"); !ok || !v.Returned || v.Phase != PhaseCreated {
		t.Errorf("after updates: %+v, %v", v, ok)
	}
	for what, change := range map[string]func(*Pod){
		"another key":    func(p *Pod) { p.Spec.Key.Name = "x" },
		"another engine": func(p *Pod) { p.Engine = "native" },
		"no such phase":  func(p *Pod) { p.Phase = "Odd" },
		"no id":          func(p *Pod) { p.ID = ""; p.Phase = PhaseRunning },
	} {
		if err := s.UpdatePod("abc1", func(p *Pod) error { change(p); return nil }); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.UpdatePod("nope", func(*Pod) error { return nil }); !errdefs.IsNotFound(err) {
		t.Errorf("update of an absent pod: %v", err)
	}
	must(t, s.DeletePod("abc1"))
	must(t, s.DeletePod("abc1"))
	must(t, s.DeletePodByKey(pod.Spec.Key))
	if _, ok := s.Pod("abc1"); ok || len(s.Pods()) != 0 {
		t.Error("a deleted pod is still there")
	}
	if files, err := os.ReadDir(filepath.Join(s.root, "pods")); err != nil || len(files) != 0 {
		t.Errorf("files left: %v, %v", files, err)
	}
}

func TestFindByPrefix(t *testing.T) {
	s := newTestStore(t)
	for _, id := range []string{"abc1", "abc2", "abd"} {
		p := samplePod(id)
		p.ID = engine.PodID(id)
		must(t, s.PutPod(p))
	}
	for prefix, want := range map[string]string{"abc1": "abc1", "abd": "abd", "abd0": "", "x": "", "abc": "", "": ""} {
		v, err := s.FindPod(prefix)
		if string(v.ID) != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", prefix, v.ID, err)
		}
	}
	if _, err := s.FindPod("abc"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ambiguous: %v", err)
	}
	if _, err := s.FindContainer("x"); !errdefs.IsNotFound(err) {
		t.Errorf("absent: %v", err)
	}
}

// Rows: R25
func TestASecondDaemonIsToldWhoHasTheDirectory(t *testing.T) {
	s := newTestStore(t)
	begun := time.Now()
	_, err := Open(s.root, filepath.Join(s.root, "run2"))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begun); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
	must(t, s.Close())
	must(t, openStore(t, s.root).Close())
}

// A daemon with a root directory of its own, as somebody tries one beside the node's, would take that one's sockets and pods.
func TestASecondDaemonDoesNotGetTheRunDirectory(t *testing.T) {
	s := newTestStore(t)
	run := filepath.Join(s.root, "run")
	other := filepath.Join(t.TempDir(), "state")
	if second, err := Open(other, run); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), run) {
		t.Errorf("error %v", err)
		if err == nil {
			must(t, second.Close())
		}
	}
	must(t, s.Close())
	again, err := Open(other, run) // the one that was refused has let go of its root
	must(t, err)
	must(t, again.Close())
}

func TestAReadOnlyStoreChangesNothing(t *testing.T) {
	root := filledRoot(t)
	before := tree(t, root)
	s, err := OpenReadOnly(root)
	must(t, err)
	refused := []error{
		s.PutPod(samplePod("x")), s.DeletePod("pod-a"), s.UpdatePod("pod-a", func(*Pod) error { return nil }),
	}
	for _, err := range refused {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("change: %v", err)
		}
	}
	if len(s.Pods()) != 3 || len(s.Containers()) != 3 {
		t.Error("records are missing")
	}
	must(t, s.Close())
	if after := tree(t, root); after != before {
		t.Errorf("the directory changed:\n%s\n%s", before, after)
	}
}

func tree(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, info.Size(), info.Mode(), info.ModTime().UnixNano())
		}
		return err
	}))
	return b.String()
}

// fullDisk makes writes fail with err until the returned function is called.
func fullDisk(t *testing.T, err error) (free func()) {
	t.Helper()
	var mu sync.Mutex
	full := true
	fails := func(real func(string, []byte, os.FileMode) error) func(string, []byte, os.FileMode) error {
		return func(path string, data []byte, mode os.FileMode) error {
			mu.Lock()
			defer mu.Unlock()
			if full {
				return &os.PathError{Op: "write", Path: path, Err: err}
			}
			return real(path, data, mode)
		}
	}
	write, durably, place := writeFile, writeDurably, placeFile
	writeFile, writeDurably, placeFile = fails(write), fails(durably), fails(place)
	t.Cleanup(func() { writeFile, writeDurably, placeFile = write, durably, place })
	return func() { mu.Lock(); full = false; mu.Unlock() }
}

// Rows: R19
func TestAFullDiskRefusesTheNewAndLetsTheOldEnd(t *testing.T) {
	root := filledRoot(t)
	free := fullDisk(t, unix.ENOSPC) // before the store, whose writer reads writeFile
	s := openStore(t, root)
	t.Cleanup(func() { _ = s.Close() })

	if err := s.PutPod(samplePod("new")); !errdefs.IsResourceExhausted(err) {
		t.Errorf("put: %v", err)
	}
	if _, ok := s.PodByKey(samplePod("new").Spec.Key); ok {
		t.Error("a pod that is not on disk is in the index")
	}
	if err := s.UpdatePod("pod-a", func(p *Pod) error { p.Returned = true; return nil }); !errdefs.IsResourceExhausted(err) {
		t.Errorf("update: %v", err)
	}
	if v, _ := s.Pod("pod-a"); v.Returned {
		t.Error("a refused update changed the index")
	}
	must(t, s.UpdatePod("pod-a", func(p *Pod) error { p.Phase = PhaseStopped; return nil }))
	if v, _ := s.Pod("pod-a"); v.Phase != PhaseStopped {
		t.Error("the way out is blocked by a full disk")
	}
	must(t, s.NoteContainer("ctr-a", func(c *Container) { c.Phase = PhaseRunning }))
	if v, _ := s.Container("ctr-a"); v.Phase != PhaseRunning {
		t.Error("what the engine has done does not count")
	}
	if err := s.NoteContainer("absent", func(*Container) {}); !errdefs.IsNotFound(err) {
		t.Errorf("of no container: %v", err)
	}
	if err := s.WriteError(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("write error %v", err)
	}
	must(t, s.DeletePod("pod-b"))
	free()
	eventually(t, "the stop and the start are on disk", func() bool {
		ro, err := OpenReadOnly(root)
		if err != nil {
			t.Fatal(err)
		}
		v, _ := ro.Pod("pod-a")
		c, _ := ro.Container("ctr-a")
		return v.Phase == PhaseStopped && c.Phase == PhaseRunning && len(ro.Pods()) == 2
	})
	eventually(t, "no write error", func() bool { return s.WriteError() == nil })
}

// A refused creation is the last write for long where no kubelet asks for pods while the runtime is not ready: that there is
// space again is found without one.
//
// Rows: R19 (part)
func TestSpaceIsFoundAgainWithoutAWrite(t *testing.T) {
	free := fullDisk(t, unix.ENOSPC)
	s := newTestStore(t)
	t.Cleanup(func() { _ = s.Close() })
	if err := s.PutPod(samplePod("new")); !errdefs.IsResourceExhausted(err) {
		t.Errorf("put: %v", err)
	}
	s.repeat()
	if err := s.WriteError(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("write error %v", err)
	}
	free()
	eventually(t, "no write error", func() bool { return s.WriteError() == nil })
	if files, err := os.ReadDir(s.pods.dir); err != nil || len(files) != 0 {
		t.Errorf("%d files, %v; want none", len(files), err)
	}
}

// A record is there for the next start as soon as it is written, and waits for no disk; a removal that has begun is worth no
// write at all.
func TestWhatNeedNotOutliveAPowerCutIsNotWaitedFor(t *testing.T) {
	root := filledRoot(t)
	release := stuckDisk(t)
	s := openStore(t, root)
	t.Cleanup(func() { release(); _ = s.Close() })
	intent := samplePod("new")
	intent.ID, intent.Phase = "", PhaseIntent
	must(t, s.PutPod(intent))
	must(t, s.UpdatePod("pod-c", func(p *Pod) error { p.Phase = PhaseStopped; return nil }))
	s.MarkPodRemoving("pod-a")
	s.MarkContainerRemoving("ctr-a")
	s.MarkPodRemoving("absent")
	pod, _ := s.Pod("pod-a")
	ctr, _ := s.Container("ctr-a")
	if pod.Phase != PhaseRemoving || ctr.Phase != PhaseRemoving {
		t.Errorf("in memory: %s and %s", pod.Phase, ctr.Phase)
	}
	must(t, s.DeletePod("pod-a"))
	ro, err := OpenReadOnly(root)
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := ro.PodByKey(intent.Spec.Key); !ok || v.Phase != PhaseIntent {
		t.Errorf("the intent on disk: %v %+v", ok, v)
	}
	if v, _ := ro.Pod("pod-c"); v.Phase != PhaseStopped {
		t.Errorf("the stopped pod on disk: %s", v.Phase)
	}
	if v, _ := ro.Container("ctr-a"); v.Phase != PhaseCreated {
		t.Errorf("the container on disk: %s", v.Phase)
	}
	if _, ok := ro.Pod("pod-a"); ok {
		t.Error("a removed pod is on disk")
	}
}

// Rows: R20
func TestAReadOnlyDiskStillLetsPodsStop(t *testing.T) {
	root := filledRoot(t)
	fullDisk(t, unix.EROFS)
	s := openStore(t, root)
	t.Cleanup(func() { _ = s.Close() })
	if err := s.PutPod(samplePod("new")); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), root) {
		t.Errorf("put: %v", err)
	}
	must(t, s.UpdatePod("pod-a", func(p *Pod) error { p.Phase = PhaseStopping; return nil }))
	if err := s.Close(); err == nil {
		t.Error("Close does not say what was not written")
	}
}

// A daemon that is started again after the disk became read-only serves what runs, as the one before did, and is alone.
//
// Rows: R20 (part)
func TestAStoreOpensOnAReadOnlyDisk(t *testing.T) {
	root := filledRoot(t)
	must(t, unix.Mount(root, root, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	must(t, unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	s := openStore(t, root)
	t.Cleanup(func() { _ = s.Close() })
	if _, ok := s.Pod("pod-a"); !ok {
		t.Error("the pod is not served")
	}
	must(t, s.UpdatePod("pod-a", func(p *Pod) error { p.Phase = PhaseStopping; return nil }))
	if err := s.WriteError(); !errors.Is(err, unix.EROFS) {
		t.Errorf("the disk is said to be well: %v", err)
	}
	if other, err := Open(root, t.TempDir()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second daemon opened it, %v", err)
		_ = other.Close()
	}
}

// Rows: R24 (part)
func TestAfterARebootEveryPodIsNotReady(t *testing.T) {
	root := filledRoot(t)
	s := openStore(t, root)
	if s.Rebooted() {
		t.Error("rebooted without a reboot")
	}
	must(t, s.UpdatePod("pod-a", func(p *Pod) error { p.PID, p.StartTicks = 77, 88; return nil }))
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(root, "boot-id"), []byte("another\n"), 0o600))
	s = openStore(t, root)
	sink := s.Sink("docker")
	sink.Resync(engine.Snapshot{Pods: []engine.PodStatus{{ID: "pod-a", State: engine.PodReady, PID: 77, StartTicks: 88}}})
	v, _ := s.Pod("pod-a")
	if !s.Rebooted() || v.PID != 0 || v.State != engine.PodNotReady || v.Network.IPs == nil {
		t.Errorf("rebooted %v, %+v", s.Rebooted(), v)
	}
	must(t, s.Close())
	if openStore(t, root).Rebooted() {
		t.Error("one reboot was seen twice")
	}
}

func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	s := newTestStore(t)
	must(t, s.PutPod(samplePod("a")))
	sink := s.Sink("docker")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := s.UpdatePod("pod-a", func(p *Pod) error {
				p.Network.IPs = append(slices.Clone(p.Network.IPs), "x")
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			sink.PodChanged(engine.PodStatus{ID: "pod-a", State: engine.PodReady})
			_, _, _ = s.Pods(), s.Containers(), s.ContainersOf("pod-a")
		})
	}
	wg.Wait()
	if v, _ := s.Pod("pod-a"); len(v.Network.IPs) != 21 {
		t.Errorf("%d addresses, want 21", len(v.Network.IPs))
	}
}

func liveProcess(t *testing.T) (pid int, ticks uint64, kill func()) {
	t.Helper()
	cmd := exec.Command("sleep", "100")
	must(t, cmd.Start())
	var once sync.Once
	kill = func() { once.Do(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) }
	t.Cleanup(kill)
	ticks, err := process.StartTicks(cmd.Process.Pid)
	must(t, err)
	return cmd.Process.Pid, ticks, kill
}

// Rows: R16 (part)
func TestAPodIsReadyOnceAndOnlyWithItsOwnProcess(t *testing.T) {
	pid, ticks, kill := liveProcess(t)
	s := newTestStore(t)
	p := samplePod("a")
	p.Phase, p.PID, p.StartTicks = PhaseCreated, pid, ticks
	must(t, s.PutPod(p))
	ready := engine.PodStatus{ID: "pod-a", State: engine.PodReady, PID: pid, StartTicks: ticks}
	notReady := engine.PodStatus{ID: "pod-a", State: engine.PodNotReady}
	state := func(want engine.PodState, when string) {
		t.Helper()
		if v, _ := s.Pod("pod-a"); v.State != want {
			t.Errorf("%s: %s, want %s", when, v.State, want)
		}
	}
	s.ApplyPod(ready)
	state(engine.PodNotReady, "before the networks are attached")
	must(t, s.UpdatePod("pod-a", func(p *Pod) error { p.Phase = PhaseRunning; return nil }))
	state(engine.PodReady, "running")
	s.ApplyPod(notReady)
	state(engine.PodReady, "after a late status from before the start")
	kill()
	s.ApplyPod(notReady)
	state(engine.PodNotReady, "after the process ended")
	s.ApplyPod(ready)
	state(engine.PodNotReady, "after somebody started it again")
}

func TestALateReportOfAPodBeforeItsStartEndsNothing(t *testing.T) {
	s := newTestStore(t)
	must(t, s.PutPod(samplePod("a")))
	s.ApplyPod(engine.PodStatus{ID: "pod-a", State: engine.PodReady, StartedAt: time.Now()})
	s.ApplyPod(engine.PodStatus{ID: "pod-a", State: engine.PodNotReady})
	if v, _ := s.Pod("pod-a"); v.State != engine.PodReady {
		t.Error("the pod is over")
	}
	s.ApplyPod(engine.PodStatus{ID: "pod-a", State: engine.PodNotReady, StartedAt: time.Now()})
	if v, _ := s.Pod("pod-a"); v.State != engine.PodNotReady {
		t.Error("the pod has ended and is READY")
	}
}

// Rows: R16
func TestAPodWhoseProcessIsAnotherIsNotReady(t *testing.T) {
	s := newTestStore(t)
	p := samplePod("a")
	p.PID, p.StartTicks = 4_000_000, 1
	must(t, s.PutPod(p))
	s.ApplyPod(engine.PodStatus{ID: "pod-a", State: engine.PodReady, PID: 4_000_000, StartTicks: 2})
	if v, _ := s.Pod("pod-a"); v.State != engine.PodNotReady {
		t.Error("READY with another process")
	}
}

// An engine that had no descriptor left for /proc does not know when a process began (engine/docker's podStatus then says 0). That
// is no other process, whichever of the record and the status lacks it, and what was known of it stays known.
func TestAProcessWhoseStartTimeCouldNotBeReadIsNoOther(t *testing.T) {
	pid, ticks, _ := liveProcess(t)
	for _, one := range []struct {
		name             string
		recorded, told   uint64
		wantTicks, later uint64
	}{
		{"at a later look", ticks, 0, ticks, ticks},
		{"at the start", 0, ticks, ticks, ticks},
	} {
		t.Run(one.name, func(t *testing.T) {
			s := newTestStore(t)
			p := samplePod("a")
			p.PID, p.StartTicks = pid, one.recorded
			must(t, s.PutPod(p))
			sink := s.Sink("docker")
			sink.PodChanged(engine.PodStatus{ID: "pod-a", State: engine.PodReady, PID: pid, StartTicks: one.recorded, NetNSPath: "/run/ns", CgroupPath: "/pod"})
			told := engine.PodStatus{ID: "pod-a", State: engine.PodReady, PID: pid, StartTicks: one.told}
			sink.PodChanged(told)
			v, _ := s.Pod("pod-a")
			if v.State != engine.PodReady || v.Status.StartTicks != one.wantTicks {
				t.Errorf("the pod is %s, its process began at %d, want %d", v.State, v.Status.StartTicks, one.wantTicks)
			}
			if v.Status.NetNSPath != "/run/ns" || v.Status.CgroupPath != "/pod" {
				t.Errorf("forgotten: namespace %q, cgroup %q", v.Status.NetNSPath, v.Status.CgroupPath)
			}
			told.StartTicks = one.later
			sink.PodChanged(told)
			if v, _ := s.Pod("pod-a"); v.State != engine.PodReady {
				t.Errorf("after another look the pod is %s", v.State)
			}
			told.StartTicks = one.later + 1
			sink.PodChanged(told)
			if v, _ := s.Pod("pod-a"); v.State != engine.PodNotReady {
				t.Errorf("with another process the pod is %s", v.State)
			}
		})
	}
	t.Run("of a container", func(t *testing.T) {
		s := newTestStore(t)
		must(t, s.PutContainer(sampleContainer("pod-a", "c")))
		sink := s.Sink("docker")
		started := time.Unix(200, 0).UTC()
		sink.ContainerChanged(engine.ContainerStatus{ID: "ctr-c", State: engine.ContainerRunning, StartedAt: started, PID: pid, StartTicks: ticks})
		sink.ContainerChanged(engine.ContainerStatus{ID: "ctr-c", State: engine.ContainerRunning, StartedAt: started, PID: pid})
		if v, _ := s.Container("ctr-c"); v.Status.StartTicks != ticks || v.StartTicks != ticks {
			t.Errorf("its process began at %d, in the record at %d, want %d", v.Status.StartTicks, v.StartTicks, ticks)
		}
	})
}

// Where the look at a pod hangs, its engine tells what its list has (engine/docker's inspectOf), which is no process. The process that
// was known stays known: by it the pod is confirmed while the engine is away, and would be NOTREADY beside another engine without it.
func TestAPodOfWhichTheListAloneTellsKeepsItsProcess(t *testing.T) {
	pid, ticks, kill := liveProcess(t)
	s := newTestStore(t)
	p := samplePod("a")
	p.PID, p.StartTicks = pid, ticks
	must(t, s.PutPod(p))
	sink := s.Sink("docker")
	sink.Resync(engine.Snapshot{Pods: []engine.PodStatus{{ID: "pod-a", State: engine.PodReady}}})
	v, _ := s.Pod("pod-a")
	if v.State != engine.PodReady || process.Gone(v.Status.PID, v.Status.StartTicks) {
		t.Errorf("it is %s with process %d, which began at %d", v.State, v.Status.PID, v.Status.StartTicks)
	}
	kill()
	sink.PodChanged(engine.PodStatus{ID: "pod-a", State: engine.PodNotReady})
	if v, _ := s.Pod("pod-a"); v.State != engine.PodNotReady || v.Status.PID != 0 {
		t.Errorf("after its end it is %s with process %d", v.State, v.Status.PID)
	}
}

// What an engine could only list at first has what its look tells later: a pod that has ended is one that was started, whose network is to be
// taken down, not one that somebody is about to start.
func TestALookTellsOfAPodThatWasOnlyListed(t *testing.T) {
	s := newTestStore(t)
	sink := s.Sink("docker")
	key := engine.PodKey{Name: "a", Namespace: "ns", UID: "u"}
	listed := engine.PodStatus{ID: "pod-a", Key: key, State: engine.PodNotReady, Spec: &engine.PodSpec{Key: key}}
	sink.PodChanged(listed)
	if p, _ := s.Pod("pod-a"); p.Phase != PhaseCreated {
		t.Errorf("listed it is %s", p.Phase)
	}
	looked := listed
	looked.StartedAt, looked.Spec = time.Unix(200, 0), &engine.PodSpec{Key: key, CgroupParent: "/kubepods/a"}
	sink.PodChanged(looked)
	if p, _ := s.Pod("pod-a"); p.Phase != PhaseStopped || p.State != engine.PodNotReady || p.Spec.CgroupParent != "/kubepods/a" {
		t.Errorf("after a look it is %s, %s, in the cgroup %q", p.Phase, p.State, p.Spec.CgroupParent)
	}
}

// Every pair of container states: what the engine says second counts only where the arrow exists.
func TestContainerStatesOnlyMoveRight(t *testing.T) {
	const none, created, running, exited, unknown = engine.ContainerState(""), engine.ContainerCreated, engine.ContainerRunning, engine.ContainerExited, engine.ContainerUnknown
	follows := map[engine.ContainerState][]engine.ContainerState{
		none:    {created, running, exited, unknown},
		created: {created, running, exited, unknown},
		running: {running, exited, unknown},
		unknown: {unknown, exited},
		exited:  {exited},
	}
	for from, targets := range follows {
		for _, to := range []engine.ContainerState{none, created, running, exited, unknown, "ODD"} {
			got := advance(engine.ContainerStatus{State: from}, engine.ContainerStatus{State: to}).State
			want := from
			if slices.Contains(targets, to) {
				want = to
			}
			if from == none && to == "ODD" {
				want = to // a new engine state is a mistake of the engine; it is shown, not hidden
			}
			if got != want {
				t.Errorf("%q then %q: %q, want %q", from, to, got, want)
			}
		}
	}
}

// Rows: R04 (part)
func TestAnExitIsWrittenOnceAndKept(t *testing.T) {
	s := newTestStore(t)
	must(t, s.PutContainer(sampleContainer("pod-a", "c")))
	sink := s.Sink("docker")
	started, finished := time.Unix(200, 0).UTC(), time.Unix(300, 0).UTC()
	sink.ContainerChanged(engine.ContainerStatus{ID: "ctr-c", State: engine.ContainerRunning, StartedAt: started, PID: 9, StartTicks: 3})
	sink.ContainerChanged(engine.ContainerStatus{ID: "ctr-c", State: engine.ContainerExited, FinishedAt: finished, ExitCode: 3, Reason: engine.ReasonError})
	// Late, doubled and contradicting news.
	sink.ContainerChanged(engine.ContainerStatus{ID: "ctr-c", State: engine.ContainerRunning, PID: 9})
	sink.ContainerChanged(engine.ContainerStatus{ID: "ctr-c", State: engine.ContainerExited, FinishedAt: finished.Add(time.Hour), ExitCode: 0, Reason: engine.ReasonCompleted})
	sink.ContainerRemoved("ctr-c")
	check := func(v ContainerView) {
		t.Helper()
		if v.State != engine.ContainerExited || v.ExitCode != 3 || v.Status.ExitCode != 3 || !v.FinishedAt.Equal(finished) ||
			!v.StartedAt.Equal(started) || v.Reason != engine.ReasonError || v.PID != 0 {
			t.Errorf("%+v", v)
		}
	}
	v, _ := s.Container("ctr-c")
	check(v)
	eventually(t, "the exit is on disk", func() bool {
		ro, err := OpenReadOnly(s.root)
		must(t, err)
		v, _ := ro.Container("ctr-c")
		return !v.FinishedAt.IsZero()
	})
	must(t, s.Close())
	s = openStore(t, s.root)
	s.Sink("docker").Resync(engine.Snapshot{})
	v, _ = s.Container("ctr-c")
	check(v)
}

// Rows: R46 (part), R48 (part)
func TestNewsOfAnExitThatCorrectsIt(t *testing.T) {
	exited := func(code int32, reason string) engine.ContainerStatus {
		return engine.ContainerStatus{State: engine.ContainerExited, ExitCode: code, Reason: reason, FinishedAt: time.Unix(1, 0)}
	}
	for _, c := range []struct {
		what        string
		old, next   engine.ContainerStatus
		code        int32
		reason      string
		startedLate bool
	}{
		{"the true exit after a lost one", exited(ExitUnknown, ReasonUnknown), exited(0, engine.ReasonCompleted), 0, engine.ReasonCompleted, false},
		{"an OOM kill told late", exited(137, engine.ReasonError), exited(137, engine.ReasonOOMKilled), 137, engine.ReasonOOMKilled, false},
		{"an OOM kill of another exit", exited(1, engine.ReasonError), exited(137, engine.ReasonOOMKilled), 1, engine.ReasonError, false},
		{"an OOM kill forgotten", exited(137, engine.ReasonOOMKilled), exited(137, engine.ReasonError), 137, engine.ReasonOOMKilled, false},
	} {
		got := advance(c.old, c.next)
		if got.ExitCode != c.code || got.Reason != c.reason {
			t.Errorf("%s: %d %s", c.what, got.ExitCode, got.Reason)
		}
	}
	jumped := advance(engine.ContainerStatus{State: engine.ContainerRunning, StartedAt: time.Unix(900, 0)}, exited(0, ""))
	if jumped.FinishedAt.Before(jumped.StartedAt) {
		t.Error("finished before it started after a clock step")
	}
}

// Rows: R47 (part)
func TestWhatIsMissingFromAResyncIsGoneButStays(t *testing.T) {
	s := newTestStore(t)
	must(t, s.PutPod(samplePod("a")))
	for _, name := range []string{"run", "created", "done"} {
		must(t, s.PutContainer(sampleContainer("pod-a", name)))
	}
	intent := sampleContainer("pod-a", "intent")
	intent.ID, intent.Phase = "", PhaseIntent
	must(t, s.PutContainer(intent))
	other := samplePod("other")
	other.Engine = "native"
	must(t, s.PutPod(other))
	s.ApplyPod(engine.PodStatus{ID: "pod-other", State: engine.PodReady})
	s.ApplyPod(engine.PodStatus{ID: "pod-a", State: engine.PodReady})
	s.ApplyContainer(engine.ContainerStatus{ID: "ctr-run", State: engine.ContainerRunning, StartedAt: time.Now()})
	s.ApplyContainer(engine.ContainerStatus{ID: "ctr-done", State: engine.ContainerExited, ExitCode: 5, FinishedAt: time.Now()})

	old := engine.Snapshot{Taken: time.Now().Add(-time.Minute)}
	s.Sink("docker").Resync(old)
	if v, _ := s.Container("ctr-run"); v.State != engine.ContainerRunning {
		t.Error("a listing that began before the container was made ended it")
	}
	if !s.Synced("docker") || s.Synced("native") {
		t.Error("synced is wrong")
	}
	s.Sink("docker").Resync(engine.Snapshot{Taken: time.Now()})
	for id, code := range map[engine.ContainerID]int32{"ctr-run": ExitUnknown, "ctr-created": ExitUnknown, "ctr-done": 5} {
		v, ok := s.Container(id)
		if !ok || v.State != engine.ContainerExited || v.ExitCode != code || v.FinishedAt.IsZero() {
			t.Errorf("%s: %+v, %v", id, v, ok)
		}
	}
	if v, _ := s.Container("ctr-run"); v.Reason != ReasonUnknown {
		t.Errorf("reason %q", v.Reason)
	}
	if v, ok := s.ContainerByKey("pod-a", intent.Spec.Key); !ok || v.State != engine.ContainerUnknown {
		t.Errorf("intent: %+v, %v", v, ok)
	}
	if v, _ := s.Pod("pod-a"); v.State != engine.PodNotReady {
		t.Error("a pod that is gone is READY")
	}
	if v, _ := s.Pod("pod-other"); v.State != engine.PodReady {
		t.Error("another engine's pod was touched")
	}
	if len(s.ContainersOf("pod-a")) != 4 {
		t.Error("something was dropped")
	}
}

func TestObjectsWithoutARecordAreServedAndRecordedByTheFirstUpdate(t *testing.T) {
	s := newTestStore(t)
	sink := s.Sink("docker")
	key := engine.PodKey{Name: "old", Namespace: "ns", UID: "u"}
	sink.Resync(engine.Snapshot{
		Pods: []engine.PodStatus{
			{ID: "p2", Key: key, State: engine.PodNotReady, CreatedAt: time.Unix(2, 0), Spec: &engine.PodSpec{}},
			{ID: "p1", Key: key, State: engine.PodReady, CreatedAt: time.Unix(1, 0), Spec: &engine.PodSpec{Hostname: "h"}},
			{ID: "p0", Key: key, State: engine.PodReady},
		},
		Containers: []engine.ContainerStatus{{ID: "c1", Pod: "p1", Key: engine.ContainerKey{Name: "c"}, State: engine.ContainerRunning, Spec: &engine.ContainerSpec{LogPath: "/l"}}},
	})
	pods := s.Pods()
	if len(pods) != 2 || pods[0].ID != "p1" || pods[0].State != engine.PodReady || pods[0].Recorded || pods[0].Spec.Hostname != "h" || pods[0].Spec.Key != key {
		t.Fatalf("%+v", pods)
	}
	c, _ := s.Container("c1")
	if c.State != engine.ContainerRunning || c.Spec.LogPath != "/l" || c.PodID != "p1" {
		t.Errorf("%+v", c)
	}
	// Two pods of one key, as a crashed shim leaves them, can both be recorded and brought to their end.
	for _, id := range []engine.PodID{"p1", "p2"} {
		must(t, s.UpdatePod(id, func(p *Pod) error { p.Phase = PhaseStopping; return nil }))
	}
	must(t, s.UpdateContainer("c1", func(c *Container) error { c.Phase = PhaseStopping; return nil }))
	must(t, s.Close())
	s = openStore(t, s.root)
	if len(s.Pods()) != 2 || len(s.Containers()) != 1 || len(s.Quarantined()) != 0 {
		t.Errorf("after a restart: %d pods, %d containers, %+v", len(s.Pods()), len(s.Containers()), s.Quarantined())
	}
	must(t, s.DeletePod("p1"))
	if v, ok := s.PodByKey(key); !ok || v.ID != "p2" {
		t.Errorf("%+v, %v", v, ok)
	}
	must(t, s.DeletePod("p2"))
	// A late status does not bring a deleted pod back.
	s.Sink("docker").PodChanged(engine.PodStatus{ID: "p2", Key: key, Spec: &engine.PodSpec{}})
	if len(s.Pods()) != 0 {
		t.Error("a deleted pod came back")
	}
}

func TestAnUnrecordedObjectLeavesWithItsEngine(t *testing.T) {
	s := newTestStore(t)
	sink := s.Sink("docker")
	sink.PodChanged(engine.PodStatus{ID: "p", Key: engine.PodKey{Name: "p"}, Spec: &engine.PodSpec{}})
	sink.PodRemoved("p")
	sink.ContainerChanged(engine.ContainerStatus{ID: "c", Key: engine.ContainerKey{Name: "p"}, Pod: "p", State: engine.ContainerRunning, Spec: &engine.ContainerSpec{}})
	sink.Resync(engine.Snapshot{})
	if len(s.Pods())+len(s.Containers()) != 0 {
		t.Error("it stayed")
	}
}

// The engine's event of a new object may come before the engine's answer, and the answer may be another object where a
// left-over of the same key was still there.
func TestTheIDMayComeFromTheEventOrTheAnswer(t *testing.T) {
	key := samplePod("a").Spec.Key
	status := func(id engine.PodID, state engine.PodState) engine.PodStatus {
		return engine.PodStatus{ID: id, Key: key, State: state, Spec: &engine.PodSpec{}}
	}
	commit := func(t *testing.T, s *Store) {
		t.Helper()
		must(t, s.UpdatePodByKey(key, func(p *Pod) error { p.ID, p.Phase = "new", PhaseRunning; return nil }))
		s.ApplyPod(status("new", engine.PodReady))
		if v, ok := s.Pod("new"); !ok || !v.Recorded || v.State != engine.PodReady || len(s.Pods()) != 1 {
			t.Errorf("%+v, %v, %d pods", v, ok, len(s.Pods()))
		}
		must(t, s.Close())
		if v, ok := openStore(t, s.root).Pod("new"); !ok || v.Phase != PhaseRunning {
			t.Errorf("after a restart: %+v, %v", v, ok)
		}
	}
	intend := func(t *testing.T) (*Store, engine.Sink) {
		t.Helper()
		s := newTestStore(t)
		p := samplePod("a")
		p.ID, p.Phase = "", PhaseIntent
		must(t, s.PutPod(p))
		return s, s.Sink("docker")
	}
	t.Run("the answer first", func(t *testing.T) {
		s, _ := intend(t)
		commit(t, s)
	})
	t.Run("the event first", func(t *testing.T) {
		s, sink := intend(t)
		sink.PodChanged(status("new", engine.PodNotReady))
		if v, ok := s.PodByKey(key); !ok || v.ID != "new" || v.Phase != PhaseIntent {
			t.Errorf("%+v, %v", v, ok)
		}
		commit(t, s)
	})
	t.Run("a left-over first", func(t *testing.T) {
		s, sink := intend(t)
		sink.PodChanged(status("old", engine.PodReady))
		sink.PodRemoved("old")
		sink.PodChanged(status("new", engine.PodNotReady))
		commit(t, s)
	})
	t.Run("a crash before the answer", func(t *testing.T) {
		s, _ := intend(t)
		must(t, s.Close())
		s = openStore(t, s.root)
		s.Sink("docker").Resync(engine.Snapshot{Pods: []engine.PodStatus{status("new", engine.PodNotReady)}})
		commit(t, s)
	})
	t.Run("the event while the record is written", func(t *testing.T) {
		s, sink := intend(t)
		must(t, s.UpdatePodByKey(key, func(p *Pod) error {
			sink.PodChanged(status("new", engine.PodNotReady))
			return nil
		}))
		eventually(t, "the id is on disk", func() bool {
			ro, err := OpenReadOnly(s.root)
			must(t, err)
			_, ok := ro.Pod("new")
			return ok
		})
		commit(t, s)
	})
	t.Run("another engine's object of the key", func(t *testing.T) {
		s, _ := intend(t)
		s.Sink("native").PodChanged(status("foreign", engine.PodReady))
		if v, _ := s.PodByKey(key); v.ID != "" {
			t.Errorf("took id %s", v.ID)
		}
	})
}

// The engine tells late of a container whose making failed, when another of its key is being made: what became of the one is
// not what the other is.
//
// Rows: R12 (part)
func TestAContainerIsNotWhatAnotherOfItsKeyWas(t *testing.T) {
	for _, newFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("told of the new one before its record: %v", newFirst), func(t *testing.T) {
			s := newTestStore(t)
			c := sampleContainer("pod-a", "a")
			c.ID, c.Phase = "", PhaseIntent
			must(t, s.PutPod(samplePod("a")))
			must(t, s.PutContainer(c))
			sink := s.Sink(c.Engine)
			status := func(id engine.ContainerID) engine.ContainerStatus {
				return engine.ContainerStatus{ID: id, Pod: c.PodID, PodKey: c.Spec.PodKey, Key: c.Spec.Key, State: engine.ContainerCreated, Spec: &c.Spec}
			}
			sink.ContainerChanged(status("old"))
			sink.ContainerRemoved("old")
			if newFirst {
				sink.ContainerChanged(status("new"))
			}
			must(t, s.UpdateContainerByKey(c.PodID, c.Spec.Key, func(c *Container) error { c.ID, c.Phase = "new", PhaseCreated; return nil }))
			s.ApplyContainer(status("new"))
			check := func(s *Store) {
				t.Helper()
				if v, ok := s.Container("new"); !ok || v.State != engine.ContainerCreated || !v.FinishedAt.IsZero() || v.ExitCode != 0 || v.Reason != "" || v.Message != "" {
					t.Errorf("%v: %s, finished %v with %d %q %q", ok, v.State, v.FinishedAt, v.ExitCode, v.Reason, v.Message)
				}
			}
			check(s)
			must(t, s.Close())
			check(openStore(t, s.root))
		})
	}
}

func TestEventsTellALifeInOrder(t *testing.T) {
	s := newTestStore(t)
	sub := s.Subscribe(100)
	intent := samplePod("a")
	intent.ID, intent.Phase = "", PhaseIntent
	must(t, s.PutPod(intent))
	s.Sink("docker").PodChanged(engine.PodStatus{ID: "pod-a", Key: intent.Spec.Key, Spec: &engine.PodSpec{}})
	must(t, s.UpdatePodByKey(intent.Spec.Key, func(p *Pod) error { p.ID, p.Phase = "pod-a", PhaseCreated; return nil }))
	s.ApplyPod(engine.PodStatus{ID: "pod-a", State: engine.PodReady})
	must(t, s.UpdatePod("pod-a", func(p *Pod) error { p.Phase = PhaseRunning; return nil }))
	must(t, s.PutContainer(sampleContainer("pod-a", "c")))
	s.ApplyContainer(engine.ContainerStatus{ID: "ctr-c", State: engine.ContainerCreated})
	s.ApplyContainer(engine.ContainerStatus{ID: "ctr-c", State: engine.ContainerExited, StartedAt: time.Now(), ExitCode: 1})
	must(t, s.UpdatePod("pod-a", func(p *Pod) error { p.Phase = PhaseStopping; return nil }))
	must(t, s.DeleteContainer("ctr-c"))
	must(t, s.DeletePod("pod-a"))
	want := []string{
		"CREATED pod-a ", "STARTED pod-a ", "CREATED pod-a ctr-c", "STARTED pod-a ctr-c", "STOPPED pod-a ctr-c",
		"STOPPED pod-a ", "DELETED pod-a ctr-c", "DELETED pod-a ",
	}
	sub.Close()
	var got []string
	for ev := range sub.Events() {
		got = append(got, fmt.Sprintf("%s %s %s", ev.Type, ev.Pod, ev.Container))
		if ev.Type == EventStopped && ev.Container != "" && (len(ev.Containers) != 1 || ev.Containers[0].ExitCode != 1 || ev.PodView.State != engine.PodReady) {
			t.Errorf("snapshot %+v", ev)
		}
		if ev.Type == EventDeleted && (ev.PodFound == (ev.Container == "") || len(ev.Containers) != 0) {
			t.Errorf("snapshot of a deletion %+v", ev)
		}
	}
	if !slices.Equal(got, want) || sub.Err() != nil {
		t.Errorf("got  %q\nwant %q\n%v", got, want, sub.Err())
	}
}

// Rows: R47 (part)
func TestAReaderThatFallsBehindIsClosedAlone(t *testing.T) {
	s := newTestStore(t)
	slow, fast := s.Subscribe(2), s.Subscribe(100)
	for i := range 4 {
		must(t, s.PutPod(samplePod(strconv.Itoa(i))))
	}
	for range 2 {
		<-slow.Events()
	}
	if _, open := <-slow.Events(); open || !errdefs.IsResourceExhausted(slow.Err()) {
		t.Errorf("open %v, %v", open, slow.Err())
	}
	slow.Close()
	if len(fast.Events()) != 8 {
		// Each pod is created and, by its record, ready.
		t.Errorf("%d events", len(fast.Events()))
	}
	must(t, s.Close())
	for range fast.Events() {
	}
	if !errdefs.IsUnavailable(fast.Err()) || !errdefs.IsUnavailable(s.Subscribe(1).Err()) {
		t.Errorf("after Close: %v", fast.Err())
	}
}

func TestHealthIsToldAndKept(t *testing.T) {
	s := newTestStore(t)
	if h := s.Health("docker"); h.Ready || h.Reason == "" {
		t.Errorf("before the first report: %+v", h)
	}
	var told []string
	s.OnHealth(func(name string, h engine.Health) { told = append(told, fmt.Sprint(name, h.Ready)) })
	s.OnImages(func(name string) { told = append(told, name) })
	sink := s.Sink("docker")
	sink.Health(engine.Health{Ready: true})
	sink.ImagesChanged()
	if !s.Health("docker").Ready || !slices.Equal(told, []string{"dockertrue", "docker"}) {
		t.Errorf("%v", told)
	}
	go sink.Resync(engine.Snapshot{})
	must(t, s.WaitSynced(t.Context(), "docker"))
}

func TestViewsAreSharedUntilSomethingChanges(t *testing.T) {
	s := newTestStore(t)
	must(t, s.PutPod(samplePod("a")))
	first, second := s.Pods(), s.Pods()
	if &first[0] != &second[0] {
		t.Error("a List made a new slice without a change")
	}
	must(t, s.UpdatePod("pod-a", func(p *Pod) error { p.Returned = true; return nil }))
	if first[0].Returned || !s.Pods()[0].Returned {
		t.Error("an old view changed, or a new one did not")
	}
}

// R42: ListContainers at 500 pods with 3 containers each, right after a change.
func BenchmarkListAfterAChange(b *testing.B) {
	place, settle := placeFile, settleFiles
	placeFile = func(string, []byte, os.FileMode) error { return nil }
	settleFiles = func(...string) error { return nil }
	defer func() { placeFile, settleFiles = place, settle }()
	s := openStore(b, filepath.Join(b.TempDir(), "state"))
	for i := range 500 {
		must(b, s.PutPod(samplePod(strconv.Itoa(i))))
		for j := range 3 {
			must(b, s.PutContainer(sampleContainer(engine.PodID("pod-"+strconv.Itoa(i)), fmt.Sprintf("%d-%d", i, j))))
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		s.ApplyContainer(engine.ContainerStatus{ID: "ctr-1-1", State: engine.ContainerRunning})
		if len(s.Containers()) != 1500 {
			b.Fatal("containers are missing")
		}
	}
	must(b, s.Close())
}

// A daemon that has no descriptor left does not start, and takes no record for a bad one.
//
// Rows: R21 (part)
func TestARecordThatCannotBeOpenedNowIsNotABadOne(t *testing.T) {
	root := filledRoot(t)
	var err error
	starving.Opening(t, unix.O_NOFOLLOW, unix.O_CREAT, func() {
		var s *Store
		if s, err = Open(root, filepath.Join(root, "run")); err == nil {
			_ = s.Close()
		}
	})
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("the store was opened: %v", err)
	}
	s := openStore(t, root)
	t.Cleanup(func() { _ = s.Close() })
	if pods, bad := s.Pods(), s.Quarantined(); len(pods) != 3 || len(bad) != 0 {
		t.Errorf("%d pods, and %+v set aside", len(pods), bad)
	}
}

// What nobody waits for is settled together, however often one record is written.
func TestManyWritesAreSettledByOne(t *testing.T) {
	s := openStore(t, t.TempDir())
	pod := samplePod("p")
	must(t, s.PutPod(pod))
	before := runtime.NumGoroutine()
	for range 50 {
		must(t, s.UpdatePod(pod.ID, func(*Pod) error { return nil }))
	}
	if now := runtime.NumGoroutine(); now > before+5 {
		t.Errorf("%d goroutines, there were %d", now, before)
	}
}

// CRI's user is that of the first process at its start: one that gives up root later (gosu, su-exec) does not change it.
func TestTheUserIsThatOfTheStart(t *testing.T) {
	first := engine.ContainerStatus{ID: "c", State: engine.ContainerRunning, StartedAt: time.Now(), PID: 1, User: &engine.User{UID: 0}}
	later := first
	later.User = &engine.User{UID: 999}
	if got := advance(first, later); got.User.UID != 0 {
		t.Errorf("the user has become %d", got.User.UID)
	}
}

// crishim verify and crishim state read beside the daemon: a record that went between the look at the folder and at the file is
// none that cannot be read.
func TestARecordThatIsRemovedMeanwhileIsNotABadOne(t *testing.T) {
	root := filledRoot(t)
	s := openStore(t, root)
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			p := samplePod(fmt.Sprintf("brief-%d", i%10))
			if err := errors.Join(s.PutPod(p), s.DeletePod(p.ID)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 2000 {
		ro, err := OpenReadOnly(root)
		if err != nil {
			t.Error(err)
			break
		}
		bad := ro.Quarantined()
		_ = ro.Close()
		if len(bad) != 0 {
			t.Errorf("%+v", bad)
			break
		}
	}
	close(stop)
	writing.Wait()
}
