package state

import (
	"slices"
	"time"

	"crishim/engine"
)

// ReasonUnknown and ExitUnknown describe a container that ended without anybody having seen how.
const (
	ReasonUnknown       = "Unknown"
	ExitUnknown   int32 = 255
)

func newContainerTable(s *Store) *table[engine.ContainerStatus, Container, *Container, ContainerView] {
	t := newTable[engine.ContainerStatus, Container, *Container, ContainerView](s, "container")
	t.view = containerView
	t.stage = containerStage
	t.derive = deriveContainer
	t.indexed = func(e *containerEntry, present bool) {
		set := s.podContainers[e.rec.PodID]
		if !present {
			if delete(set, e); len(set) == 0 {
				delete(s.podContainers, e.rec.PodID)
			}
			return
		}
		if set == nil {
			set = map[*containerEntry]struct{}{}
			s.podContainers[e.rec.PodID] = set
		}
		set[e] = struct{}{}
	}
	t.emit = func(from, to stage, e *containerEntry) {
		if to == stageNone && from != stageNone && e.deleted {
			s.emit(EventDeleted, e.rec.PodID, e.rec.ID)
			return
		}
		s.emitStages(from, to, !e.rec.StartedAt.IsZero(), e.rec.PodID, e.rec.ID)
	}
	return t
}

// PutContainer is PutPod for a container.
func (s *Store) PutContainer(c Container) error { return s.containers.put(c) }

// UpdateContainer is UpdatePod for a container. What the store learnt from statuses (StartedAt to StopSignal) is put
// back where change sets it to something else than the engine says.
func (s *Store) UpdateContainer(id engine.ContainerID, change func(*Container) error) error {
	return s.containers.update(s.containerEntry(id), false, change)
}

// UpdateContainerByKey is UpdateContainer for a container that may not have an id yet.
func (s *Store) UpdateContainerByKey(pod engine.PodID, key engine.ContainerKey, change func(*Container) error) error {
	return s.containers.update(s.containerEntryByKey(pod, key), false, change)
}

// NoteContainer is UpdateContainer for what the engine has done to the container already: where it cannot be written it counts all
// the same, is kept in memory and written as soon as that is possible (see WriteError). A container without a record gets none: its
// adoption writes it. ErrNotFound when there is no such container.
func (s *Store) NoteContainer(id engine.ContainerID, change func(*Container)) error {
	return s.containers.update(s.containerEntry(id), true, func(c *Container) error { change(c); return nil })
}

// MarkContainerRemoving is MarkPodRemoving for a container.
func (s *Store) MarkContainerRemoving(id engine.ContainerID) {
	s.containers.mark(s.containerEntry(id), func(c *Container) { c.Phase = PhaseRemoving })
}

// DeleteContainer is DeletePod for a container.
func (s *Store) DeleteContainer(id engine.ContainerID) error {
	return s.containers.remove(s.containerEntry(id))
}

// DeleteContainerByKey is DeleteContainer for a container that may not have an id.
func (s *Store) DeleteContainerByKey(pod engine.PodID, key engine.ContainerKey) error {
	return s.containers.remove(s.containerEntryByKey(pod, key))
}

// Container is the container with exactly this id.
func (s *Store) Container(id engine.ContainerID) (ContainerView, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.containers.byID[string(id)]; e != nil {
		return containerView(e), true
	}
	return ContainerView{}, false
}

