package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/process"
)

// The pace of watching. A dockerd that stops is noticed within pingEvery + pingLimit; one that dies, at once. All that is asked of it
// fails then, and kubelets up to 1.22 never again stop a pod whose stop failed once: a node that is merely overloaded must not come to
// that.
const (
	pingEvery        = 2 * time.Second
	pingLimit        = 10 * time.Second
	retryFirst       = 50 * time.Millisecond
	retryMost        = time.Second
	reconcileEvery   = 30 * time.Second
	inspectLimit     = 5 * time.Second
	snapshotLogLimit = 200 * time.Millisecond
	// inspectors bounds the inspects in flight: dockerd answers no faster with more.
	inspectors = 16
)

// The reasons of a Health that is not ready.
const (
	reasonUnavailable   = "EngineUnavailable"
	reasonNotResponding = "EngineNotResponding"
	reasonChanged       = "EngineChanged"
)

// notReady is the end of a session, as Health reports it.
type notReady struct {
	reason string
	err    error
}

func (n *notReady) Error() string { return n.err.Error() }
func (n *notReady) Unwrap() error { return n.err }

// Watch connects, and again after each loss, until ctx ends.
//
//	connect → subscribe to events → list and inspect all → ready, Resync → events, each inspected → loss: not ready ↩
//
// dockerd keeps 256 past events only and drops those that a slow subscriber does not take, so events never carry state
// here: each only says which container to look at, every gap ends in a full Resync, and a comparison every
// reconcileEvery finds what an event was lost for.
func (e *Engine) Watch(ctx context.Context, sink engine.Sink) error {
	logs, err := newLogs(ctx, e)
	if err != nil {
		return err
	}
	e.logs.Store(logs)
	defer logs.close()
	var beside sync.WaitGroup
	besides, stop := context.WithCancel(ctx)
	if !e.opts.Observe {
		// Nothing is made before there is a session, and only the daemon comes here.
		if err := e.podFiles.sweep(); err != nil {
			klog.ErrorS(err, "Mounts of pods that are gone are left, the next start tries again")
		}
		beside.Go(func() { e.images.Run(besides) })
	}
	_, _ = e.oom.open(kernelLog) // before anybody looks at a container; watch tells why it could not be
	beside.Go(func() { e.oom.watch(besides, kernelLog, time.Minute) })
	defer beside.Wait()
	defer stop()
	health := engine.Health{}
	told := false
	logged := map[string]bool{}
	retry := retryFirst
	for {
		started := time.Now()
		err := e.watchSession(ctx, sink, func(f *facts) {
			f.logOnce(logged)
			health, told = engine.Health{Ready: true}, true
			sink.Health(health)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if u := (unusable{}); errors.As(err, &u) {
			return err // it is not away: whoever hears that waits for it to come back
		}
		next := engine.Health{Reason: reasonUnavailable, Message: err.Error()}
		if why := (*notReady)(nil); errors.As(err, &why) {
			next.Reason = why.reason
		}
		if !told || health.Ready || health.Reason != next.Reason {
			klog.InfoS("Docker Engine is away", "reason", next.Reason, "err", err)
		}
		if !told || health != next { // it may be there again, and of no use for another cause
			health, told = next, true
			sink.Health(health)
		}
		if time.Since(started) > 10*time.Second {
			retry = retryFirst
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
		retry = min(2*retry, retryMost)
	}
}

// watchSession runs one session and returns why it ended. ready is called right before its Resync.
func (e *Engine) watchSession(ctx context.Context, sink engine.Sink, ready func(*facts)) error {
	life, end := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer end(errAway)

	cli, facts, err := e.connect(life)
	if err != nil {
		return err
	}
	defer func() { _ = cli.Close() }()
	if err := e.sameEngine(facts); err != nil {
		return err
	}
	s := &session{cli: cli, facts: facts, life: life, recorded: e.opts.Recorded}
	w := &watcher{
		e: e, s: s, sink: sink,
		dirty: map[string]object{}, died: map[string]death{}, busy: map[string]bool{}, seen: map[string]seenObject{},
		failed: map[string]object{}, wake: make(chan struct{}, 1), results: make(chan observed), lists: make(chan []container.Summary),
	}
	s.watch = w
	// The watchdog comes first: the subscription and the list hang with a hung engine.
	running.Go(func() { end(e.watchdog(life, s)) })
	if err := w.subscribe(&running, end); err != nil {
		return causeOr(life, err)
	}
	snapshot, err := w.snapshot()
	if err != nil {
		return causeOr(life, err)
	}
	forgotten := w.suspects()
	e.pauses.forgetOthers(w.seen)
	e.processes.forgetOthers(w.seen)
	if !e.opts.Observe {
		e.sweepMounts(life, s)
		e.logs.Load().forgetOthers(life, w.seen)
	}
	info := facts.info()
	e.info.Store(&info)
	snapshot.Taken = time.Now() // what calls make from now on is not in it
	e.current.Store(s)
	defer e.current.CompareAndSwap(s, nil)
	e.images.Invalidate()
	ready(facts)
	sink.Resync(snapshot)
	if !e.opts.Observe {
		running.Go(func() { w.endForgotten(forgotten) })
	}
	w.loop(&running)
	// Nothing is answered any more before anybody is told.
	e.current.CompareAndSwap(s, nil)
	return causeOr(life, errAway)
}

// causeOr prefers why the session ended to what that made fail.
func causeOr(life context.Context, err error) error {
	if cause := context.Cause(life); cause != nil {
		return cause
	}
	return err
}

// sameEngine refuses an engine whose containers are kept in other cgroups or another store than before: what was
// recorded of them does not hold.
func (e *Engine) sameEngine(f *facts) error {
	if e.first == nil {
		e.first = f
		return nil
	}
	if e.first.cgroupDriver != f.cgroupDriver || e.first.storageDriver != f.storageDriver || e.first.rootDir != f.rootDir {
		return &notReady{reasonChanged, fmt.Errorf(
			"the Docker Engine has changed from %s/%s in %s to %s/%s in %s: undo it, or drain the node and restart this daemon: %w",
			e.first.cgroupDriver, e.first.storageDriver, e.first.rootDir, f.cgroupDriver, f.storageDriver, f.rootDir, errdefs.ErrFailedPrecondition)}
	}
	return nil
}

// watchdog returns when the engine stops answering pings.
func (e *Engine) watchdog(ctx context.Context, s *session) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pingEvery):
		}
		pinging, cancel := context.WithTimeout(ctx, e.opts.pingLimit)
		_, err := s.cli.Ping(pinging)
		late := pinging.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && late:
			return &notReady{reasonNotResponding, fmt.Errorf("no answer to a ping within %s: %w", e.opts.pingLimit, errAway)}
		case err != nil:
			return &notReady{reasonUnavailable, fmt.Errorf("ping: %w: %w", err, errdefs.ErrUnavailable)}
		}
	}
}

