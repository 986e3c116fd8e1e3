package server

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/engine"
	"crishim/state"
)

// What recovery assumes is written down in docs/architecture.md: records are true about what we did, the engine is true
// about what runs, and an object that no caller was ever given may be taken back.

// retryTakeBack is the pause between attempts to take back what a crash left half made.
const retryTakeBack = 10 * time.Second

// awayGrace is how long the first call waits for an engine that says nothing while another one is known.
const awayGrace = 30 * time.Second

// Run keeps the index fed by the engines, recovers what each of them has as soon as it was listed once, and goes on until
// ctx ends or no engine can ever be used.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, eng := range s.order {
		group.Go(func() error { return s.watch(ctx, eng) })
	}
	group.Go(func() error { return s.followStats(ctx) })
	group.Go(func() error { return s.recover(ctx) })
	group.Go(func() error { return s.adoptFound(ctx) })
	return group.Wait()
}

// recover answers calls once every engine was listed, or one was and the others have said that they are away: what is
// theirs is answered from the records until they come.
func (s *Server) recover(ctx context.Context) error {
	synced := make(chan string, len(s.engines))
	for name := range s.engines {
		go func() {
			if s.store.WaitSynced(ctx, name) == nil {
				synced <- name
			}
		}()
	}
	waiting := maps.Clone(s.engines)
	var grace <-chan time.Time
	settled, serving, late := false, false, false
	for len(waiting) > 0 {
		select {
		case name := <-synced:
			delete(waiting, name)
			s.recoverEngine(ctx, name)
			if grace == nil {
				grace = time.After(awayGrace)
			}
		case <-s.spoken.changed():
		case <-grace:
			late = true
		case <-ctx.Done():
			return ctx.Err()
		}
		if !serving && len(waiting) < len(s.engines) && (late || s.allAway(waiting)) {
			serving = true
			close(s.recovered)
			klog.InfoS("Ready to serve", "pods", len(s.store.Pods()), "containers", len(s.store.Containers()), "rebooted", s.store.Rebooted())
			if len(waiting) > 0 {
				klog.InfoS("What is another engine's is answered from the records until it comes", "engines", slices.Sorted(maps.Keys(waiting)))
			}
		}
		if !settled && (serving || s.allAway(waiting)) {
			settled = true
			close(s.settled)
		}
	}
	if !s.opts.Observe && s.opts.CNIGC && !s.opts.BridgeNetwork {
		s.collectNetworks(ctx)
	}
	return nil
}

// allAway says that each of the engines has said that it is away.
func (s *Server) allAway(engines map[string]engine.Engine) bool {
	for name := range engines {
		if !s.spoken.has(name) || s.store.Health(name).Ready {
			return false
		}
	}
	return true
}

// recoverEngine mends, measures and takes back what is the engine's.
func (s *Server) recoverEngine(ctx context.Context, name string) {
	s.adoptAll(ctx, name)
	defer s.found.begin(name)
	if s.opts.Observe {
		return
	}
	for _, c := range s.store.Containers() {
		if c.Engine == name {
			s.watchDisk(&c) // no event tells of what was there before
		}
		if c.Engine == name && c.Recorded && !c.Returned && !c.Adopted {
			s.takeBackUnreturned(ctx, c)
		}
	}
	for _, p := range s.store.Pods() {
		if p.Engine == name && p.Recorded && !p.Returned && !p.Adopted {
			s.takeBackUnreturnedPod(ctx, p)
		}
	}
}

// spoken is which engines have said how they are since the start.
type spoken struct {
	mu   sync.Mutex
	said map[string]bool
	more chan struct{}
}

func (s *spoken) note(engineName string, _ engine.Health) {
	more := s.changed()
	s.mu.Lock()
	if s.said == nil {
		s.said = map[string]bool{}
	}
	s.said[engineName] = true
	s.mu.Unlock()
	select {
	case more <- struct{}{}:
	default:
	}
}

func (s *spoken) has(engineName string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said[engineName]
}

// changed is told when an engine has spoken.
func (s *spoken) changed() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		s.more = make(chan struct{}, 1)
	}
	return s.more
}

// takeBackUnreturnedPod removes what a crash left half made, in the background: a retry of its creation meets reusePod,
// which does the same at once. A whole pod waits for its caller's retry as if parked just now.
func (s *Server) takeBackUnreturnedPod(ctx context.Context, pod state.PodView) {
	if pod.Phase == state.PhaseRunning {
		s.parkPod(ctx, pod.Spec.Key, pod.ID)
		return
	}
	s.takeBackPodLater(ctx, pod.Spec.Key, 0)
}

// takeBackPodLater removes the record that the key has now, and what is left of its pod, unless a caller was given it or
// another creation has replaced it by then.
func (s *Server) takeBackPodLater(ctx context.Context, key engine.PodKey, pause time.Duration) {
	left, ok := s.store.PodByKey(key)
	if !ok {
		return
	}
	s.later(ctx, pause, func(ctx context.Context) {
		if s.podFlights.wait(ctx, key) != nil {
			return
		}
		pod, ok := s.store.PodByKey(key)
		if !ok || pod.Seq != left.Seq || pod.Returned || pod.Phase == state.PhaseRunning {
			return
		}
		if err := s.removePod(ctx, pod); err != nil {
			klog.ErrorS(err, "Could not take back a half-made pod sandbox; trying again", "pod", klog.KRef(key.Namespace, key.Name), "id", pod.ID)
			s.takeBackPodLater(ctx, key, retryTakeBack)
		}
	})
}

