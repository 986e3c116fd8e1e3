package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"crishim/internal/atomicfile"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// stuckDisk never makes anything durable until the returned function is called.
func stuckDisk(t *testing.T) (release func()) {
	t.Helper()
	stuck := make(chan struct{})
	settle := settleFiles
	settleFiles = func(paths ...string) error {
		<-stuck
		return settle(paths...)
	}
	t.Cleanup(func() { settleFiles = settle })
	return sync.OnceFunc(func() { close(stuck) })
}

// What a power cut or a kill has left of a record that was written and not settled: the newer self where it can be read, else
// the older one.
//
// Rows: R22 (part)
func TestARecordThatWasNotSettledIsTheNewerOrTheOlder(t *testing.T) {
	settled := func(t *testing.T, root string) (path string, newer []byte) {
		s := openStore(t, root)
		pod := samplePod("p")
		pod.Phase = PhaseCreated
		must(t, s.PutPod(pod))
		must(t, s.Close())
		path = recordPath(root, "pod", "p")
		pod.Phase, pod.Seq = PhaseStopped, 1
		newer, err := encode("pod", &pod)
		must(t, err)
		return path, newer
	}
	for name, test := range map[string]struct {
		newer       func(path string, whole []byte) error // written over a settled record
		phase       Phase
		quarantined int
	}{
		"whole":               {func(path string, whole []byte) error { return atomicfile.Place(path, whole, 0o600) }, PhaseStopped, 0},
		"empty":               {func(path string, _ []byte) error { return atomicfile.Place(path, nil, 0o600) }, PhaseCreated, 0},
		"torn":                {func(path string, whole []byte) error { return atomicfile.Place(path, whole[:len(whole)/2], 0o600) }, PhaseCreated, 0},
		"killed before it":    {func(path string, _ []byte) error { return os.Link(path, atomicfile.Older(path)) }, PhaseCreated, 0},
		"deleted but for one": {func(path string, _ []byte) error { return os.Rename(path, atomicfile.Older(path)) }, "", 0},
		"both torn": {func(path string, _ []byte) error {
			return errors.Join(os.Truncate(path, 10), atomicfile.Place(path, nil, 0o600))
		}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			path, newer := settled(t, root)
			must(t, test.newer(path, newer))
			check := func(who string, s *Store) {
				t.Helper()
				if v, ok := s.PodByKey(samplePod("p").Spec.Key); v.Phase != test.phase || ok != (test.phase != "") {
					t.Errorf("%s: %v, %s; want %s", who, ok, v.Phase, test.phase)
				}
				if bad := s.Quarantined(); len(bad) != test.quarantined {
					t.Errorf("%s: %d are not served: %+v", who, len(bad), bad)
				}
			}
			before := tree(t, root)
			ro, err := OpenReadOnly(root)
			must(t, err)
			check("read only", ro)
			if after := tree(t, root); after != before {
				t.Errorf("reading changed\n%s\nto\n%s", before, after)
			}
			release := stuckDisk(t)
			s := openStore(t, root)
			check("opened", s)
			if _, err := os.Stat(atomicfile.Older(path)); name == "whole" && err != nil {
				t.Errorf("the older self is gone before the newer is durable: %v", err)
			}
			release()
			must(t, s.Close())
			if left, err := filepath.Glob(filepath.Join(root, "pods", atomicfile.TempPrefix+"*")); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			again := openStore(t, root)
			check("opened again", again)
			must(t, again.Close())
		})
	}
}

// A record that is deleted leaves nothing, also where it was not settled.
func TestADeletedRecordLeavesNoOlderSelf(t *testing.T) {
	root := t.TempDir()
	release := stuckDisk(t)
	s := openStore(t, root)
	t.Cleanup(func() { release(); _ = s.Close() })
	pod := samplePod("p")
	must(t, s.PutPod(pod))
	must(t, s.UpdatePod(pod.ID, func(p *Pod) error { p.Phase = PhaseStopped; return nil }))
	path := recordPath(root, "pod", "p")
	if _, err := os.Stat(atomicfile.Older(path)); err != nil {
		t.Errorf("no older self: %v", err)
	}
	must(t, s.DeletePod(pod.ID))
	for _, path := range []string{path, atomicfile.Older(path)} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", path, err)
		}
	}
}

// losingDisk loses, once, the files that are to be settled, and says so. As on Linux it says nothing of them the next time.
type losingDisk struct {
	mu   sync.Mutex
	lost []*os.File
	well bool
}