// ContainerByKey is PodByKey for a container.
func (s *Store) ContainerByKey(pod engine.PodID, key engine.ContainerKey) (ContainerView, bool) {
	e := s.containerEntryByKey(pod, key)
	if e == nil {
		return ContainerView{}, false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return containerView(e), !e.deleted
}

// FindContainer is FindPod for a container.
func (s *Store) FindContainer(idOrPrefix string) (ContainerView, error) {
	return s.containers.search(idOrPrefix)
}

// Containers is Pods for containers.
func (s *Store) Containers() []ContainerView { return s.containers.views() }

// ContainersOf are the containers of one pod in order of creation, those in PhaseIntent included.
func (s *Store) ContainersOf(pod engine.PodID) []ContainerView {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.containersOf(pod)
}

// containersOf requires mu.
func (s *Store) containersOf(pod engine.PodID) []ContainerView {
	set := s.podContainers[pod]
	views := make([]ContainerView, 0, len(set))
	for e := range set {
		views = append(views, containerView(e))
	}
	slices.SortFunc(views, func(a, b ContainerView) int { return int(int64(a.Seq) - int64(b.Seq)) })
	return views
}

// ApplyContainer takes in a status that one of our own actions returned. A container that the store does not know is
// ignored.
func (s *Store) ApplyContainer(st engine.ContainerStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyContainer("", st)
}

func (s *Store) containerEntry(id engine.ContainerID) *containerEntry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.containers.byID[string(id)]
}

func (s *Store) containerEntryByKey(pod engine.PodID, key engine.ContainerKey) *containerEntry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.containers.find(containerKeyName(pod, key))
}

func containerView(e *containerEntry) ContainerView {
	v := ContainerView{Container: e.rec, Status: e.status, State: e.status.State, Recorded: e.recorded}
	if v.State == "" {
		v.State = engine.ContainerUnknown
	}
	return v
}

func containerStage(e *containerEntry) stage {
	if e.deleted || e.rec.ID == "" || e.rec.Phase == PhaseIntent {
		return stageNone
	}
	switch e.status.State {
	case engine.ContainerRunning:
		return stageStarted
	case engine.ContainerExited:
		return stageStopped
	case engine.ContainerUnknown:
		if !e.rec.StartedAt.IsZero() {
			return stageStarted
		}
	}
	return stageCreated
}

// containerStatusOf is what a record implies until the engine speaks.
func containerStatusOf(c *Container) engine.ContainerStatus {
	st := engine.ContainerStatus{
		ID: c.ID, Pod: c.PodID, PodKey: c.Spec.PodKey, Key: c.Spec.Key, CreatedAt: c.CreatedAt,
		StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message,
		PID: c.PID, StartTicks: c.StartTicks, ImageID: c.ImageID, StopSignal: c.StopSignal, User: c.User,
	}
	switch {
	case !c.FinishedAt.IsZero():
		st.State = engine.ContainerExited
	case !c.StartedAt.IsZero():
		st.State = engine.ContainerRunning
	case c.Phase == PhaseIntent:
		// Nothing is implied.
	default:
		st.State = engine.ContainerCreated
	}
	return st
}

// deriveContainer keeps in the record what the engine told, or gives a container that its engine has not spoken of yet
// the status that the record implies. Only an exit is worth a write of its own: the rest is written
// with the next update, and told again by the engine after a restart.
func deriveContainer(e *containerEntry) bool {
	c, st := &e.rec, &e.status
	if st.State == "" {
		e.status = containerStatusOf(c)
		return false
	}
	if !st.StartedAt.IsZero() {
		c.StartedAt = st.StartedAt
	}
	c.PID, c.StartTicks = st.PID, st.StartTicks
	if st.User != nil {
		c.User = st.User
	}
	if st.StopSignal != "" {
		c.StopSignal = st.StopSignal
	}
	if st.ImageID != "" && c.ImageID == "" {
		c.ImageID = st.ImageID
	}
	if st.State != engine.ContainerExited {
		return false
	}
	if c.FinishedAt.Equal(st.FinishedAt) && c.ExitCode == st.ExitCode && c.Reason == st.Reason && c.Message == st.Message {
		return false
	}
	c.FinishedAt, c.ExitCode, c.Reason, c.Message = st.FinishedAt, st.ExitCode, st.Reason, st.Message
	return true
}

