package state

import (
	"cmp"
	"time"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/internal/process"
)

func newPodTable(s *Store) *table[engine.PodStatus, Pod, *Pod, PodView] {
	t := newTable[engine.PodStatus, Pod, *Pod, PodView](s, "pod")
	t.view = podView
	t.stage = podStage
	t.derive = derivePod
	t.indexed = func(*podEntry, bool) {}
	t.emit = func(from, to stage, e *podEntry) {
		if to == stageNone && from != stageNone && e.deleted {
			s.emit(EventDeleted, e.rec.ID, "")
			return
		}
		s.emitStages(from, to, false, e.rec.ID, "")
	}
	return t
}

// PutPod records a new pod, normally in PhaseIntent, and sets its Seq. ErrAlreadyExists when its key or id has a record,
// ErrResourceExhausted when the disk is full, ErrInvalidArgument when the record is incomplete. On an error nothing
// changed.
func (s *Store) PutPod(p Pod) error { return s.pods.put(p) }

// UpdatePod changes the record of the pod with the id: change gets a copy to modify, an error from it changes nothing and
// is returned as it is. Calls for one pod are ordered. ErrNotFound when there is no such pod. When the disk is full the
// error is ErrResourceExhausted and nothing changed, except on the way out (Phase.Ending): then the change counts, is
// kept in memory and written as soon as that is possible (see WriteError).
func (s *Store) UpdatePod(id engine.PodID, change func(*Pod) error) error {
	return s.pods.update(s.podEntry(id), false, change)
}

// UpdatePodByKey is UpdatePod for a pod that may not have an id yet.
func (s *Store) UpdatePodByKey(key engine.PodKey, change func(*Pod) error) error {
	return s.pods.update(s.podEntryByKey(key), false, change)
}

// SettlePod waits until the pod's record is durable, for what was recorded without a wait. On an error it may not be, and is
// written anew.
func (s *Store) SettlePod(key engine.PodKey) error {
	return failpoint.Around("state.pod.settle", func() error {
		path := s.pods.path(podKeyName(key))
		e := s.podEntryByKey(key)
		if e == nil {
			return s.settle(path)
		}
		if err := s.pods.writeEntry(e); err != nil {
			s.wakeWriter()
			return err
		}
		e.writing.Lock() // what is settled stays the newest until it is
		defer e.writing.Unlock()
		return s.settle(path)
	})
}

// NotePod is NoteContainer for a pod.
func (s *Store) NotePod(id engine.PodID, change func(*Pod)) error {
	return s.pods.update(s.podEntry(id), true, func(p *Pod) error { change(p); return nil })
}

// MarkPodRemoving notes in memory that a removal has begun. It is not worth a write: should the daemon end before the
// removal has, the record's older phase asks the next RemovePodSandbox for the same.
func (s *Store) MarkPodRemoving(id engine.PodID) {
	s.pods.mark(s.podEntry(id), func(p *Pod) { p.Phase = PhaseRemoving })
}

// SupposePod changes the record in memory only, where it cannot be written; a later write takes it along.
func (s *Store) SupposePod(id engine.PodID, change func(*Pod)) { s.pods.mark(s.podEntry(id), change) }

// DeletePod deletes the record and the entry of a pod that no longer exists. It needs no free space. OK when absent.
func (s *Store) DeletePod(id engine.PodID) error { return s.pods.remove(s.podEntry(id)) }

// DeletePodByKey is DeletePod for a pod that may not have an id.
func (s *Store) DeletePodByKey(key engine.PodKey) error { return s.pods.remove(s.podEntryByKey(key)) }

// Pod is the pod with exactly this id.
func (s *Store) Pod(id engine.PodID) (PodView, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.pods.byID[string(id)]; e != nil {
		return podView(e), true
	}
	return PodView{}, false
}

// PodSpec is what the pod was made from; nil without a record.
func (s *Store) PodSpec(id engine.PodID) *engine.PodSpec {
	if pod, ok := s.Pod(id); ok && pod.Recorded {
		return &pod.Spec
	}
	return nil
}

