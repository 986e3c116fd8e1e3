package native

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/host"
	"crishim/engine/native/monitor"
	"crishim/engine/native/ns"
	"crishim/internal/atomicfile"
	"crishim/internal/process"
)

// What is reported of containers whose end nobody saw.
const (
	codeKilled        = 137
	codeUnknown       = 255
	reasonMonitorLost = "MonitorLost"
)

// load reads the records. Where it cannot even be seen which there are, nothing may be done: all that runs would look like nobody's.
func (e *Engine) load(ctx context.Context) error {
	pods := e.podRecords.load(ctx, func(id string, data []byte) error {
		r, err := decodePod(id, data)
		if err != nil {
			return err
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.pods[r.ID] = &pod{podRecord: r}
		host.ReserveLabels(r.Labels)
		return nil
	}, e.newer)
	containers := e.containerRecords.load(ctx, func(id string, data []byte) error {
		r, err := decodeContainer(id, data)
		if err != nil {
			return err
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.containers[r.ID] = newContainer(r)
		return nil
	}, func(id string, data []byte) error {
		// With one of its containers the whole pod is the newer version's.
		var r struct {
			Spec struct {
				Pod engine.PodID `json:"pod"`
			} `json:"spec"`
		}
		if json.Unmarshal(data, &r) == nil {
			e.leaveAlone(r.Spec.Pod)
		}
		return e.newer(id, data)
	})
	if err := errors.Join(pods, containers); err != nil {
		return fmt.Errorf("read the records of pods and containers: %w", err)
	}
	e.mu.Lock()
	var taken []engine.PodID
	for _, c := range e.containers {
		if e.foreign[string(c.Spec.Pod)] != nil {
			taken = append(taken, c.Spec.Pod)
		}
	}
	e.mu.Unlock()
	for _, id := range taken {
		e.leaveAlone(id)
	}
	for _, p := range e.allPods() {
		var pins ns.Set
		if err := patiently(ctx, "look at the pins of a pod", func() (err error) { pins, err = e.pins.Set(p.ID); return err }); err != nil {
			return err
		}
		e.mu.Lock()
		p.pins = pins
		e.mu.Unlock()
	}
	return nil
}

// newer keeps a record that a newer version wrote from being touched, with all that it names.
func (e *Engine) newer(id string, data []byte) error {
	klog.InfoS("A record was written by a newer version and is left alone", "record", id)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.foreign[id] = data
	return nil
}

// leaveAlone gives a pod with its containers to the newer version that uses it.
func (e *Engine) leaveAlone(id engine.PodID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	give := func(id string, record any) {
		data, err := json.Marshal(record)
		if err != nil {
			data = []byte{}
		}
		e.foreign[id] = data
	}
	if p := e.pods[id]; p != nil {
		give(string(id), &p.podRecord)
		delete(e.pods, id)
	}
	for _, c := range e.containers {
		if c.Spec.Pod == id {
			give(string(c.ID), &c.containerRecord)
			delete(e.containers, c.ID)
		}
	}
}

// recover brings records and reality together: monitors are joined, the ends of what lost its monitor are told, and what no
// record names is removed. An error says that ctx ended before all monitors could be asked; then nothing was taken for lost.
func (e *Engine) recover(ctx context.Context) error {
	var all errgroup.Group
	all.SetLimit(16)
	for _, p := range e.allPods() {
		all.Go(func() error { return e.recoverPod(ctx, p) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	for _, c := range e.allContainers() {
		if _, err := e.pod(c.Spec.Pod); err != nil {
			klog.InfoS("A container has no pod any more", "id", c.ID, "pod", c.Spec.Pod)
			if err := e.loseContainer(ctx, tidyLimit, c, ending{Code: codeUnknown, Reason: engine.ReasonError, Message: "the record of its pod is lost"}); err != nil {
				return err
			}
		}
	}
	// A daemon that is told to end meanwhile finishes: what was not joined yet must not look lost.
	e.removeOrphans(context.WithoutCancel(ctx))
	return nil
}

func (e *Engine) allPods() []*pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.pods))
}

func (e *Engine) allContainers() []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.containers))
}

