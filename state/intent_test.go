package state

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"crishim/engine"
)

// Rows: R11 (part)
func TestAnIntentOfWhichItsEngineToldIsNotDeleted(t *testing.T) {
	s := newTestStore(t)
	told, untold := samplePod("a"), samplePod("b")
	told.ID, told.Phase, untold.ID, untold.Phase = "", PhaseIntent, "", PhaseIntent
	must(t, s.PutPod(told))
	must(t, s.PutPod(untold))
	sink := s.Sink("docker")
	sink.PodChanged(engine.PodStatus{ID: "pod-a", Key: told.Spec.Key, State: engine.PodReady})
	if id, err := s.DeletePodIntent(told.Spec.Key); id != "pod-a" || err != nil {
		t.Errorf("told of %q, %v", id, err)
	}
	if _, ok := s.Pod("pod-a"); !ok {
		t.Error("the pod that exists is seen no more")
	}
	if id, err := s.DeletePodIntent(untold.Spec.Key); id != "" || err != nil {
		t.Errorf("not told of %q, %v", id, err)
	}
	// Its engine tells late: it is seen all the same.
	sink.PodChanged(engine.PodStatus{ID: "pod-b", Key: untold.Spec.Key, State: engine.PodReady, Spec: &untold.Spec})
	if v, ok := s.Pod("pod-b"); !ok || v.Recorded {
		t.Errorf("seen %v, with a record %v", ok, v.Recorded)
	}
	must(t, s.PutPod(untold)) // the file of the old one is not in the way
	if id, err := s.DeletePodIntent(engine.PodKey{Name: "absent"}); id != "" || err != nil {
		t.Errorf("absent: %q, %v", id, err)
	}
}

// What was taken back before its record had an id is not seen again because its engine tells late of it.
//
// Rows: R12 (part)
func TestWhatWasTakenBackDoesNotComeAgain(t *testing.T) {
	s := newTestStore(t)
	p, c := samplePod("a"), sampleContainer("pod-b", "c")
	p.ID, p.Phase, c.ID, c.Phase = "", PhaseIntent, "", PhaseIntent
	must(t, s.PutPod(samplePod("b")))
	must(t, s.PutPod(p))
	must(t, s.PutContainer(c))
	s.Bury("pod-a")
	s.Bury("c")
	must(t, s.DeletePodByKey(p.Spec.Key))
	must(t, s.DeleteContainerByKey(c.PodID, c.Spec.Key))
	sink := s.Sink("docker")
	sink.PodChanged(engine.PodStatus{ID: "pod-a", Key: p.Spec.Key, State: engine.PodReady, Spec: &p.Spec})
	sink.ContainerChanged(engine.ContainerStatus{ID: "c", Pod: c.PodID, PodKey: c.Spec.PodKey, Key: c.Spec.Key, State: engine.ContainerCreated, Spec: &c.Spec})
	if v, ok := s.PodByKey(p.Spec.Key); ok {
		t.Errorf("pod %s is %s", v.ID, v.State)
	}
	if v, ok := s.ContainerByKey(c.PodID, c.Spec.Key); ok {
		t.Errorf("container %s is %s", v.ID, v.State)
	}
}

// Rows: R11 (part)
func TestARecordWhoseWriteFailedIsNotLeft(t *testing.T) {
	place := placeFile
	placeFile = func(path string, data []byte, mode os.FileMode) error {
		return errors.Join(place(path, data, mode), unix.EIO)
	}
	t.Cleanup(func() { placeFile = place })
	root := t.TempDir()
	s := openStore(t, root)
	t.Cleanup(func() { _ = s.Close() })
	if err := s.PutPod(samplePod("a")); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(recordPath(root, "pod", "a")); !os.IsNotExist(err) {
		t.Errorf("the record is there: %v", err)
	}
}

func TestAFileThatCannotBeDeletedIsTriedAgain(t *testing.T) {
	s := newTestStore(t)
	pod := samplePod("a")
	pod.ID, pod.Phase = "", PhaseIntent
	must(t, s.PutPod(pod))
	files, err := filepath.Glob(filepath.Join(s.pods.dir, "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	// A folder with something in it stands in the file's place.
	must(t, os.Remove(files[0]))
	must(t, os.MkdirAll(filepath.Join(files[0], "x"), 0o700))
	if _, err := s.DeletePodIntent(pod.Spec.Key); err == nil {
		t.Fatal("it was deleted")
	}
	if _, ok := s.PodByKey(pod.Spec.Key); ok {
		t.Error("it is known still")
	}
	s.pods.removeStale()
	if _, err := os.Stat(files[0]); err != nil {
		t.Fatal(err)
	}
	must(t, os.Remove(filepath.Join(files[0], "x")))
	s.pods.removeStale()
	if _, err := os.Stat(files[0]); !os.IsNotExist(err) {
		t.Errorf("it is there still: %v", err)
	}
	// A new record of the key is nobody's leftover.
	must(t, s.PutPod(pod))
	s.pods.removeStale()
	if _, err := os.Stat(files[0]); err != nil {
		t.Error(err)
	}
}

// A creation that comes while what a crash left of its predecessor is taken back waits for the file to be gone.
//
// Rows: R10 (part)
func TestARecordIsMadeRightAfterTheIntentBeforeItIsGone(t *testing.T) {
	s := newTestStore(t)
	pod := samplePod("a")
	pod.ID, pod.Phase = "", PhaseIntent
	for range 200 {
		must(t, s.PutPod(pod))
		deleted := make(chan error, 1)
		go func() {
			_, err := s.DeletePodIntent(pod.Spec.Key)
			deleted <- err
		}()
		for there := true; there; {
			_, there = s.PodByKey(pod.Spec.Key)
		}
		must(t, s.PutPod(pod))
		must(t, <-deleted)
		if _, err := s.DeletePodIntent(pod.Spec.Key); err != nil {
			t.Fatal(err)
		}
		if files, err := os.ReadDir(filepath.Join(s.root, "pods")); err != nil || len(files) > 0 {
			t.Fatalf("left: %v, %v", files, err)
		}
	}
}
