package state

import (
	"os"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

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
				s.unsettled["another"] = struct{}{} // somebody settles behind already: the test itself, and nobody else
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