// applyContainer takes in a status from the named engine, or from our own action (""). It requires mu.
func (s *Store) applyContainer(engineName string, st engine.ContainerStatus) {
	e := s.containers.byID[string(st.ID)]
	if e != nil && engineName != "" && e.rec.Engine != engineName {
		return
	}
	if e == nil {
		if s.buried(string(st.ID)) {
			return
		}
		if e = s.containers.unidentified(containerKeyName(st.Pod, st.Key), engineName); e != nil {
			s.containers.identify(e, string(st.ID))
		}
	}
	if e == nil {
		if engineName != "" && st.Spec != nil {
			s.discoverContainer(engineName, st)
		}
		return
	}
	from := containerStage(e)
	if !e.recorded && !e.rec.Adopted && e.status.StartedAt.IsZero() && !st.StartedAt.IsZero() && st.Spec != nil {
		// Its engine had only listed it before, and tells now what it was made from.
		e.rec.Spec, e.rec.Resources = specOf(&st), st.Spec.Resources
	}
	e.status, e.applied = advance(e.status, st), time.Now()
	s.containers.changed(e, from)
	if !e.recorded {
		s.noteUnrecorded(e.rec.Engine)
	}
}

// restarted says that a status is of a container that had exited and was started again by somebody else: CRI starts a
// container once. It requires mu.
func (s *Store) restarted(engineName string, st *engine.ContainerStatus) bool {
	e := s.containers.byID[string(st.ID)]
	if e == nil || e.rec.Engine != engineName || st.State != engine.ContainerRunning {
		return false
	}
	switch e.status.State {
	case engine.ContainerExited:
		return st.StartedAt.After(e.status.FinishedAt)
	case engine.ContainerRunning:
		return s.exitMissed(e, st)
	}
	return false
}

// exitMissed tells a container that exited and was started again while nobody looked: another process runs, and how the
// first one ended is not known. The exit is noted. It requires mu.
func (s *Store) exitMissed(e *containerEntry, st *engine.ContainerStatus) bool {
	old := &e.status
	if old.PID == 0 || st.PID == 0 || st.PID == old.PID || old.StartedAt.IsZero() || !st.StartedAt.After(old.StartedAt) {
		return false
	}
	from := containerStage(e)
	exited := *old
	// Before the other start, by which restarted tells it again while it runs.
	exited.State, exited.FinishedAt, exited.ExitCode, exited.Reason = engine.ContainerExited, st.StartedAt.Add(-time.Nanosecond), ExitUnknown, ReasonUnknown
	exited.Message = "somebody else started the container again; how it had ended was not seen"
	e.status, e.applied = advance(e.status, exited), time.Now()
	s.containers.changed(e, from)
	return true
}

// advance is the new status of a container after the engine told next. States only move along the arrows, whatever comes
// late or twice; a status that would move it elsewhere changes nothing.
//
//	(nothing) ──► any state
//
//	CREATED ──► RUNNING ──► EXITED
//	   │           │           ▲
//	   │           ▼           │
//	   └──────► UNKNOWN ───────┘
//	   └───────────────────────┘
//
// How a container exited does not change once it is known. Exceptions: an exit nobody had seen (ReasonUnknown) gives
// way to the true one, and news of an OOM kill may come after the exit code.
func advance(old, next engine.ContainerStatus) engine.ContainerStatus {
	if !mayFollow(old.State, next.State) {
		return old
	}
	next.Spec = nil
	keepKnown(&next, &old)
	switch next.State {
	case engine.ContainerExited:
		next.PID, next.StartTicks, next.CgroupPath = 0, 0, ""
		if old.State == engine.ContainerExited && !correctsExit(&old, &next) {
			next.FinishedAt, next.ExitCode, next.Reason, next.Message = old.FinishedAt, old.ExitCode, old.Reason, old.Message
		}
		next.FinishedAt = finishTime(&next)
	case engine.ContainerRunning:
		if next.PID == 0 || next.PID == old.PID && next.StartTicks == 0 { // 0: it could not be read
			next.PID, next.StartTicks = old.PID, old.StartTicks
		}
		if next.CgroupPath == "" {
			next.CgroupPath = old.CgroupPath
		}
	}
	return next
}