func (e *Engine) recoverPod(ctx context.Context, p *pod) error {
	containers := e.containersOf(p.ID)
	if p.Boot == boot() && !p.Stopped && !p.StartedAt.IsZero() {
		err := patiently(ctx, "join the monitor of pod sandbox "+string(p.ID), func() error { return e.join(context.WithoutCancel(ctx), p, containers) })
		if err == nil {
			return nil
		}
		if process.Starved(err) {
			return fmt.Errorf("join the monitor of pod sandbox %s: %w", p.ID, err)
		}
		if errdefs.IsFailedPrecondition(err) {
			klog.ErrorS(err, "A pod sandbox is a newer version's and is left alone", "id", p.ID)
			e.leaveAlone(p.ID)
			return nil
		}
		e.counts.monitorsLost.Add(1)
		klog.ErrorS(err, "The monitor of a pod sandbox is lost; what runs in it is killed", "id", p.ID)
	}
	return e.lose(ctx, p, containers)
}

// joinLimit bounds the wait for a monitor that lives and does not answer.
const joinLimit = 10 * time.Second

// join connects to the pod's monitor as long as it lives. ErrFailedPrecondition where it is too new; where it could not be asked
// (process.Starved) that says nothing of it.
func (e *Engine) join(ctx context.Context, p *pod, containers []*container) error {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	for {
		record, err := e.knownMonitor(p)
		if err != nil {
			return err
		}
		client, err := monitor.ConnectTo(ctx, e.monitorDir(p.ID), record)
		if err == nil {
			err = e.rejoin(ctx, p, client, containers)
		}
		switch {
		case err == nil, errdefs.IsFailedPrecondition(err), process.Starved(err):
			return err
		case process.Gone(record.PID, record.StartTicks):
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// rejoin takes a monitor over that another daemon, or this one before, started. It may have been killed before it told the
// monitor that it stays.
func (e *Engine) rejoin(ctx context.Context, p *pod, client *monitor.Client, containers []*container) error {
	states, err := client.List(ctx)
	var ends map[engine.ContainerID]*ending
	if err == nil {
		ends, err = e.knownEnds(containers)
	}
	if err == nil {
		err = client.Commit(ctx)
	}
	if err != nil {
		client.Close()
		return err
	}
	known := map[string]*monitor.State{}
	for i := range states {
		known[states[i].ID] = &states[i]
	}
	pause := known[pauseID(p.ID)]
	delete(known, pauseID(p.ID))
	e.mu.Lock()
	p.client = client
	if pause != nil && pause.Exit == nil {
		p.pause, p.pauseTicks = pause.PID, pause.StartTicks
	}
	failed := p.Spec.Namespaces.PID == engine.NamespacePod && p.pause == 0
	e.mu.Unlock()
	for _, c := range containers {
		st := known[string(c.ID)]
		delete(known, string(c.ID))
		if st != nil && e.noteStart(c, st) {
			// The daemon before died before it recorded that, and the monitor keeps it no longer than what runs.
			quiet(e.saveContainer(c), "record the start of a container", c.ID)
		}
		end := ends[c.ID]
		if end != nil && end.untold && st != nil { // the monitor still knows better
			end = untoldEnd(st)
		}
		if !e.noteKnownEnd(c, end) {
			e.noteState(ctx, c, client, st)
		}
	}
	for id := range known {
		klog.InfoS("Removing a container that no record names", "id", id, "pod", p.ID)
		quiet(deleteIn(ctx, client, id), "remove a container that no record names", id)
	}
	if failed {
		e.podFailed(p)
	}
	e.followPod(p)
	return nil
}

// noteState takes over what the monitor says; st is nil where it does not know the container.
func (e *Engine) noteState(ctx context.Context, c *container, client *monitor.Client, st *monitor.State) {
	unstarted := st != nil && (st.Status == monitor.StatusCreated || st.Exit != nil && st.Exit.Unstarted)
	e.mu.Lock()
	ran := !c.StartedAt.IsZero()
	if st == nil && !ran || unstarted {
		// The start was recorded, the monitor not asked, or its process waits, or waited until it died, for a start that
		// nobody will send: it can be started still.
		c.Started = false
	} else if st != nil {
		c.born = st.CreatedAt
	}
	e.mu.Unlock()
	switch {
	case st == nil && ran:
		e.noteExit(c, ending{Code: codeUnknown, Reason: engine.ReasonError, Message: "there is no record of how it ended", At: time.Now()}, true)
		e.tidyRest(c)
	case st == nil:
	case unstarted:
		quiet(deleteIn(ctx, client, st.ID), "take back a container that was not started", st.ID)
		quiet(removeFile(e.exitFile(c.ID)), "forget a process that was not started", st.ID)
	case st.Exit != nil:
		e.exited(c, st)
	default:
		if st.Status == monitor.StatusPaused {
			// For a checkpoint of the daemon before, at which CRIU may still be.
			e.inBackground(func(ctx context.Context) {
				quiet(client.Resume(ctx, st.ID), "let a container run on that was paused for a checkpoint", st.ID)
			})
		}
		e.noteRunning(c, st)
	}
}

// knownEnds are the ends that are on record, by the monitor or by us. An error says that this process could not look.
func (e *Engine) knownEnds(containers []*container) (map[engine.ContainerID]*ending, error) {
	ends := map[engine.ContainerID]*ending{}
	for _, c := range containers {
		end, err := e.knownEnd(c)
		if err != nil {
			return nil, err
		}
		ends[c.ID] = end
	}
	return ends, nil
}

// knownEnd is nil where none is on record. Where its record is damaged it ended, and how is not known.
func (e *Engine) knownEnd(c *container) (*ending, error) {
	e.mu.Lock()
	end, started := cmp.Or(c.exit, c.Ended), c.Started
	e.mu.Unlock()
	if end != nil {
		return end, nil
	}
	var damaged *ending
	for _, file := range []string{e.exitFile(c.ID), e.fallbackExitFile(c.Spec.Pod, c.ID)} {
		data, err := os.ReadFile(file)
		if process.Starved(err) {
			return nil, err
		}
		if err != nil {
			continue
		}
		exit, err := monitor.DecodeExit(string(c.ID), data)
		if err != nil {
			klog.ErrorS(err, "The record of a container's end cannot be read and is set aside", "id", c.ID, "path", file)
			if started {
				damaged = &ending{Code: codeUnknown, Reason: engine.ReasonError, Message: "the record of how it ended is damaged", At: changed(file), untold: true}
			}
			e.aside.setAside(file)
			continue
		}
		if exit.Unstarted {
			continue // left by a daemon that died while it took the process back
		}
		return new(endingOf(&exit)), nil
	}
	return damaged, nil
}

// changed is when a file was changed last, or now.
func changed(path string) time.Time {
	if info, err := os.Stat(path); err == nil {
		return info.ModTime()
	}
	return time.Now()
}

// untoldEnd is the end that the monitor tells of a container whose exit file is damaged, nil where it has not ended.
func untoldEnd(st *monitor.State) *ending {
	if st.Exit == nil || st.Exit.Unstarted {
		return nil
	}
	end := endingOf(st.Exit)
	end.untold = true
	return &end
}

// noteKnownEnd tells an end that is on record; false where there is none.
func (e *Engine) noteKnownEnd(c *container, end *ending) bool {
	if end == nil {
		return false
	}
	e.noteExit(c, *end, end.untold)
	e.tidyRest(c)
	return true
}

// tidyRest goes on with what the daemon before did not finish.
func (e *Engine) tidyRest(c *container) {
	if e.roots.Present(c.ID) {
		e.tidyLater(c)
	}
}

// lose ends what has no monitor: after its death, or after a reboot. What cannot be killed for want of descriptors is waited for;
// an error says that ctx ended meanwhile, and that the pod is not told as ended: the next start does that. But for such waits it
// takes no longer than tidyLimit: a service has a minute to stop.
func (e *Engine) lose(ctx context.Context, p *pod, containers []*container) error {
	end := ending{Code: codeKilled, Reason: reasonMonitorLost, Message: "the pod's monitor ended, and the container was killed"}
	if p.Boot != boot() {
		end = ending{Code: codeUnknown, Reason: engine.ReasonError, Message: "the node was rebooted"}
	}
	left, err := killPatiently(ctx, tidyLimit, "kill the monitor of a pod sandbox", p.ID, func(ctx context.Context) error { return e.killMonitor(ctx, p) })
	if err != nil {
		return err
	}
	quiet(e.removeTornExits(p, containers), "remove what the monitor of a pod sandbox was writing", p.ID)
	var all errgroup.Group
	all.Go(func() error {
		_, err := killPatiently(ctx, left, "kill what the monitor of a pod sandbox left", p.ID, func(ctx context.Context) error { return e.killSession(ctx, e.monitorRecord(p)) })
		return err
	})
	for _, c := range containers {
		all.Go(func() error { return e.loseContainer(ctx, left, c, end) })
	}
	if p.Boot == boot() && p.Spec.Namespaces.PID == engine.NamespacePod {
		cg := e.cgroups.Container(p.Cgroup, engine.ContainerID(pauseID(p.ID)))
		all.Go(func() error {
			_, err := killPatiently(ctx, left, "kill the process that holds a pod's PID namespace", p.ID, func(ctx context.Context) error { return e.cgroups.Kill(ctx, cg.Path) })
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	e.mu.Lock()
	p.Stopped, p.pause, p.pauseTicks = true, 0, 0
	if p.Boot != boot() {
		p.pins = nil
	}
	e.mu.Unlock()
	quiet(e.savePod(p), "record the end of a pod sandbox", p.ID)
	e.podChanged(p)
	return nil
}

// killPatiently kills something within limit, and tries again for as long as there is no descriptor for that, which does not
// count: what still runs must not be told as ended. It returns what the last try left of limit. An error says that ctx ended
// before; what else goes wrong is left to the next removal or start. Of limit leastTidy is always left: a kill looks more than once
// whether something forked meanwhile.
func killPatiently(ctx context.Context, limit time.Duration, what string, id any, kill func(context.Context) error) (left time.Duration, err error) {
	err = patiently(ctx, what, func() error {
		began := time.Now()
		defer func() { left = max(limit-time.Since(began), leastTidy) }()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		return kill(ctx)
	})
	if process.Starved(err) {
		return left, fmt.Errorf("%s %v: %w", what, id, err)
	}
	quiet(err, what, id)
	return left, nil
}

// removeTornExits removes the files of exits that a monitor, which is dead, had not written to their end.
func (e *Engine) removeTornExits(p *pod, containers []*container) error {
	entries, err := os.ReadDir(e.exits())
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		name, torn := strings.CutPrefix(entry.Name(), atomicfile.TempPrefix)
		if torn && (strings.HasPrefix(name, pauseID(p.ID)+"-") ||
			slices.ContainsFunc(containers, func(c *container) bool { return strings.HasPrefix(name, string(c.ID)+"-") })) {
			errs = append(errs, removeFile(filepath.Join(e.exits(), entry.Name())))
		}
	}
	return errors.Join(errs...)
}

// loseContainer kills what is left of a container, within limit, and tells its end: the one on record, or else end. An error is
// as lose's.
func (e *Engine) loseContainer(ctx context.Context, limit time.Duration, c *container, end ending) error {
	if c.Boot == boot() {
		_, err := killPatiently(ctx, limit, "kill a container without a monitor", c.ID, func(ctx context.Context) error { return e.cgroups.Kill(ctx, c.Cgroup.Path) })
		if err != nil {
			return err
		}
	}
	var known *ending
	err := patiently(ctx, "read the end of a container", func() (err error) { known, err = e.knownEnd(c); return err })
	if err != nil {
		return err
	}
	if e.noteKnownEnd(c, known) {
		return nil
	}
	e.mu.Lock()
	started := c.Started // a start that the monitor's death ended may be giving up at this moment
	e.mu.Unlock()
	if !started {
		return nil
	}
	end.At = time.Now()
	e.noteExit(c, end, true)
	e.tidyRest(c)
	return nil
}