// watcher is what one session knows. The reader of events touches only the fields under mu.
type watcher struct {
	e    *Engine
	s    *session
	sink engine.Sink

	mu     sync.Mutex
	dirty  map[string]object // to look at
	known  []observed        // what needs no look any more
	died   map[string]death  // ends of containers, until they were looked at
	images bool
	wake   chan struct{}

	busy    map[string]bool // being looked at
	seen    map[string]seenObject
	failed  map[string]object // to look at again, within a second
	results chan observed
	lists   chan []container.Summary
}

// seenObject is what the sink was told last.
type seenObject struct {
	kind  object
	state string
}

// observed is one object after a look: a status, or gone, or neither when the look failed.
type observed struct {
	id        string
	kind      object
	state     string
	pod       *engine.PodStatus
	container *engine.ContainerStatus
	gone      bool
	again     bool // to be looked at once more, a little later
	err       error
}

// subscribe returns once the engine sends events.
func (w *watcher) subscribe(running *sync.WaitGroup, end context.CancelCauseFunc) error {
	args := filters.NewArgs(filters.Arg("type", string(events.ContainerEventType)), filters.Arg("type", string(events.ImageEventType)))
	for _, action := range []events.Action{
		events.ActionCreate, events.ActionStart, events.ActionDie, events.ActionOOM, events.ActionPause, events.ActionUnPause,
		events.ActionUpdate, events.ActionDestroy, events.ActionExecDie,
		events.ActionPull, events.ActionTag, events.ActionUnTag, events.ActionDelete, events.ActionLoad, events.ActionImport, events.ActionPrune,
	} {
		args.Add("event", string(action))
	}
	messages, errs := w.s.cli.Events(w.s.life, events.ListOptions{Filters: args})
	select {
	case err := <-errs:
		return err
	default:
	}
	running.Go(func() {
		for {
			select {
			case message := <-messages:
				w.note(&message)
			case err := <-errs:
				end(&notReady{reasonUnavailable, fmt.Errorf("the stream of events ended: %w: %w", err, errdefs.ErrUnavailable)})
				return
			}
		}
	})
	return nil
}