func newLosingDisk(t *testing.T) *losingDisk {
	t.Helper()
	d := &losingDisk{}
	settle := settleFiles
	settleFiles = d.settle
	t.Cleanup(func() {
		settleFiles = settle
		for _, f := range d.lost {
			_ = f.Close()
		}
	})
	return d
}

func (d *losingDisk) settle(paths ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.well || len(paths) == 0 {
		return nil
	}
	d.well = true
	for _, path := range paths {
		if f, err := os.Open(path); err == nil { // kept open: no other file gets its number
			d.lost = append(d.lost, f)
		}
	}
	return &os.PathError{Op: "sync", Path: paths[0], Err: unix.EIO}
}

// durable fails the test where the path is still one of the lost files.
func (d *losingDisk) durable(t *testing.T, path string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	now, err := os.Stat(path)
	must(t, err)
	if len(d.lost) == 0 {
		t.Error("nothing was lost")
	}
	for _, f := range d.lost {
		old, err := f.Stat()
		must(t, err)
		if os.SameFile(old, now) {
			t.Error("the record that the disk has lost is taken for durable")
		}
	}
}

// What the disk has lost it tells once: the record is written anew, by whoever settles it next.
//
// Rows: R22 (part)
func TestARecordThatTheDiskLostIsWrittenAnew(t *testing.T) {
	pod := samplePod("p")
	pod.Phase = PhaseCreated
	for name, settle := range map[string]func(*Store) error{
		"while one waits":   func(s *Store) error { return s.SettlePod(pod.Spec.Key) },
		"while nobody does": (*Store).settleAll,
	} {
		for next, again := range map[string]func(*Store) error{
			"then one waits":           func(s *Store) error { return s.SettlePod(pod.Spec.Key) },
			"then the store is closed": (*Store).Close,
		} {
			t.Run(name+", "+next, func(t *testing.T) {
				disk, root := newLosingDisk(t), t.TempDir()
				s := openStore(t, root)
				t.Cleanup(func() { _ = s.Close() })
				s.settling = true // the test itself, and nobody else
				must(t, s.PutPod(pod))
				if err := settle(s); !errdefs.IsUnavailable(err) {
					t.Errorf("settled by a disk that lost it: %v", err)
				}
				must(t, again(s))
				disk.durable(t, recordPath(root, "pod", "p"))
			})
		}
	}
}

// A record that replaced the one that is being settled would not be durable when SettlePod says so.
//
// Rows: R22 (part)
func TestNothingIsWrittenOverWhatIsBeingSettled(t *testing.T) {
	pod := samplePod("p")
	var s *Store
	settle, settled := settleFiles, 0
	settleFiles = func(paths ...string) error {
		if e := s.podEntry(pod.ID); e.writing.TryLock() {
			e.writing.Unlock()
			t.Error("another write may come between")
		}
		settled++
		return settle(paths...)
	}
	t.Cleanup(func() { settleFiles = settle })
	s = openStore(t, t.TempDir())
	s.settling = true // by nobody
	must(t, s.PutPod(pod))
	must(t, s.SettlePod(pod.Spec.Key))
	if settled != 1 {
		t.Errorf("settled %d times", settled)
	}
	settleFiles = settle
	must(t, s.Close())
}

// While nothing can be made durable the node says so, although writes succeed, one settling goes on, and both end with it.
//
// Rows: R22 (part)
func TestASettlingThatFailsIsToldUntilOneSucceeds(t *testing.T) {
	var mu sync.Mutex
	broken := true
	settle := settleFiles
	settleFiles = func(paths ...string) error {
		mu.Lock()
		defer mu.Unlock()
		if broken {
			return &os.PathError{Op: "sync", Path: paths[0], Err: unix.EIO}
		}
		return settle(paths...)
	}
	t.Cleanup(func() { settleFiles = settle })
	s := openStore(t, t.TempDir())
	s.settling = true // by the test
	pod := samplePod("p")
	must(t, s.PutPod(pod))
	if err := s.settleAll(); !errdefs.IsUnavailable(err) {
		t.Errorf("settled: %v", err)
	}
	must(t, s.UpdatePod(pod.ID, func(p *Pod) error { p.Returned = true; return nil }))
	if err := s.WriteError(); !errdefs.IsUnavailable(err) {
		t.Errorf("a write that went well hides that nothing is durable: %v", err)
	}
	if s.settled() {
		t.Error("the settling ends before all is settled")
	}
	mu.Lock()
	broken = false
	mu.Unlock()
	s.repeat()
	if err := s.WriteError(); err != nil {
		t.Errorf("after a settling that went well: %v", err)
	}
	if !s.settled() {
		t.Error("the settling goes on with nothing left")
	}
	must(t, s.Close())
}
