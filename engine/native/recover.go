package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/host"
	"crishim/engine/native/monitor"
)

// What is reported of containers whose end nobody saw.
const (
	codeKilled        = 137
	codeUnknown       = 255
	reasonMonitorLost = "MonitorLost"
)

// load reads the records. Objects of records that a newer version wrote are left alone altogether.
func (e *Engine) load() {
	err := readRecords(e.podRecords(), func(name string, r *podRecord) error {
		if r.Version > recordVersion {
			e.newer(name)
			return errNewer
		}
		if string(r.ID) != name {
			return fmt.Errorf("it is the record of %q", r.ID)
		}
		e.pods[r.ID] = &pod{podRecord: *r, pins: e.pins.Set(r.ID)}
		host.ReserveLabels(r.Labels)
		return nil
	})
	err = errors.Join(err, readRecords(e.containerRecords(), func(name string, r *containerRecord) error {
		if r.Version > recordVersion {
			e.newer(name)
			return errNewer
		}
		if string(r.ID) != name || r.Spec.Pod == "" {
			return fmt.Errorf("it is the record of %q in pod %q", r.ID, r.Spec.Pod)
		}
		e.containers[r.ID] = newContainer(*r)
		return nil
	}))
	if err != nil {
		klog.ErrorS(err, "The records of the native engine cannot be read")
	}
}

func (e *Engine) newer(name string) {
	klog.InfoS("A record was written by a newer version and is left alone", "record", name)
	if e.untouchable == nil {
		e.untouchable = map[string]bool{}
	}
	e.untouchable[name] = true
}

// recover brings records and reality together: monitors are joined, the ends of what lost its monitor are told, and what no
// record names is removed.
func (e *Engine) recover(ctx context.Context) {
	var all sync.WaitGroup
	limit := make(chan struct{}, 16)
	for _, p := range e.pods {
		all.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			e.recoverPod(ctx, p)
		})
	}
	all.Wait()
	for _, c := range e.containers {
		if e.pods[c.Spec.Pod] == nil {
			klog.InfoS("A container has no pod any more", "id", c.ID, "pod", c.Spec.Pod)
			e.noteExit(c, ending{Code: codeUnknown, Reason: engine.ReasonError, Message: "the record of its pod is lost", At: time.Now()}, true)
		}
	}
	e.removeOrphans(ctx)
}

func (e *Engine) recoverPod(ctx context.Context, p *pod) {
	containers := e.containersOf(p.ID)
	if p.Boot == boot() && !p.Stopped && !p.StartedAt.IsZero() {
		client, err := monitor.Connect(ctx, e.monitorDir(p.ID))
		if err == nil {
			err = e.rejoin(ctx, p, client, containers)
		}
		if err == nil {
			return
		}
		klog.ErrorS(err, "The monitor of a pod sandbox is lost; what runs in it is killed", "id", p.ID)
	}
	e.lose(ctx, p, containers)
}

// rejoin takes a monitor over that another daemon, or this one before, started.
func (e *Engine) rejoin(ctx context.Context, p *pod, client *monitor.Client, containers []*container) error {
	states, err := client.List(ctx)
	if err != nil {
		client.Close()
		return err
	}
	known := map[string]*monitor.State{}
	for i := range states {
		known[states[i].ID] = &states[i]
	}
	p.client = client
	if st := known[pauseID(p.ID)]; st != nil {
		p.pause, p.pauseTicks = st.PID, st.StartTicks
		delete(known, pauseID(p.ID))
	}
	for _, c := range containers {
		st := known[string(c.ID)]
		delete(known, string(c.ID))
		if !e.noteKnownEnd(c) {
			e.noteState(c, st)
		}
	}
	for id := range known {
		klog.InfoS("Removing a container that no record names", "id", id, "pod", p.ID)
		quiet(client.Delete(ctx, id), "remove a container that no record names", id)
	}
	e.followPod(p)
	return nil
}