func (s *Server) takeBackUnreturned(ctx context.Context, c state.ContainerView) {
	creation := containerCreation{c.PodID, c.Spec.Key}
	switch c.Phase {
	case state.PhaseCreated:
		s.parkContainer(ctx, creation, c.ID)
		return
	case state.PhaseRunning: // somebody has started it; a daemon before this one did not note who
		return
	}
	s.takeBackContainerLater(ctx, creation, 0)
}

// takeBackContainerLater is takeBackPodLater for a container.
func (s *Server) takeBackContainerLater(ctx context.Context, creation containerCreation, pause time.Duration) {
	left, ok := s.store.ContainerByKey(creation.pod, creation.key)
	if !ok {
		return
	}
	s.later(ctx, pause, func(ctx context.Context) {
		if s.containerFlights.wait(ctx, creation) != nil {
			return
		}
		c, ok := s.store.ContainerByKey(creation.pod, creation.key)
		if !ok || c.Seq != left.Seq || c.Returned || c.Phase == state.PhaseCreated {
			return
		}
		if err := s.removeContainer(ctx, c); err != nil {
			klog.ErrorS(err, "Could not take back a half-made container; trying again", "container", creation.key.Name, "id", c.ID)
			s.takeBackContainerLater(ctx, creation, retryTakeBack)
		}
	})
}

// restartedGrace is how long a container that somebody started again may take to end: the kubelet's least grace.
const restartedGrace = 2 * time.Second

// endRestarted stops a container that had exited and that somebody started again (docker restart). The kubelet was told of
// its exit and starts another one in its place, whose ports and files it would hold.
func (s *Server) endRestarted(engineName string, id engine.ContainerID) {
	klog.InfoS("A container that had exited was started again by somebody else; ending it, the kubelet starts its successor", "id", id)
	var attempt func(ctx context.Context)
	attempt = func(ctx context.Context) {
		if _, ok := s.store.Container(id); !ok || s.ready(engineName) != nil {
			return // gone, or told again when the engine is back
		}
		if err := s.engines[engineName].StopContainer(ctx, id, restartedGrace); err != nil {
			klog.ErrorS(err, "Could not end a container that somebody started again; trying again", "id", id)
			s.later(ctx, retryTakeBack, attempt)
		}
	}
	s.later(context.Background(), 0, attempt)
}

// gcPeriod is the pause between collections, gcRetry after one that met a call.
var gcPeriod, gcRetry = time.Hour, 10 * time.Second

// collectNetworks lets CNI plugins free what no record holds, now and each hour: the operator said that the network is only ours.
func (s *Server) collectNetworks(ctx context.Context) {
	for {
		err := s.network.GC(ctx, s.heldAttachments)
		pause := gcPeriod
		switch {
		case ctx.Err() != nil:
			return
		case errdefs.IsUnavailable(err):
			pause = gcRetry
		case err != nil:
			klog.ErrorS(err, "CNI GC failed and is tried again", "in", pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// heldAttachments are those of all records. The error says that there may be more.
func (s *Server) heldAttachments() ([]cni.Attachment, error) {
	for _, q := range s.store.Quarantined() {
		if q.Newer && q.Kind == "pod" { // an engine may leave its pod alone, too, so that nobody tells of it
			return nil, fmt.Errorf("it would free what the pod of record %s holds, which a newer version wrote: %w", q.Path, errdefs.ErrFailedPrecondition)
		}
	}
	var held []cni.Attachment
	for _, pod := range s.store.Pods() {
		if lostNetwork(pod) {
			return nil, fmt.Errorf("it would free what pod %s, which has no record, still holds: %w", pod.ID, errdefs.ErrFailedPrecondition)
		}
		attachments, err := attachmentsOf(pod.Pod)
		if err != nil {
			return nil, fmt.Errorf("it would free what pod %s, whose record cannot be read, still holds: %w", pod.ID, err)
		}
		held = append(held, attachments...)
	}
	return held, nil
}

// followStats keeps the disk sampler looking at the writable layers that there are, and closes the cgroups of what ended.
func (s *Server) followStats(ctx context.Context) error {
	for {
		sub := s.store.Subscribe(eventBuffer)
		// Events of what went were lost with the subscription before.
		s.disk.Retain(func(id string) bool { _, ok := s.store.Container(engine.ContainerID(id)); return ok })
		for _, c := range s.store.Containers() {
			s.watchDisk(&c)
		}
		for open := true; open; {
			select {
			case <-ctx.Done():
				sub.Close()
				return ctx.Err()
			case ev, ok := <-sub.Events():
				if open = ok; !ok {
					continue
				}
				if ev.Type == state.EventStopped || ev.Type == state.EventDeleted {
					s.reader.Forget(cmp.Or(string(ev.Container), string(ev.Pod)))
				}
				if ev.Container == "" {
					continue
				}
				if ev.Type == state.EventDeleted {
					s.disk.Forget(string(ev.Container))
				} else if c, ok := s.store.Container(ev.Container); ok {
					s.watchDisk(&c)
				}
			}
		}
	}
}

func (s *Server) watchDisk(c *state.ContainerView) {
	if c.ID != "" && c.Status.UpperDir != "" {
		s.disk.Watch(string(c.ID), c.Status.UpperDir)
	}
}