// PodByKey is the pod with this key, in whatever phase; where several share it, one with a record, then the newest.
func (s *Store) PodByKey(key engine.PodKey) (PodView, bool) {
	e := s.podEntryByKey(key)
	if e == nil {
		return PodView{}, false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return podView(e), !e.deleted
}

// FindPod is the pod whose id is, or alone begins with, idOrPrefix. ErrNotFound when none does, ErrInvalidArgument when
// several do or none was given.
func (s *Store) FindPod(idOrPrefix string) (PodView, error) { return s.pods.search(idOrPrefix) }

// Pods are all pods in order of creation, those in PhaseIntent (perhaps without an id) included. The slice is shared and
// must not be written to.
func (s *Store) Pods() []PodView { return s.pods.views() }

// ApplyPod takes in a status that one of our own actions returned. A pod that the store does not know is ignored.
func (s *Store) ApplyPod(st engine.PodStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyPod("", st)
}

func (s *Store) podEntry(id engine.PodID) *podEntry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pods.byID[string(id)]
}

func (s *Store) podEntryByKey(key engine.PodKey) *podEntry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pods.find(podKeyName(key))
}

func podView(e *podEntry) PodView {
	return PodView{Pod: e.rec, Status: e.status, State: podState(e), Recorded: e.recorded}
}

func podState(e *podEntry) engine.PodState {
	if e.rec.Phase == PhaseRunning && !e.over && e.status.State == engine.PodReady {
		return engine.PodReady
	}
	return engine.PodNotReady
}

func podStage(e *podEntry) stage {
	switch {
	case e.deleted, e.rec.ID == "", e.rec.Phase == PhaseIntent:
		return stageNone
	case podState(e) == engine.PodReady:
		return stageStarted
	case e.over, e.rec.Phase.Ending():
		return stageStopped
	}
	return stageCreated
}

// podStatusOf is what a record implies until the engine speaks.
func podStatusOf(p *Pod) engine.PodStatus {
	st := engine.PodStatus{
		ID: p.ID, Key: p.Spec.Key, State: engine.PodNotReady, CreatedAt: p.CreatedAt,
		PID: p.PID, StartTicks: p.StartTicks, NetNSPath: p.NetNSPath, IPs: p.Network.IPs,
	}
	if p.Phase == PhaseRunning {
		st.State = engine.PodReady
	}
	return st
}

// derivePod gives a pod that its engine has not spoken of yet the status that the record implies. The record takes
// nothing from the status: what it needs is written by the action that made it true.
func derivePod(e *podEntry) bool {
	if e.status.State == "" && e.rec.ID != "" && e.rec.Phase != PhaseIntent {
		e.status = podStatusOf(&e.rec)
	}
	return false
}

// applyPod takes in a status from the named engine, or from our own action (""). It requires mu.
func (s *Store) applyPod(engineName string, st engine.PodStatus) {
	e := s.pods.byID[string(st.ID)]
	if e != nil && engineName != "" && e.rec.Engine != engineName {
		return
	}
	if e == nil {
		if s.buried(string(st.ID)) {
			return
		}
		if e = s.pods.unidentified(podKeyName(st.Key), engineName); e != nil {
			s.pods.identify(e, string(st.ID))
		}
	}
	if e == nil {
		if engineName != "" && st.Spec != nil {
			s.discoverPod(engineName, st)
		}
		return
	}
	from := podStage(e)
	mergePod(e, st)
	s.pods.changed(e, from)
	if !e.recorded {
		s.noteUnrecorded(e.rec.Engine)
	}
}

