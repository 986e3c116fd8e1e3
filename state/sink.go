package state

import (
	"maps"
	"slices"
	"time"

	"crishim/engine"
)

// engineState is what is known of an engine itself.
type engineState struct {
	health engine.Health
	synced chan struct{} // closed by the first Resync
	// unrecorded: the engine told of an object without a record, and nobody was told of that yet.
	unrecorded bool
}

var notConnected = engine.Health{Reason: "EngineNotConnected", Message: "the engine has not answered since this daemon was started"}

// buryFor is how long a deleted id is not taken for a new object: longer than any status can be late.
const buryFor = time.Minute

// Sink is where the named engine's Watch delivers. It serves one Watch at a time.
//
// Objects of the engine that have no record get an entry where their status has a Spec. A recorded object that is missing
// from a Resync or reported as removed stays until it is deleted: its pod is NOTREADY, its container EXITED with the
// exit that was known, else 255 and ReasonUnknown.
func (s *Store) Sink(engineName string) engine.Sink {
	return &sink{store: s, engine: engineName, state: s.engine(engineName)}
}

type sink struct {
	store  *Store
	engine string
	state  *engineState
}

func (k *sink) Health(h engine.Health) {
	k.store.mu.Lock()
	k.state.health = h
	listeners := slices.Clone(k.store.onHealth)
	k.store.mu.Unlock()
	for _, f := range listeners {
		f(k.engine, h)
	}
}

func (k *sink) Resync(snap engine.Snapshot) {
	k.tellRestarted(k.resync(snap))
	k.tellUnrecorded()
}

// tellUnrecorded tells that there are objects without a record.
func (k *sink) tellUnrecorded() {
	k.store.mu.Lock()
	told := k.state.unrecorded
	k.state.unrecorded = false
	listeners := slices.Clone(k.store.onUnrecorded)
	k.store.mu.Unlock()
	if !told {
		return
	}
	for _, f := range listeners {
		f(k.engine)
	}
}

// tellRestarted tells of containers that had exited and run.
func (k *sink) tellRestarted(ids []engine.ContainerID) {
	if len(ids) == 0 {
		return
	}
	k.store.mu.RLock()
	listeners := slices.Clone(k.store.onRestarted)
	k.store.mu.RUnlock()
	for _, id := range ids {
		for _, f := range listeners {
			f(k.engine, id)
		}
	}
}

// resync returns the containers that had exited and run.
func (k *sink) resync(snap engine.Snapshot) (restarted []engine.ContainerID) {
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := snap.Taken
	if taken.IsZero() {
		taken = time.Now()
	}
	pods, containers := map[engine.PodID]bool{}, map[engine.ContainerID]bool{}
	for _, st := range slices.SortedStableFunc(slices.Values(snap.Pods), func(a, b engine.PodStatus) int { return a.CreatedAt.Compare(b.CreatedAt) }) {
		pods[st.ID] = true
		s.applyPod(k.engine, st)
	}
	for _, st := range slices.SortedStableFunc(slices.Values(snap.Containers), func(a, b engine.ContainerStatus) int { return a.CreatedAt.Compare(b.CreatedAt) }) {
		containers[st.ID] = true
		if s.restarted(k.engine, &st) {
			restarted = append(restarted, st.ID)
		}
		s.applyContainer(k.engine, st)
	}
	for _, e := range s.containers.bySeq {
		if e.rec.Engine == k.engine && e.rec.ID != "" && !containers[e.rec.ID] && e.applied.Before(taken) {
			s.loseContainer(e)
		}
	}
	for _, e := range s.pods.bySeq {
		if e.rec.Engine == k.engine && e.rec.ID != "" && !pods[e.rec.ID] && e.applied.Before(taken) {
			s.losePod(e)
		}
	}
	select {
	case <-k.state.synced:
	default:
		close(k.state.synced)
	}
	return restarted
}

func (k *sink) PodChanged(st engine.PodStatus) {
	k.store.mu.Lock()
	k.store.applyPod(k.engine, st)
	k.store.mu.Unlock()
	k.tellUnrecorded()
}

func (k *sink) ContainerChanged(st engine.ContainerStatus) {
	k.store.mu.Lock()
	restarted := k.store.restarted(k.engine, &st)
	k.store.applyContainer(k.engine, st)
	k.store.mu.Unlock()
	if restarted {
		k.tellRestarted([]engine.ContainerID{st.ID})
	}
	k.tellUnrecorded()
}

func (k *sink) PodRemoved(id engine.PodID) {
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	if e := k.store.pods.byID[string(id)]; e != nil && e.rec.Engine == k.engine {
		k.store.losePod(e)
	}
}

func (k *sink) ContainerRemoved(id engine.ContainerID) {
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	if e := k.store.containers.byID[string(id)]; e != nil && e.rec.Engine == k.engine {
		k.store.loseContainer(e)
	}
}

func (k *sink) ImagesChanged() {
	k.store.mu.RLock()
	listeners := slices.Clone(k.store.onImages)
	k.store.mu.RUnlock()
	for _, f := range listeners {
		f(k.engine)
	}
}

// noteUnrecorded requires mu.
func (s *Store) noteUnrecorded(engineName string) {
	if e := s.engines[engineName]; e != nil {
		e.unrecorded = true
	}
}

// Bury has what an engine still tells of an object ignored that was made and taken back before any record had its id.
func (s *Store) Bury(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bury(id)
}

// bury requires mu.
func (s *Store) bury(id string) {
	now := time.Now()
	if now.Sub(s.swept) > buryFor {
		s.swept = now
		maps.DeleteFunc(s.removed, func(_ string, at time.Time) bool { return now.Sub(at) > buryFor })
	}
	s.removed[id] = now
}

// buried requires mu.
func (s *Store) buried(id string) bool {
	at, ok := s.removed[id]
	return ok && time.Since(at) <= buryFor
}