// noteState takes over what the monitor says; st is nil where it does not know the container.
func (e *Engine) noteState(c *container, st *monitor.State) {
	switch {
	case st == nil:
		// The start was recorded, the monitor not asked: it can be started still.
		c.Started = false
	case st.Exit != nil:
		e.exited(c, st)
	case st.Status == monitor.StatusCreated:
		// The process waits for a start that nobody will send: the next start makes it anew.
		c.Started = false
	default:
		e.noteRunning(c, st)
	}
}

// noteKnownEnd tells an end that is on record, by the monitor or by us.
func (e *Engine) noteKnownEnd(c *container) bool {
	if c.Ended != nil {
		e.noteExit(c, *c.Ended, false)
		return true
	}
	data, err := os.ReadFile(e.exitFile(c.ID))
	if err != nil {
		return false
	}
	var exit monitor.Exit
	if err := json.Unmarshal(data, &exit); err != nil {
		klog.ErrorS(err, "The record of a container's end cannot be read", "id", c.ID)
		return false
	}
	e.noteExit(c, endingOf(&exit), false)
	return true
}

// lose ends what has no monitor: after its death, or after a reboot.
func (e *Engine) lose(ctx context.Context, p *pod, containers []*container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
	defer cancel()
	rebooted := p.Boot != boot()
	for _, c := range containers {
		if !rebooted {
			quiet(e.cgroups.Kill(ctx, c.Cgroup.Path), "kill a container without a monitor", c.ID)
		}
		if e.noteKnownEnd(c) || !c.Started {
			continue
		}
		end := ending{Code: codeKilled, Reason: reasonMonitorLost, Message: "the pod's monitor ended, and the container was killed", At: time.Now()}
		if rebooted {
			end = ending{Code: codeUnknown, Reason: engine.ReasonError, Message: "the node was rebooted", At: time.Now()}
		}
		e.noteExit(c, end, true)
	}
	e.mu.Lock()
	p.Stopped = true
	if rebooted {
		p.pins = nil
	}
	e.mu.Unlock()
	quiet(e.savePod(p), "record the end of a pod sandbox", p.ID)
	e.podChanged(p)
}

// followPod reads the monitor's events until the pod's end.
func (e *Engine) followPod(p *pod) {
	ctx, stop := context.WithCancel(context.Background())
	e.mu.Lock()
	p.follow = stop
	client := p.client
	e.mu.Unlock()
	go func() {
		for ctx.Err() == nil {
			err := client.Subscribe(ctx, func(ev monitor.Event) { e.monitorSays(p, &ev) })
			select {
			case <-ctx.Done():
				return
			case <-client.Done():
				e.monitorLost(p, client)
				return
			case <-time.After(20 * time.Millisecond):
				klog.V(4).InfoS("The events of a monitor broke off; subscribing again", "id", p.ID, "err", err)
			}
		}
	}()
}

func (e *Engine) monitorSays(p *pod, ev *monitor.Event) {
	if ev.State.ID == pauseID(p.ID) {
		if ev.State.Exit != nil {
			e.podFailed(p)
		}
		return
	}
	c, err := e.container(engine.ContainerID(ev.State.ID))
	if err != nil {
		return
	}
	switch {
	case ev.State.Exit != nil:
		e.exited(c, &ev.State)
	case ev.Type == monitor.EventState && (ev.State.Status == monitor.StatusRunning || ev.State.Status == monitor.StatusPaused):
		e.noteRunning(c, &ev.State)
	}
}

// exited tells the end, and takes away in the background what the process had.
func (e *Engine) exited(c *container, st *monitor.State) {
	e.mu.Lock()
	if c.StartedAt.IsZero() {
		c.StartedAt = st.StartedAt
	}
	e.mu.Unlock()
	e.noteExit(c, endingOf(st.Exit), false)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), tidyLimit)
		defer cancel()
		if err := e.end(ctx, c); err != nil && !errdefs.IsNotFound(err) {
			klog.V(2).InfoS("An ended container's mounts or cgroup stay until it is removed", "id", c.ID, "err", err)
		}
	}()
}

