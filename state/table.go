package state

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"crishim/internal/atomicfile"
	"crishim/internal/failpoint"

	"github.com/containerd/errdefs"
)

// recordOf is what the table needs to know of a record kind R.
type recordOf[R any] interface {
	*R
	// identity is the id ("" when not known yet) and the hash of the key, the name of its file.
	identity() (id, key string)
	setIdentity(id string)
	seq() *uint64
	engineName() string
	phase() Phase
	forgetProcess()
	// forgetLife drops what statuses have taught the record of another object, whose id it had before.
	forgetLife()
	check() error
}

// entry is one object in the index: of a record, of an engine's status, or of both.
type entry[S, R any] struct {
	// writing is held while the record's file is written, and taken before Store.mu.
	writing sync.Mutex

	// The rest is guarded by Store.mu.
	rec      R
	recorded bool   // rec is on disk, or dirty
	file     string // path of the record
	dirty    bool   // rec is newer than the file
	deleted  bool
	status   S
	// over: a pod whose process has ended or is another one; it never becomes READY again.
	over bool
	// applied is when status was last set; an older snapshot that lacks the object says nothing about it.
	applied time.Time
}

// table is the entries of one kind and their files.
type table[S, R any, P recordOf[R], V any] struct {
	store *Store
	kind  string // "pod" or "container"
	dir   string

	// view, stage and derive are the kind's own. They require Store.mu.
	view func(*entry[S, R]) V
	// stage is what readers of events know of the entry, emit tells them of a change.
	stage func(*entry[S, R]) stage
	emit  func(from, to stage, e *entry[S, R])
	// derive brings what rec takes from status up to date, or a missing status from rec, and says whether something of
	// rec changed that is worth writing.
	derive func(*entry[S, R]) bool
	// indexed is told of entries that come and go.
	indexed func(e *entry[S, R], present bool)

	// All below are guarded by Store.mu.
	bySeq map[uint64]*entry[S, R]
	byID  map[string]*entry[S, R]
	byKey map[string][]*entry[S, R] // by key hash; more than one only after a crash of another shim
	// writing are the files of new records that are not in the index yet.
	writing map[string]struct{}
	// leaving are the files of dropped records that are being deleted, each until its channel is closed. They are in writing too.
	leaving map[string]chan struct{}
	// newer are files of a newer schema: never overwritten.
	newer map[string]struct{}
	// stale are files of records that are dropped and whose deletion failed.
	stale map[string]struct{}
	// list is the views in order, nil when something changed since it was made.
	list []V
}

func newTable[S, R any, P recordOf[R], V any](s *Store, kind string) *table[S, R, P, V] {
	return &table[S, R, P, V]{
		store:   s,
		kind:    kind,
		dir:     filepath.Join(s.root, kind+"s"),
		bySeq:   map[uint64]*entry[S, R]{},
		byID:    map[string]*entry[S, R]{},
		byKey:   map[string][]*entry[S, R]{},
		writing: map[string]struct{}{}, stale: map[string]struct{}{}, leaving: map[string]chan struct{}{},
		newer: map[string]struct{}{},
	}
}