// note never waits: dockerd drops the events of those who do.
func (w *watcher) note(m *events.Message) {
	attributes := m.Actor.Attributes
	first, _ := w.e.processes.of(m.Actor.ID)
	if m.Action == events.ActionExecDie {
		if code, err := strconv.Atoi(attributes[attributeExitCode]); err == nil && first.codesInEvents { // else an inspect tells
			w.e.execs.ended(attributes[attributeExecID], code)
		}
		return
	}
	switch m.Type {
	case events.ImageEventType:
		w.mu.Lock()
		w.images = true
		w.mu.Unlock()
	case events.ContainerEventType:
		// An event's attributes are the container's labels and its name.
		id := m.Actor.ID
		kind := w.s.kindOf(id, attributes, attributes["name"])
		switch {
		case kind == foreign || !validID(id):
			return
		case m.Action == events.ActionDestroy && w.e.mounts.keyOf(engine.ContainerID(id)) == "": // else the look cleans up
			w.saw(observed{id: id, kind: kind, gone: true})
			return
		case m.Action == events.ActionCreate && w.e.own.covers(attributes["name"], id),
			m.Action == events.ActionStart && w.e.own.covers(id, id):
			return
		case m.Action == events.ActionDie && kind == workload && first.codesInEvents:
			w.noteDeath(id, attributes[attributeExitCode], time.Unix(0, m.TimeNano))
		}
		w.mark(id, kind)
	}
	w.poke()
}

// death is how and when a container ended, as its event told.
type death struct {
	code int32
	at   time.Time
}

func (w *watcher) noteDeath(id, exitCode string, at time.Time) {
	code, err := strconv.ParseInt(exitCode, 10, 32)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.died[id] = death{int32(code), at}
}

// endBefore is the end of a container that runs again by the time of the look (docker restart): only its event told of it. An end
// after the start that was seen is kept for the next look: this one was older.
func (w *watcher) endBefore(status *engine.ContainerStatus) (ended engine.ContainerStatus, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, ok := w.died[string(status.ID)]
	runs := status.State == engine.ContainerRunning
	if !ok || runs && !d.at.Before(status.StartedAt) {
		return ended, false
	}
	delete(w.died, string(status.ID))
	if !runs {
		return ended, false
	}
	ended = *status
	ended.State, ended.StartedAt, ended.FinishedAt, ended.ExitCode, ended.Reason = engine.ContainerExited, time.Time{}, d.at, d.code, engine.ReasonError
	if d.code == 0 {
		ended.Reason = engine.ReasonCompleted
	}
	return ended, true
}

// saw takes in what is known of an object without a look at it.
func (w *watcher) saw(o observed) {
	w.mu.Lock()
	w.known = append(w.known, o)
	w.mu.Unlock()
	w.poke()
}

// lookAt is for an object of which an action of ours does not know what became.
func (w *watcher) lookAt(id string, kind object) {
	w.mark(id, kind)
	w.poke()
}

