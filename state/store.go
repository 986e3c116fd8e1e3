// Package state owns what the shim knows: one record on disk for each pod and container, and the index in memory that
// every List and Status is answered from.
//
// A daemon opens the store, hands Sink to each engine's Watch, waits for WaitSynced and reconciles; then it serves. A
// handler looks objects up (FindPod, ContainerByKey, …), writes its intent (PutPod), acts through the engine, and writes
// what it reached (UpdatePod); each is written before it is seen in the index and before an event tells of it. Statuses
// come from the engines' sinks and from our own actions (ApplyPod, ApplyContainer); they never move an object back, so
// it does not matter which of the two is late.
//
// On disk, below the root directory (0700): pods/HASH.json and containers/HASH.json, where HASH is of the object's key;
// quarantine/ with records that cannot be read, each beside a .reason; boot-id (see writeBoot); lock. Records (0600) are replaced
// atomically, carry a schema version and a checksum, and are never trusted without both. A record of a newer schema is
// left where it is, reported and not served. What a crash may leave:
//
//   - a temporary file, removed at the next start, and beside a record that was not settled the one before;
//   - a record in PhaseIntent, whose object exists fully, half or not at all;
//   - a record in any other phase whose object has moved on, or is gone: the first Resync of its engine says so.
//
// A change waits for the disk only where SettlePod asks for it: all records are made durable together, a second later (see
// atomicfile.Place). So a power cut may besides bring back a record as it was a second before, or lose one of the last second
// (see write): waiting for the disk there would only slow the kubelet down, and a machine that boots has nothing of it running.
package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Store is all records and the index. Its methods may be called from many goroutines; none but SettlePod and
// Close waits until something is durable (but what writes a record does where Open could not write the boot id).
type Store struct {
	root     string
	readOnly bool
	lock     locks
	rebooted bool

	wake    chan struct{} // tells writeBehind that something is dirty
	stop    chan struct{}
	writers sync.WaitGroup

	booting       sync.Mutex // held while the boot id is written, and taken before mu
	unwrittenBoot []byte     // the id of this boot until it is on disk; guarded by booting

	mu            sync.RWMutex
	closed        bool
	unsettled     map[string]struct{} // paths of records that were written and are not durable yet
	settling      bool                // somebody settles behind
	pods          *table[engine.PodStatus, Pod, *Pod, PodView]
	containers    *table[engine.ContainerStatus, Container, *Container, ContainerView]
	podContainers map[engine.PodID]map[*containerEntry]struct{}
	lastSeq       uint64
	quarantined   []Quarantined
	engines       map[string]*engineState
	onHealth      []func(string, engine.Health)
	onImages      []func(string)
	onRestarted   []func(string, engine.ContainerID)
	onUnrecorded  []func(string)
	subscriptions map[*Subscription]struct{}
	// removed holds ids whose entries were deleted a short while ago: a late status does not bring them back.
	removed  map[string]time.Time
	swept    time.Time // when removed was last rid of old ids
	writeErr error
	// settleErr is the outcome of the last settling: a write that came after it says nothing about the disk.
	settleErr error
	// bootErr says why the boot id is not on disk yet.
	bootErr error
}

type (
	podEntry       = entry[engine.PodStatus, Pod]
	containerEntry = entry[engine.ContainerStatus, Container]
)

// Open takes both directories for this process and loads the root. root holds what must survive a reboot, run what must not
// (it is only made here). It fails where another daemon has one of them (ErrFailedPrecondition, within two seconds)
// or the directories cannot be used; a record that cannot be read never makes it fail, see Quarantined.
func Open(root, run string) (*Store, error) {
	for _, dir := range []string{root, run, filepath.Join(root, "pods"), filepath.Join(root, "containers"), filepath.Join(root, "quarantine")} {
		if err := makePrivate(dir); err != nil {
			return nil, err
		}
	}
	held, err := lock(root, run)
	if err != nil {
		return nil, err
	}
	s := newStore(root)
	s.lock = held
	if err := s.load(); err != nil {
		_ = held.Close()
		return nil, err
	}
	s.mu.Lock()
	s.startSettling() // what a daemon that was killed did not
	s.mu.Unlock()
	s.writers.Go(s.writeBehind)
	return s, nil
}