// put makes a record on disk and then its entry.
func (t *table[S, R, P, V]) put(rec R) error {
	s := t.store
	if err := s.writable(); err != nil {
		return err
	}
	id, key := P(&rec).identity()
	path := t.path(key)
	s.mu.Lock()
	for t.leaving[path] != nil { // of a record that is not there any more: its end is waited for
		gone := t.leaving[path]
		s.mu.Unlock()
		<-gone
		s.mu.Lock()
	}
	err := t.reserve(id, key, path)
	if err == nil {
		*P(&rec).seq() = s.nextSeq()
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	err = P(&rec).check()
	if err != nil {
		err = fmt.Errorf("record %s: %w: %w", t.kind, err, errdefs.ErrInvalidArgument)
	} else if err = t.write("put", path, &rec); err != nil {
		// It may be there all the same.
		if derr := atomicfile.Drop(path); derr != nil {
			s.mu.Lock()
			t.stale[path] = struct{}{}
			s.mu.Unlock()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(t.writing, path)
	if err != nil {
		return err
	}
	delete(t.stale, path)
	e := &entry[S, R]{}
	from := stageNone
	// The engine may have told of the object before, or while the record was written.
	if known := t.byID[id]; id != "" && known != nil {
		e, from = known, t.stage(known)
		t.unindex(known)
	}
	e.rec, e.recorded, e.file, e.applied = rec, true, path, time.Now()
	t.publish(e, from)
	return nil
}

// reserve requires mu.
func (t *table[S, R, P, V]) reserve(id, key, path string) error {
	_, busy := t.writing[path]
	if e := t.find(key); busy || e != nil && e.recorded {
		return fmt.Errorf("a record of this %s's key is there: %w", t.kind, errdefs.ErrAlreadyExists)
	}
	if e := t.byID[id]; id != "" && e != nil && e.recorded {
		return fmt.Errorf("a record of %s %s is there: %w", t.kind, id, errdefs.ErrAlreadyExists)
	}
	if _, newer := t.newer[path]; newer {
		return fmt.Errorf("%s: %w; run that version, or remove the file: %w", path, errNewer, errdefs.ErrFailedPrecondition)
	}
	t.writing[path] = struct{}{}
	return nil
}

// update changes a record on disk and then its entry. An entry that has none yet gets one. What is done already counts also
// where it cannot be written, as what is on its way out does; what has no record gets none by it, but by its adoption, which looks
// for more.
func (t *table[S, R, P, V]) update(e *entry[S, R], done bool, change func(P) error) error {
	s := t.store
	if err := s.writable(); err != nil {
		return err
	}
	if e == nil {
		return fmt.Errorf("update %s: no such %s: %w", t.kind, t.kind, errdefs.ErrNotFound)
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	s.mu.Lock()
	old, deleted, path := e.rec, e.deleted, e.file
	if done && !e.recorded && !deleted {
		defer s.mu.Unlock()
		from := t.stage(e)
		defer t.changed(e, from)
		return change(&e.rec)
	}
	var err error
	if path == "" && !deleted {
		if path, err = t.claimPath(e); err == nil {
			defer t.unclaim(path)
		}
	}
	s.mu.Unlock()
	if deleted {
		return fmt.Errorf("update %s: it was deleted meanwhile: %w", t.kind, errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	rec := old
	if err := change(&rec); err != nil {
		return err
	}
	oldID, _ := P(&old).identity()
	if id, _ := P(&rec).identity(); oldID != "" && id != oldID {
		P(&rec).forgetLife()
	}
	if err := t.checkChange(e, &old, &rec); err != nil {
		return err
	}
	werr := t.write("update", path, &rec)
	if werr != nil && !done && !P(&rec).phase().Ending() {
		return werr
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from := t.stage(e)
	t.unindex(e)
	written, _ := P(&rec).identity()
	from = max(from, t.adoptStatus(e, &rec))
	id, _ := P(&rec).identity()
	e.rec, e.recorded, e.file, e.dirty = rec, true, path, werr != nil || id != written
	t.publish(e, from)
	return nil
}

// checkChange refuses changes of what never changes, and ids that are another record's. The engine may have told e's own
// id since old was read.
func (t *table[S, R, P, V]) checkChange(e *entry[S, R], old, rec *R) error {
	oldID, oldKey := P(old).identity()
	id, key := P(rec).identity()
	if key != oldKey || *P(rec).seq() != *P(old).seq() || P(rec).engineName() != P(old).engineName() {
		return fmt.Errorf("update %s: its key, engine and sequence number never change: %w", t.kind, errdefs.ErrInvalidArgument)
	}
	if err := P(rec).check(); err != nil {
		return fmt.Errorf("update %s: %w: %w", t.kind, err, errdefs.ErrInvalidArgument)
	}
	t.store.mu.RLock()
	defer t.store.mu.RUnlock()
	if other := t.byID[id]; id != "" && id != oldID && other != nil && other != e && other.recorded {
		return fmt.Errorf("update %s: id %s belongs to another record: %w", t.kind, id, errdefs.ErrAlreadyExists)
	}
	return nil
}

// adoptStatus brings e's status in line with the id that rec will have: the engine's of that id, which is known already
// where its event came first. It returns the stage that readers know of it. It requires mu.
func (t *table[S, R, P, V]) adoptStatus(e *entry[S, R], rec *R) stage {
	oldID, _ := P(&e.rec).identity()
	id, _ := P(rec).identity()
	if id == "" && oldID != "" {
		// The engine told the id while the record was written.
		P(rec).setIdentity(oldID)
		return stageNone
	}
	if id == oldID {
		return stageNone
	}
	var none S
	e.status, e.over, e.applied = none, false, time.Now()
	other := t.byID[id]
	if other == nil {
		return stageNone
	}
	// Of an object that was told of too early, only that it exists is taken as told.
	known := min(t.stage(other), stageCreated)
	e.status, e.over = other.status, other.over
	other.deleted = true
	t.unindex(other)
	return known
}

// mark changes the record in memory only; a later write takes it along.
func (t *table[S, R, P, V]) mark(e *entry[S, R], change func(P)) {
	if e == nil {
		return
	}
	e.writing.Lock() // an update under way would undo it
	defer e.writing.Unlock()
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	if e.deleted {
		return
	}
	from := t.stage(e)
	change(&e.rec)
	t.changed(e, from)
}

// remove deletes the record's file and then the entry. Nothing is written, so it works on a full disk.
func (t *table[S, R, P, V]) remove(e *entry[S, R]) error {
	s := t.store
	if err := s.writable(); err != nil {
		return err
	}
	if e == nil {
		return nil
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	s.mu.RLock()
	path, deleted := e.file, e.deleted
	s.mu.RUnlock()
	if deleted {
		return nil
	}
	if path != "" {
		if err := t.unlink(path); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.drop(e)
	return nil
}

// drop takes e out of the index and tells of it. It requires mu.
func (t *table[S, R, P, V]) drop(e *entry[S, R]) {
	from := t.stage(e)
	e.deleted, e.dirty = true, false
	t.unindex(e)
	if id, _ := P(&e.rec).identity(); id != "" {
		t.store.bury(id)
	}
	t.emit(from, stageNone, e)
}

// publish indexes e as it is now, tells readers what is new since from, and has it written where status taught the
// record something. It requires mu.
func (t *table[S, R, P, V]) publish(e *entry[S, R], from stage) {
	if t.derive(e) && e.recorded {
		e.dirty = true
	}
	t.index(e)
	if e.dirty {
		t.store.wakeWriter()
	}
	t.emit(from, t.stage(e), e)
}

// changed is publish for an entry whose identity stayed. It requires mu.
func (t *table[S, R, P, V]) changed(e *entry[S, R], from stage) {
	t.list = nil
	if t.derive(e) && e.recorded {
		e.dirty = true
		t.store.wakeWriter()
	}
	t.emit(from, t.stage(e), e)
}

func (t *table[S, R, P, V]) index(e *entry[S, R]) {
	id, key := P(&e.rec).identity()
	t.bySeq[*P(&e.rec).seq()] = e
	if id != "" {
		t.byID[id] = e
	}
	t.byKey[key] = append(t.byKey[key], e)
	t.list = nil
	t.indexed(e, true)
}

func (t *table[S, R, P, V]) unindex(e *entry[S, R]) {
	id, key := P(&e.rec).identity()
	if seq := *P(&e.rec).seq(); t.bySeq[seq] == e {
		delete(t.bySeq, seq)
	}
	if t.byID[id] == e {
		delete(t.byID, id)
	}
	same := slices.DeleteFunc(t.byKey[key], func(x *entry[S, R]) bool { return x == e })
	if len(same) == 0 {
		delete(t.byKey, key)
	} else {
		t.byKey[key] = same
	}
	t.list = nil
	t.indexed(e, false)
}

// find is the entry of a key: a recorded one before others, the newest of these. It requires mu.
func (t *table[S, R, P, V]) find(key string) *entry[S, R] {
	var best *entry[S, R]
	for _, e := range t.byKey[key] {
		if best == nil || e.recorded && !best.recorded ||
			e.recorded == best.recorded && *P(&e.rec).seq() > *P(&best.rec).seq() {
			best = e
		}
	}
	return best
}

// unidentified is the record of the key that waits for its id from this engine, or nil. It requires mu.
func (t *table[S, R, P, V]) unidentified(key, engineName string) *entry[S, R] {
	for _, e := range t.byKey[key] {
		id, _ := P(&e.rec).identity()
		if id == "" && e.recorded && (engineName == "" || P(&e.rec).engineName() == engineName) {
			return e
		}
	}
	return nil
}

// identify gives an entry the id that its engine reports. It requires mu.
func (t *table[S, R, P, V]) identify(e *entry[S, R], id string) {
	t.unindex(e)
	P(&e.rec).setIdentity(id)
	e.dirty = true
	t.index(e)
	t.store.wakeWriter()
}

// search finds by id or by a prefix that only one id has.
func (t *table[S, R, P, V]) search(idOrPrefix string) (V, error) {
	var none V
	t.store.mu.RLock()
	defer t.store.mu.RUnlock()
	if idOrPrefix == "" {
		return none, fmt.Errorf("no %s id was given: %w", t.kind, errdefs.ErrInvalidArgument)
	}
	if e := t.byID[idOrPrefix]; e != nil {
		return t.view(e), nil
	}
	var found *entry[S, R]
	for id, e := range t.byID {
		if !strings.HasPrefix(id, idOrPrefix) {
			continue
		}
		if found != nil {
			return none, fmt.Errorf("more than one %s id begins with %q: %w", t.kind, idOrPrefix, errdefs.ErrInvalidArgument)
		}
		found = e
	}
	if found == nil {
		return none, fmt.Errorf("%s %q: %w", t.kind, idOrPrefix, errdefs.ErrNotFound)
	}
	return t.view(found), nil
}

// views are all entries in order of creation. The slice is shared: nobody writes to it.
func (t *table[S, R, P, V]) views() []V {
	s := t.store
	s.mu.RLock()
	list := t.list
	s.mu.RUnlock()
	if list != nil {
		return list
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.list == nil {
		t.list = make([]V, 0, len(t.bySeq))
		for _, seq := range slices.Sorted(maps.Keys(t.bySeq)) {
			t.list = append(t.list, t.view(t.bySeq[seq]))
		}
	}
	return t.list
}

func (t *table[S, R, P, V]) path(name string) string { return filepath.Join(t.dir, name+".json") }

// claimPath is where an entry without a record gets one: under its key's name, or, where another object has that, under
// one that has the id in it too. It requires mu.
func (t *table[S, R, P, V]) claimPath(e *entry[S, R]) (string, error) {
	id, key := P(&e.rec).identity()
	path := t.path(key)
	_, taken := t.newer[path]
	for _, other := range t.byKey[key] {
		taken = taken || other.file == path
	}
	if taken {
		path = t.path(hashName(key, id))
	}
	if _, busy := t.writing[path]; busy {
		return "", fmt.Errorf("update %s %s: its record is being made; try again: %w", t.kind, id, errdefs.ErrUnavailable)
	}
	t.writing[path] = struct{}{}
	return path, nil
}

// leave and left are around the deletion of a file whose record was dropped. They require mu.
func (t *table[S, R, P, V]) leave(path string) {
	t.writing[path], t.leaving[path] = struct{}{}, make(chan struct{})
}

func (t *table[S, R, P, V]) left(path string) {
	close(t.leaving[path])
	delete(t.leaving, path)
	delete(t.writing, path)
}

// removeStale tries again to delete files that nobody else would before the next start.
func (t *table[S, R, P, V]) removeStale() {
	s := t.store
	s.mu.Lock()
	var paths []string
	for path := range t.stale {
		_, busy := t.writing[path]
		if t.inUse(path) {
			delete(t.stale, path)
		} else if !busy {
			t.leave(path)
			paths = append(paths, path)
		}
	}
	s.mu.Unlock()
	for _, path := range paths {
		err := t.unlink(path)
		s.mu.Lock()
		t.left(path)
		if err == nil {
			delete(t.stale, path)
		}
		s.mu.Unlock()
	}
}

// inUse says whether the file is that of an entry. It requires mu.
func (t *table[S, R, P, V]) inUse(path string) bool {
	for _, e := range t.bySeq {
		if e.file == path {
			return true
		}
	}
	return false
}

func (t *table[S, R, P, V]) unclaim(path string) {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	delete(t.writing, path)
}

// write replaces the record's file and does not wait for the disk. A killed process leaves every write whole; this is about
// what a power cut may bring back, after which nothing of any record runs: the record's older self, or none of one that is a
// second old. Should an intent be lost, or that an object was created, what was made is known from the engine, by its labels,
// and taken back; the networks of a created pod are waited for by SettlePod. Of an object on its way out the next Stop and
// Remove do again what was done; of one that runs the older self, or what the engine knows, has what must be taken back.
// step is for the failpoints.
func (t *table[S, R, P, V]) write(step, path string, rec *R) error {
	name := "state." + t.kind + "." + step
	err := func() error {
		if err := failpoint.Hit(name + ".before"); err != nil {
			return err
		}
		data, err := encode(t.kind, rec)
		if err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := t.store.writeBoot(); err != nil {
			return err
		}
		if err := placeFile(path, data, 0o600); err != nil {
			return diskError(err)
		}
		t.store.settleBehind(path)
		return failpoint.Hit(name + ".after")
	}()
	t.store.noteWrite(err)
	return err
}

// unlink removes a record's file. A power cut may bring it back; its engine then says that the object is gone.
func (t *table[S, R, P, V]) unlink(path string) error {
	name := "state." + t.kind + ".delete"
	if err := failpoint.Hit(name + ".before"); err != nil {
		return err
	}
	if err := atomicfile.Drop(path); err != nil {
		return fmt.Errorf("delete %s record: %w", t.kind, diskError(err))
	}
	return failpoint.Hit(name + ".after")
}