func (w *watcher) mark(id string, kind object) {
	w.mu.Lock()
	w.dirty[id] = kind
	w.mu.Unlock()
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// loop tells the sink until the session ends.
func (w *watcher) loop(running *sync.WaitGroup) {
	life := w.s.life
	reconcile := time.NewTicker(reconcileEvery)
	defer reconcile.Stop()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	w.poke()
	for {
		select {
		case <-life.Done():
			return
		case <-w.wake:
			w.look(running)
		case o := <-w.results:
			delete(w.busy, o.id)
			w.tell(running, &o)
			w.look(running)
		case <-again.C:
			for id, kind := range w.failed {
				w.mark(id, kind)
			}
			clear(w.failed)
			w.look(running)
		case summaries := <-w.lists:
			w.compare(summaries)
			w.look(running)
		case <-reconcile.C:
			running.Go(w.reconcile)
		}
	}
}

// look starts looking at what changed. One object is looked at by one goroutine at a time, so its statuses stay in order.
func (w *watcher) look(running *sync.WaitGroup) {
	w.mu.Lock()
	images, known := w.images, w.known
	w.images, w.known = false, nil
	known = slices.DeleteFunc(known, func(o observed) bool {
		switch {
		case w.busy[o.id]:
			w.dirty[o.id] = o.kind // the look under way may be older or newer: another one decides
		case o.gone:
			delete(w.dirty, o.id)
		}
		return w.busy[o.id]
	})
	var start []observed
	for id, kind := range w.dirty {
		if len(w.busy) >= inspectors {
			break
		}
		if w.busy[id] {
			continue
		}
		w.busy[id] = true
		delete(w.dirty, id)
		start = append(start, observed{id: id, kind: kind})
	}
	w.mu.Unlock()
	if images {
		w.e.images.Invalidate()
		w.sink.ImagesChanged()
	}
	for i := range known {
		w.tell(running, &known[i])
	}
	for _, o := range start {
		running.Go(func() {
			w.observe(&o, finishLimit)
			select {
			case w.results <- o:
			case <-w.s.life.Done():
			}
		})
	}
}

// observe asks the engine. A container that has exited is reported after its log is complete, or after logLimit.
func (w *watcher) observe(o *observed, logLimit time.Duration) {
	ctx, cancel := context.WithTimeout(w.s.life, inspectLimit)
	in, err := w.s.cli.ContainerInspect(ctx, o.id)
	cancel()
	switch {
	case errdefs.IsNotFound(err):
		o.gone = true
		if o.kind != workload || w.e.opts.Observe {
			break
		}
		if err := w.e.dropMountsOf(w.s.life, engine.ContainerID(o.id)); err != nil && w.s.life.Err() == nil {
			klog.ErrorS(err, "Cannot remove what was prepared for a container, it is tried again at the next connect", "id", o.id)
		}
	case err != nil:
		o.err = err
	case !complete(&in):
		o.err = fmt.Errorf("inspect %s: the answer is incomplete: %w", o.id, errdefs.ErrDataLoss)
	default:
		logging, cancel := context.WithTimeout(w.s.life, logLimit)
		defer cancel()
		w.e.fill(logging, w.s.facts, o, &in)
	}
}

// fill makes the status of o.
func (e *Engine) fill(ctx context.Context, f *facts, o *observed, in *container.InspectResponse) {
	o.state = in.State.Status
	if o.kind == sandbox {
		status := e.podStatus(in, f)
		o.pod = &status
		// Whoever is told does not believe it of a pod whose process still runs, and no event tells of that one's end.
		p, known := e.processes.of(in.ID)
		o.again = status.State != engine.PodReady && known && p.startTicks != 0 && !process.Gone(p.pid, p.startTicks)
		return
	}
	status := e.containerStatus(in, f)
	o.again = e.logs.Load().follow(ctx, in, &status)
	o.container = &status
}

func (w *watcher) tell(running *sync.WaitGroup, o *observed) {
	if o.err != nil {
		if w.s.life.Err() == nil {
			klog.ErrorS(o.err, "Cannot look at a container, it is tried again", "id", o.id)
			w.failed[o.id] = o.kind
		}
		return
	}
	if o.gone {
		delete(w.seen, o.id)
		w.mu.Lock()
		delete(w.died, o.id)
		w.mu.Unlock()
		if w.s.recorded == nil || !w.s.recorded(o.id) {
			w.e.cgroups.forget(o.id)
		}
		if o.kind == sandbox {
			w.e.pauses.forget(engine.PodID(o.id))
			w.e.processes.forget(o.id)
			w.sink.PodRemoved(engine.PodID(o.id))
		} else {
			running.Go(func() { // a log whose disk hangs must not hold up what there is to tell of others
				if err := w.e.forget(w.s.life, engine.ContainerID(o.id)); err != nil {
					klog.ErrorS(err, "Cannot forget a removed container's log", "id", o.id)
				}
			})
			w.sink.ContainerRemoved(engine.ContainerID(o.id))
		}
		return
	}
	w.seen[o.id] = seenObject{o.kind, o.state}
	if o.again {
		w.failed[o.id] = o.kind
	}
	if o.pod != nil {
		w.sink.PodChanged(*o.pod)
		return
	}
	if ended, ok := w.endBefore(o.container); ok {
		w.sink.ContainerChanged(ended)
	}
	w.sink.ContainerChanged(*o.container)
}

// snapshot lists and inspects everything of ours. A container whose inspect hangs or fails is taken from the list and
// looked at again, so that it keeps nobody else from being served.
func (w *watcher) snapshot() (engine.Snapshot, error) {
	summaries, probes, err := w.list()
	if err != nil {
		return engine.Snapshot{}, err
	}
	w.e.removeProbes(w.s, probes)
	keys := map[engine.ContainerID]preparedMounts{}
	for i := range summaries {
		if key := summaries[i].Labels[labelMounts]; key != "" {
			keys[engine.ContainerID(summaries[i].ID)] = preparedMounts{key, engine.PodID(summaries[i].Labels[labelSandbox])}
		}
	}
	w.e.mounts.known(keys)
	all := make([]observed, len(summaries))
	slots := make(chan struct{}, inspectors)
	var looking sync.WaitGroup
	for i := range summaries {
		slots <- struct{}{}
		looking.Go(func() {
			defer func() { <-slots }()
			o := &all[i]
			*o = observed{id: summaries[i].ID, kind: w.s.kindOf(summaries[i].ID, summaries[i].Labels, summaryName(&summaries[i]))}
			// Many logs on a full disk must not keep everything from being served.
			if w.observe(o, snapshotLogLimit); o.err != nil && w.s.life.Err() == nil {
				klog.ErrorS(o.err, "Cannot look at a container, the list's entry is used", "id", o.id)
				in := inspectOf(&summaries[i])
				w.e.fill(w.s.life, w.s.facts, o, &in)
				w.mark(o.id, o.kind)
			}
		})
	}
	looking.Wait()
	if err := w.s.life.Err(); err != nil {
		return engine.Snapshot{}, err
	}
	var snapshot engine.Snapshot
	for i := range all {
		o := &all[i]
		if o.gone {
			continue
		}
		w.seen[o.id] = seenObject{o.kind, o.state}
		if o.again {
			w.failed[o.id] = o.kind
		}
		if o.pod != nil {
			snapshot.Pods = append(snapshot.Pods, *o.pod)
		} else {
			snapshot.Containers = append(snapshot.Containers, *o.container)
		}
	}
	return snapshot, nil
}

// list is every container of ours, and the probes that nobody removes.
func (w *watcher) list() (ours []container.Summary, probes []string, err error) {
	ctx, cancel := context.WithTimeout(w.s.life, quickLimit)
	defer cancel()
	all, err := w.s.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", labelType))})
	if err != nil {
		return nil, nil, fmt.Errorf("list containers: %w", err)
	}
	for _, summary := range all {
		switch {
		case w.e.leftProbe(&summary):
			probes = append(probes, summary.ID)
		case validID(summary.ID) && w.s.kindOf(summary.ID, summary.Labels, summaryName(&summary)) != foreign:
			ours = append(ours, summary)
		}
	}
	return ours, probes, nil
}

func summaryName(s *container.Summary) string {
	if len(s.Names) == 0 {
		return ""
	}
	return s.Names[0]
}

// inspectOf is the little of an inspect that a list knows.
func inspectOf(s *container.Summary) container.InspectResponse {
	return container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: s.ID, Name: summaryName(s), Image: s.ImageID, Created: time.Unix(s.Created, 0).UTC().Format(time.RFC3339Nano),
			State: &container.State{
				Status: s.State, Running: s.State == container.StateRunning, Paused: s.State == container.StatePaused,
				Dead: s.State != container.StateRunning && s.State != container.StatePaused && s.State != container.StateCreated,
			},
			HostConfig: &container.HostConfig{NetworkMode: container.NetworkMode(s.HostConfig.NetworkMode)},
		},
		Config: &container.Config{Labels: s.Labels, Image: s.Image},
	}
}

// reconcile hands the loop a list to compare with what the sink was told.
func (w *watcher) reconcile() {
	summaries, probes, err := w.list()
	if err != nil {
		return // the watchdog decides what that means
	}
	select {
	case w.lists <- summaries:
	case <-w.s.life.Done():
	}
	w.e.removeProbes(w.s, probes)
}

// compare marks what differs from what the sink was told: its event was lost. It also marks those whose log is owed, of which
// no event will tell.
func (w *watcher) compare(summaries []container.Summary) {
	logs := w.e.logs.Load()
	listed := map[string]bool{}
	for i := range summaries {
		s := &summaries[i]
		listed[s.ID] = true
		if seen, ok := w.seen[s.ID]; !ok || seen.state != s.State || logs.owes(engine.ContainerID(s.ID)) {
			w.mark(s.ID, w.s.kindOf(s.ID, s.Labels, summaryName(s)))
		}
	}
	for id, seen := range w.seen {
		if !listed[id] {
			w.mark(id, seen.kind)
		}
	}
}