// OpenReadOnly loads the records without taking the directory or changing anything in it, beside a running daemon or
// without one. Every change is refused with ErrFailedPrecondition.
func OpenReadOnly(root string) (*Store, error) {
	if _, err := os.Stat(root); err != nil {
		return nil, fmt.Errorf("open the state directory: %w", err)
	}
	s := newStore(root)
	s.readOnly = true
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

func newStore(root string) *Store {
	s := &Store{
		root:          root,
		wake:          make(chan struct{}, 1),
		stop:          make(chan struct{}),
		unsettled:     map[string]struct{}{},
		podContainers: map[engine.PodID]map[*containerEntry]struct{}{},
		engines:       map[string]*engineState{},
		subscriptions: map[*Subscription]struct{}{},
		removed:       map[string]time.Time{},
	}
	s.pods = newPodTable(s)
	s.containers = newContainerTable(s)
	return s
}

// makePrivate makes dir with its parents; an existing one is closed to others, one that is a link is refused.
func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("the state directory %s is not a directory: %w", dir, errdefs.ErrFailedPrecondition)
	}
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("close the state directory to others: %w", err)
		}
	}
	return nil
}

// Close ends all subscriptions, tries once more to write what is only in memory, and gives the directory back. The error
// says what was not written.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for sub := range s.subscriptions {
		sub.end(fmt.Errorf("the store was closed: %w", errdefs.ErrUnavailable))
	}
	s.mu.Unlock()
	if s.readOnly {
		return nil
	}
	close(s.stop)
	s.writers.Wait()
	err := errors.Join(s.writeDirty(), s.settleAll())
	return errors.Join(err, s.lock.Close())
}

// Rebooted says that the machine was booted since the records were last in use: recorded processes and namespaces are
// gone, and every recorded pod is NOTREADY.
func (s *Store) Rebooted() bool { return s.rebooted }

// WriteError says why some change is only in memory, or why the directory cannot be written; nil when all is well. The
// runtime is not ready while it is set.
func (s *Store) WriteError() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return cmp.Or(s.writeErr, s.settleErr, s.bootErr)
}

// Health is what the engine last reported; not ready before it reported anything.
func (s *Store) Health(engineName string) engine.Health {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.engines[engineName]; e != nil {
		return e.health
	}
	return notConnected
}

// OnHealth has f called after each report of an engine's health, from the engine's goroutine.
func (s *Store) OnHealth(f func(engineName string, health engine.Health)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onHealth = append(s.onHealth, f)
}

// OnImages has f called when an engine's images changed, from the engine's goroutine.
func (s *Store) OnImages(f func(engineName string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onImages = append(s.onImages, f)
}

// OnRestarted has f called when an engine reports that a container runs which had exited: somebody started it again. It
// stays EXITED here, as CRI has it; f is called from the engine's goroutine.
func (s *Store) OnRestarted(f func(engineName string, id engine.ContainerID)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onRestarted = append(s.onRestarted, f)
}

// OnUnrecorded has f called when an engine has told of pods or containers that have no record: somebody else makes them. f
// is called from the engine's goroutine.
func (s *Store) OnUnrecorded(f func(engineName string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onUnrecorded = append(s.onUnrecorded, f)
}

// Recorded says whether a pod or container of this id has a record.
func (s *Store) Recorded(id string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.containers.byID[id]; e != nil {
		return e.recorded
	}
	e := s.pods.byID[id]
	return e != nil && e.recorded
}

// Synced says whether the engine has delivered a Resync since the store was opened.
func (s *Store) Synced(engineName string) bool {
	select {
	case <-s.engine(engineName).synced:
		return true
	default:
		return false
	}
}

// WaitSynced waits for the engine's first Resync, or returns ctx's error.
func (s *Store) WaitSynced(ctx context.Context, engineName string) error {
	select {
	case <-s.engine(engineName).synced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) engine(name string) *engineState {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.engines[name]
	if e == nil {
		e = &engineState{health: notConnected, synced: make(chan struct{})}
		s.engines[name] = e
	}
	return e
}

// nextSeq requires mu.
func (s *Store) nextSeq() uint64 {
	s.lastSeq++
	return s.lastSeq
}

// writable refuses changes to a store that is closed or only read.
func (s *Store) writable() error {
	if s.readOnly {
		return fmt.Errorf("the state directory was opened for reading only: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// diskError gives a failed write its class.
func diskError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: free space in the state directory: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("%w: a limit of this node keeps the state directory from being written: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: the state directory cannot be written: %w", err, errdefs.ErrUnavailable)
	}
	return err
}
