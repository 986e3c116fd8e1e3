package state

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"crishim/engine"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// oldPID and oldTicks are of a process of the boot before.
const oldPID, oldTicks = 4_000_000, 1

// rebootedRoot holds pods a, b, c of the boot before, which ran.
func rebootedRoot(t *testing.T) string {
	t.Helper()
	root := filledRoot(t)
	s := openStore(t, root)
	for _, id := range []engine.PodID{"pod-a", "pod-b", "pod-c"} {
		must(t, s.UpdatePod(id, func(p *Pod) error { p.PID, p.StartTicks = oldPID, oldTicks; return nil }))
	}
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(root, "boot-id"), []byte("another\n"), 0o600))
	return root
}

// records are the files of the pods' records, with what is in them.
func records(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	paths, err := filepath.Glob(filepath.Join(root, "pods", "*.json"))
	must(t, err)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		must(t, err)
		found[path] = string(data)
	}
	return found
}

// crash ends a store as a killed daemon does: nothing is written any more.
func crash(s *Store) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	s.writers.Wait()
	_ = s.lock.Close()
}

// runs says whether the pod is READY when its engine says that it runs, with this process.
func runs(s *Store, id engine.PodID, pid int, ticks uint64) bool {
	s.Sink("docker").Resync(engine.Snapshot{Pods: []engine.PodStatus{{ID: id, State: engine.PodReady, PID: pid, StartTicks: ticks}}})
	v, _ := s.Pod(id)
	return v.State == engine.PodReady
}

// A machine is booted with a full disk, which somebody frees. Pods that run from then on are not taken for pods of the boot before
// when the daemon is started again, whoever was the first to write.
//
// Rows: R19 (part), R24 (part)
func TestABootWithAFullDiskIsNoRebootForEver(t *testing.T) {
	pid, ticks, _ := liveProcess(t)
	for name, write := range map[string]func(*Store) error{
		"a look at the disk": func(s *Store) error { s.repeat(); return s.WriteError() },
		"a new record":       func(s *Store) error { return s.PutPod(samplePod("other")) },
		"the end":            (*Store).Close,
	} {
		t.Run(name, func(t *testing.T) {
			root := rebootedRoot(t)
			free := fullDisk(t, unix.ENOSPC)
			s := openStore(t, root)
			if err := s.WriteError(); !s.Rebooted() || !errdefs.IsResourceExhausted(err) {
				t.Errorf("rebooted %v, write error %v", s.Rebooted(), err)
			}
			free()
			must(t, write(s))
			must(t, s.Close())

			s = openStore(t, root)
			if s.Rebooted() {
				t.Error("the start after it finds a reboot")
			}
			pod := samplePod("new")
			pod.PID, pod.StartTicks = pid, ticks
			must(t, s.PutPod(pod))
			must(t, s.Close())
			if s = openStore(t, root); !runs(s, pod.ID, pid, ticks) {
				t.Error("a pod that runs is NOTREADY")
			}
			must(t, s.Close())
		})
	}
}

// Wherever a daemon dies that could not write the boot id at first: pods of the boot before are NOTREADY at the next start, and
// those that run are READY.
//
// Rows: R19 (part), R24 (part)
func TestNoRecordIsWrittenBeforeTheBootId(t *testing.T) {
	pid, ticks, _ := liveProcess(t)
	running := samplePod("new")
	running.PID, running.StartTicks = pid, ticks
	root := rebootedRoot(t)
	written := records(t, root)
	durably := writeDurably
	t.Cleanup(func() { writeDurably = durably })
	writeDurably = func(path string, _ []byte, _ os.FileMode) error {
		return &os.PathError{Op: "write", Path: path, Err: unix.ENOSPC}
	}

	s := openStore(t, root)
	if err := s.PutPod(running); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a record was made: %v", err)
	}
	if err := s.UpdatePod("pod-a", func(p *Pod) error { p.PID = pid; return nil }); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a record was changed: %v", err)
	}
	must(t, s.UpdatePod("pod-b", func(p *Pod) error { p.Phase = PhaseStopped; return nil })) // in memory
	// Neither a folder that was away meanwhile nor another look at the disk hides it.
	s.noteWrite(&fsError{dir: s.pods.dir, err: unix.EROFS})
	s.probe()
	s.repeat()
	if err := s.WriteError(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("the boot id is not on disk, and the write error is %v", err)
	}
	if now := records(t, root); !maps.Equal(now, written) {
		t.Error("records were written before the boot id")
	}
	must(t, s.DeletePod("pod-c")) // which writes nothing
	crash(s)

	s = openStore(t, root)
	if !s.Rebooted() || runs(s, "pod-a", oldPID, oldTicks) {
		t.Errorf("died before the boot id: rebooted %v", s.Rebooted())
	}
	crash(s)

	writeDurably = durably
	s = openStore(t, root)
	if err := s.WriteError(); !s.Rebooted() || err != nil {
		t.Errorf("rebooted %v, write error %v", s.Rebooted(), err)
	}
	crash(s)

	s = openStore(t, root)
	if s.Rebooted() || runs(s, "pod-a", pid, ticks) {
		t.Errorf("died between the boot id and the first record: rebooted %v", s.Rebooted())
	}
	must(t, s.PutPod(running))
	crash(s)

	s = openStore(t, root)
	if s.Rebooted() || !runs(s, running.ID, pid, ticks) {
		t.Errorf("died after the first record: rebooted %v", s.Rebooted())
	}
	must(t, s.Close())
}
