package state

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"crishim/internal/atomicfile"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// These are replaced by tests, whose disks are full or lose what is written.
var writeFile, writeDurably, placeFile, settleFiles = atomicfile.Swap, atomicfile.Write, atomicfile.Place, atomicfile.Settle

// Times of writeBehind: how often a write that failed is tried again, and the directory looked at.
const (
	retryMin    = time.Second
	retryMax    = 30 * time.Second
	probePeriod = 3 * time.Second
)

// settleAfter is how long written records wait for others: a pod and its containers mostly run by then,
// so that each is settled once, and not while the engine wants the same disk for starting them.
const settleAfter = time.Second

// wakeWriter has the dirty records written soon.
func (s *Store) wakeWriter() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// writeBehind writes records that are newer in memory than on disk: exits the engines told of, and the ends of objects
// that were reached while the disk was full or read-only. It also notices a directory that became read-only.
func (s *Store) writeBehind() {
	retry := time.NewTimer(retryMax)
	retry.Stop()
	defer retry.Stop()
	probe := time.NewTicker(probePeriod)
	defer probe.Stop()
	backoff := retryMin
	for {
		select {
		case <-s.stop:
			return
		case <-probe.C:
			s.probe()
			s.repeat()
			s.pods.removeStale()
			s.containers.removeStale()
			continue
		case <-s.wake:
		case <-retry.C:
		}
		if err := s.writeDirty(); err != nil {
			klog.ErrorS(err, "Records could not be written, they are kept in memory", "retryIn", backoff)
			retry.Reset(backoff)
			backoff = min(2*backoff, retryMax)
			continue
		}
		backoff = retryMin
	}
}

// settleBehind makes durable in the background what was written.
func (s *Store) settleBehind(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsettled[path] = struct{}{}
	s.startSettling()
}

// startSettling settles after a while what is unsettled then, until all is. It requires mu.
func (s *Store) startSettling() {
	if s.settling || s.closed || len(s.unsettled) == 0 {
		return
	}
	s.settling = true
	s.writers.Go(func() {
		wait := settleAfter
		for {
			select {
			case <-time.After(wait):
			case <-s.stop:
				return // Close does it
			}
			wait = settleAfter
			if s.settleAll() != nil {
				wait = retryMax // repeat tries sooner where the disk takes writes
			} else if s.settled() {
				return
			}
		}
	})
}

// settled ends the settling where nothing is left to settle.
func (s *Store) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settling = len(s.unsettled) > 0
	return !s.settling
}

// settleAll makes durable now what was written. What fails is kept for the next time.
func (s *Store) settleAll() error {
	s.mu.Lock()
	paths := slices.Collect(maps.Keys(s.unsettled))
	clear(s.unsettled)
	s.mu.Unlock()
	err := s.settle(paths...)
	if err != nil {
		klog.ErrorS(err, "Records may not outlive a power cut")
		s.mu.Lock()
		for _, path := range paths {
			s.unsettled[path] = struct{}{}
		}
		s.mu.Unlock()
	}
	return err
}

// settle makes records durable now. Where that fails they are written anew: Linux tells once that it lost what was written,
// and a second fsync of the same file succeeds without it.
func (s *Store) settle(paths ...string) error {
	if len(paths) == 0 {
		return nil
	}
	err := diskError(settleFiles(paths...))
	s.mu.Lock()
	s.settleErr = err
	s.mu.Unlock()
	if err != nil {
		s.pods.spoil(paths)
		s.containers.spoil(paths)
		s.wakeWriter()
	}
	return err
}

// spoil has the records at these paths written anew.
func (t *table[S, R, P, V]) spoil(paths []string) {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	for _, e := range t.bySeq {
		e.dirty = e.dirty || slices.Contains(paths, e.file)
	}
}

// writeDirty writes every dirty record once, and before them the boot id where that could not be written.
func (s *Store) writeDirty() error {
	if err := s.writeBoot(); err != nil {
		return err // no record would be written either
	}
	return errors.Join(s.pods.writeDirty(), s.containers.writeDirty())
}

func (s *Store) bootFile() string { return filepath.Join(s.root, "boot-id") }

// writeBoot writes the id of this boot where that was not done yet. Each write of a record does this first and fails where it
// fails, so that the id on disk is always of the boot in which a record was last written, or of this one, wherever a start ends:
//   - before the id is on disk: the next start finds the reboot again. No record was written since, so all are of boots before,
//     and none is of a pod that runs.
//   - after it and before any record was written: the next start finds no reboot. The records still name processes of the boot
//     before; those are known by their start times not to run, and a pod that has others is over.
//   - after that, the next start finds the pods that run.
//
// Were a record written first, the next start would take its pod for one of the boot before, and it would never be READY again.
// After a power cut the machine has yet another id, and finds a reboot whichever is on disk: there the id need only be whole.
func (s *Store) writeBoot() error {
	s.booting.Lock()
	defer s.booting.Unlock()
	if s.unwrittenBoot == nil {
		return nil
	}
	err := diskError(writeDurably(s.bootFile(), s.unwrittenBoot, 0o600))
	if err == nil {
		s.unwrittenBoot = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bootErr = err
	return err
}

func (t *table[S, R, P, V]) writeDirty() error {
	var dirty []*entry[S, R]
	t.store.mu.RLock()
	for _, e := range t.bySeq {
		if e.dirty {
			dirty = append(dirty, e)
		}
	}
	t.store.mu.RUnlock()
	var errs []error
	for _, e := range dirty {
		if err := t.writeEntry(e); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (t *table[S, R, P, V]) writeEntry(e *entry[S, R]) error {
	e.writing.Lock()
	defer e.writing.Unlock()
	s := t.store
	s.mu.Lock()
	rec, path, due := e.rec, e.file, e.dirty && !e.deleted
	e.dirty = false // a status that comes while the file is written sets it again
	s.mu.Unlock()
	if !due {
		return nil
	}
	err := t.write("flush", path, &rec)
	if err != nil {
		s.mu.Lock()
		e.dirty = !e.deleted
		s.mu.Unlock()
	}
	return err
}

// noteWrite keeps the outcome of the last write for WriteError.
func (s *Store) noteWrite(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeErr = err
}

// probe finds out about a read-only directory without writing, and about its return.
func (s *Store) probe() {
	err := unix.Access(s.pods.dir, unix.W_OK)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.writeErr = diskError(&fsError{dir: s.pods.dir, err: err})
	case isProbeError(s.writeErr):
		s.writeErr = nil
	}
}

// repeat finds out that a disk that refused a write takes writes again. Nobody else may: what is only in memory waits for
// longer, and while the runtime is not ready no kubelet asks for a pod, whose record would be the next write.
func (s *Store) repeat() {
	failed := s.WriteError()
	if failed == nil || isProbeError(failed) {
		return
	}
	path := filepath.Join(s.pods.dir, atomicfile.TempPrefix+"repeat")
	if writeFile(path, make([]byte, repeatSize), 0o600) != nil {
		return
	}
	_ = os.Remove(path) // the next start would too
	if s.writeDirty() != nil || s.settleAll() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writeErr == failed {
		s.writeErr = nil
	}
}

// repeatSize is what most records fit in.
const repeatSize = 16 << 10

// fsError is what probe finds.
type fsError struct {
	dir string
	err error
}

func (e *fsError) Error() string { return e.dir + ": " + e.err.Error() }
func (e *fsError) Unwrap() error { return e.err }

func isProbeError(err error) bool {
	var found *fsError
	return errors.As(err, &found)
}