func mayFollow(old, next engine.ContainerState) bool {
	switch old {
	case "":
		return next != ""
	case engine.ContainerCreated:
		return next == engine.ContainerCreated || next == engine.ContainerRunning || next == engine.ContainerExited || next == engine.ContainerUnknown
	case engine.ContainerRunning:
		return next == engine.ContainerRunning || next == engine.ContainerExited || next == engine.ContainerUnknown
	case engine.ContainerUnknown:
		return next == engine.ContainerUnknown || next == engine.ContainerExited
	case engine.ContainerExited:
		return next == engine.ContainerExited
	}
	return false
}

// keepKnown fills what next does not say with what was known.
func keepKnown(next, old *engine.ContainerStatus) {
	if next.CreatedAt.IsZero() {
		next.CreatedAt = old.CreatedAt
	}
	if !old.StartedAt.IsZero() {
		next.StartedAt = old.StartedAt
	}
	if next.UpperDir == "" {
		next.UpperDir = old.UpperDir
	}
	if next.ImageID == "" {
		next.ImageID = old.ImageID
	}
	if next.StopSignal == "" {
		next.StopSignal = old.StopSignal
	}
	if old.User != nil {
		next.User = old.User // CRI's is that of the first process at its start, which may give up root later
	}
}

func correctsExit(old, next *engine.ContainerStatus) bool {
	lost := old.Reason == ReasonUnknown && old.ExitCode == ExitUnknown
	oom := next.Reason == engine.ReasonOOMKilled && old.Reason != engine.ReasonOOMKilled && next.ExitCode == old.ExitCode
	return lost || oom
}

// finishTime is never zero and never before the start, whatever the clocks did.
func finishTime(st *engine.ContainerStatus) time.Time {
	t := st.FinishedAt
	if t.IsZero() {
		t = time.Now()
	}
	if t.Before(st.StartedAt) {
		return st.StartedAt
	}
	return t
}

// discoverContainer makes the entry of a container that has no record. It requires mu.
func (s *Store) discoverContainer(engineName string, st engine.ContainerStatus) {
	c := Container{
		ID: st.ID, PodID: st.Pod, Engine: engineName, Spec: specOf(&st), CreatedAt: st.CreatedAt, Seq: s.nextSeq(),
		Phase: PhaseCreated, Returned: true, ImageID: st.ImageID, Resources: st.Spec.Resources,
	}
	switch st.State {
	case engine.ContainerRunning:
		c.Phase = PhaseRunning
	case engine.ContainerExited:
		c.Phase = PhaseStopped
	}
	e := &containerEntry{rec: c, status: advance(engine.ContainerStatus{}, st), applied: time.Now()}
	s.containers.publish(e, stageNone)
	s.noteUnrecorded(engineName)
}

// specOf is what an engine has read back, which status has.
func specOf(st *engine.ContainerStatus) engine.ContainerSpec {
	spec := *st.Spec
	spec.Pod, spec.PodKey, spec.Key = st.Pod, st.PodKey, st.Key
	return spec
}

// loseContainer is told that the engine has the container no more. It requires mu.
func (s *Store) loseContainer(e *containerEntry) {
	if !e.recorded {
		s.containers.drop(e)
		return
	}
	from := containerStage(e)
	lost := e.status
	lost.State = engine.ContainerExited
	if e.status.State != engine.ContainerExited {
		lost.FinishedAt, lost.ExitCode, lost.Reason = time.Now(), ExitUnknown, ReasonUnknown
		lost.Message = "the container is gone from the engine; how it ended was not seen"
	}
	e.status, e.applied = advance(e.status, lost), time.Now()
	s.containers.changed(e, from)
}