// podFailed: without the process that is its pid 1 nothing can run in the pod any more.
func (e *Engine) podFailed(p *pod) {
	e.mu.Lock()
	was := p.Stopped
	p.Stopped, p.pause, p.pauseTicks = true, 0, 0
	e.mu.Unlock()
	if !was {
		klog.InfoS("The process that held a pod's PID namespace ended, and so did the pod", "id", p.ID)
		e.podChanged(p)
	}
}

// monitorLost ends a pod whose monitor was killed.
func (e *Engine) monitorLost(p *pod, client *monitor.Client) {
	e.mu.Lock()
	mine := p.client == client
	if mine {
		p.client = nil
	}
	e.mu.Unlock()
	if !mine {
		return
	}
	klog.InfoS("The monitor of a pod sandbox ended; what runs in the pod is killed", "id", p.ID, "monitor", client.PID())
	client.Close()
	e.lose(context.Background(), p, e.containersOf(p.ID))
}

// removeOrphans removes what is named like ours and no record names.
func (e *Engine) removeOrphans(ctx context.Context) {
	pod := func(id engine.PodID) bool { return e.pods[id] != nil || e.untouchable[string(id)] }
	ctr := func(id engine.ContainerID) bool {
		if name, isPause := strings.CutPrefix(string(id), "pause-"); isPause {
			return pod(engine.PodID(name))
		}
		return e.containers[id] != nil || e.untouchable[string(id)]
	}
	if pinned, err := e.pins.List(); err == nil {
		for _, id := range pinned {
			if !pod(id) {
				quiet(e.pins.Remove(id), "drop the pins of a pod that no record names", id)
			}
		}
	}
	containers, pods, err := e.roots.Names()
	quiet(err, "list mounts", "")
	for _, id := range containers {
		if !ctr(id) {
			quiet(e.roots.Remove(ctx, id), "remove the files of a container that no record names", id)
		}
	}
	for _, id := range pods {
		if !pod(id) {
			quiet(e.roots.RemovePod(ctx, id), "remove the files of a pod that no record names", id)
		}
	}
	groups, err := e.cgroups.List()
	quiet(err, "list cgroups", "")
	for _, id := range groups {
		if pod(id) {
			continue
		}
		if cg, err := e.cgroups.Pod(id, ""); err == nil {
			quiet(e.cgroups.RemovePod(ctx, cg), "remove the cgroup of a pod that no record names", id)
		}
	}
	for dir, has := range map[string]func(string) bool{
		filepath.Join(e.opts.RunDir, "monitors"): func(n string) bool { return pod(engine.PodID(n)) },
		e.bundles():                              func(n string) bool { return ctr(engine.ContainerID(n)) },
		e.exits():                                func(n string) bool { return ctr(engine.ContainerID(n)) },
		e.stateRoot():                            func(n string) bool { return ctr(engine.ContainerID(n)) },
	} {
		entries, err := os.ReadDir(dir)
		quiet(err, "list "+dir, "")
		for _, entry := range entries {
			if !has(entry.Name()) {
				e.killOrphanMonitor(filepath.Join(dir, entry.Name()))
				quiet(removeTree(filepath.Join(dir, entry.Name())), "remove a leftover", entry.Name())
			}
		}
	}
}

// killOrphanMonitor ends the monitor of a pod that no record names, if dir is one's.
func (e *Engine) killOrphanMonitor(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), tidyLimit)
	defer cancel()
	client, err := monitor.Connect(ctx, dir)
	if err != nil {
		return
	}
	defer client.Close()
	if states, err := client.List(ctx); err == nil {
		for _, st := range states {
			quiet(client.Delete(ctx, st.ID), "remove a container that no record names", st.ID)
		}
	}
	quiet(client.KillMonitor(), "end a monitor without a pod", dir)
}