// mergePod keeps a pod from becoming READY twice:
//
//	not started ──► READY ──► over (NOTREADY for ever)
//	      └────────────────────▲
//
// NOTREADY after READY is believed unless the status is of a pod that was not started, or the process is not known to have
// ended: it was taken before the start then, and delivered after it.
func mergePod(e *podEntry, st engine.PodStatus) {
	old := e.status
	if st.CreatedAt.IsZero() {
		st.CreatedAt = old.CreatedAt
	}
	if !e.recorded && e.rec.Phase == PhaseCreated && st.State == engine.PodReady {
		// Whoever made it has started it.
		e.rec.Phase, e.rec.NetNSPath, e.rec.PID, e.rec.StartTicks, e.rec.Network.IPs = PhaseRunning, st.NetNSPath, st.PID, st.StartTicks, st.IPs
	}
	looked := old.StartedAt.IsZero() && !st.StartedAt.IsZero() || e.rec.NetNSPath == "" && st.NetNSPath != ""
	if !e.recorded && !e.rec.Adopted && len(e.rec.Network.Attachments) == 0 && looked && st.Spec != nil {
		// Its engine had only listed it before, and tells now what it was made from.
		spec := *st.Spec
		spec.Key = e.rec.Spec.Key
		e.rec.Spec, e.rec.NetNSPath, e.rec.PID, e.rec.StartTicks = spec, st.NetNSPath, st.PID, st.StartTicks
		if len(st.IPs) > 0 { // without, it has those that were supposed
			e.rec.Network.IPs = st.IPs
		}
		if e.rec.Phase == PhaseCreated && st.State != engine.PodReady {
			e.rec.Phase = PhaseStopped
		}
	}
	late := st.StartedAt.IsZero() && !old.StartedAt.IsZero()
	if late {
		st.StartedAt = old.StartedAt
	}
	// A spec that was read back serves only pods without a record.
	st.Spec = nil
	wasReady := old.State == engine.PodReady && !e.over
	switch {
	case e.over:
		st.State = engine.PodNotReady
	case wasReady && st.State != engine.PodReady:
		if late || old.PID != 0 && !process.Gone(old.PID, old.StartTicks) {
			return
		}
		e.over = true
	case st.State == engine.PodReady && e.rec.PID != 0 && st.PID != 0 && anotherProcess(e, &st):
		// Somebody started it again: its namespaces and addresses are not those of the record.
		e.over = true
		st.State = engine.PodNotReady
	case st.State == engine.PodReady && (st.PID == old.PID || st.PID == 0):
		// What could not be read this time is as it was.
		st.PID, st.StartTicks = old.PID, cmp.Or(st.StartTicks, old.StartTicks)
		st.NetNSPath, st.CgroupPath = cmp.Or(st.NetNSPath, old.NetNSPath), cmp.Or(st.CgroupPath, old.CgroupPath)
	}
	e.status, e.applied = st, time.Now()
}

// anotherProcess says that a status is of another process than the one that was started. A start time of 0 is one that an engine
// without a descriptor could not read, which says nothing.
func anotherProcess(e *podEntry, st *engine.PodStatus) bool {
	ticks := e.rec.StartTicks
	if ticks == 0 && e.status.PID == e.rec.PID {
		ticks = e.status.StartTicks
	}
	return st.PID != e.rec.PID || st.StartTicks != 0 && ticks != 0 && st.StartTicks != ticks
}

// discoverPod makes the entry of a pod that has no record. It requires mu.
func (s *Store) discoverPod(engineName string, st engine.PodStatus) {
	p := Pod{
		ID: st.ID, Engine: engineName, Spec: *st.Spec, CreatedAt: st.CreatedAt, Seq: s.nextSeq(), Phase: PhaseRunning,
		Returned: true, NetNSPath: st.NetNSPath, PID: st.PID, StartTicks: st.StartTicks, Network: Network{IPs: st.IPs},
	}
	p.Spec.Key = st.Key
	switch {
	case st.State == engine.PodReady:
	case st.StartedAt.IsZero():
		p.Phase = PhaseCreated // by somebody who is about to start it, or has died
	default:
		p.Phase = PhaseStopped
	}
	st.Spec = nil
	e := &podEntry{rec: p, status: st, applied: time.Now()}
	s.pods.publish(e, stageNone)
	s.noteUnrecorded(engineName)
}

// losePod is told that the engine has the pod no more. It requires mu.
func (s *Store) losePod(e *podEntry) {
	if !e.recorded {
		s.pods.drop(e)
		return
	}
	from := podStage(e)
	e.over, e.applied = true, time.Now()
	e.status.State, e.status.PID, e.status.StartTicks, e.status.CgroupPath = engine.PodNotReady, 0, 0, ""
	s.pods.changed(e, from)
}
