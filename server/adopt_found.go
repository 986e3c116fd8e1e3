package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/state"
)

// What another shim makes while this daemon runs, or while its engine was away, is adopted too, a moment later than at the
// start: that shim may still be making it.

const (
	// adoptEvery is the pause between two looks at what cannot be adopted yet.
	adoptEvery = time.Second
	// makingLimit is how old a pod without an address may be that another shim may still be attaching to its network: the
	// old shims give plugins 220 seconds.
	makingLimit = 4 * time.Minute
)

// found is which engines have told of objects without a record.
type found struct {
	mu      sync.Mutex
	open    map[string]bool // recovered: before, what is found is adoptAll's
	engines map[string]bool
	more    chan struct{}
	since   map[string]time.Time // when the engine was listed first
}

func newFound() *found {
	return &found{open: map[string]bool{}, engines: map[string]bool{}, more: make(chan struct{}, 1), since: map[string]time.Time{}}
}

func (f *found) note(engineName string) {
	f.mu.Lock()
	f.engines[engineName] = true
	f.mu.Unlock()
	f.poke()
}

// listed says that the engine was listed for the first time.
func (f *found) listed(engineName string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.since[engineName] = time.Now()
}

// lately says that this was not long ago.
func (f *found) lately(engineName string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.since[engineName]) < makingLimit
}

// begin says that the engine was recovered.
func (f *found) begin(engineName string) {
	f.mu.Lock()
	f.open[engineName] = true
	f.mu.Unlock()
	f.poke()
}

func (f *found) poke() {
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// take returns those that were recovered.
func (f *found) take() (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.engines {
		if f.open[name] {
			names = append(names, name)
			delete(f.engines, name)
		}
	}
	return names
}

// adoptFound adopts what is found, until ctx ends.
func (s *Server) adoptFound(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.found.more:
		}
		for _, name := range s.found.take() {
			if !s.adoptFoundOf(ctx, name) {
				time.AfterFunc(adoptEvery, func() { s.found.note(name) })
			}
		}
	}
}

// adoptFoundOf says whether nothing is left that can be adopted later.
func (s *Server) adoptFoundOf(ctx context.Context, engineName string) (done bool) {
	ctx, cancel := context.WithTimeout(ctx, flightTimeout)
	defer cancel()
	var mu sync.Mutex
	left := false
	note := func(now bool) {
		mu.Lock()
		defer mu.Unlock()
		left = left || !now
	}
	var group errgroup.Group
	group.SetLimit(adopters)
	for _, pod := range s.store.Pods() {
		if pod.Engine == engineName && unadoptedPod(&pod) {
			group.Go(func() error { note(s.adoptFoundPod(ctx, pod.ID)); return nil })
		}
	}
	_ = group.Wait()
	naming, cancel := context.WithTimeout(ctx, namesLimit)
	defer cancel()
	for _, c := range s.store.Containers() {
		if c.Engine == engineName && unadoptedContainer(&c) {
			group.Go(func() error { note(s.adoptFoundContainer(ctx, naming, c.ID)); return nil })
		}
	}
	_ = group.Wait()
	return !left
}

// unadoptedPod says that a pod is to be adopted. One that was never started is not: whoever made it starts it, or makes it anew,
// as we do with one whose creation was not answered.
func unadoptedPod(p *state.PodView) bool {
	return !p.Recorded && !p.Adopted && p.ID != "" && p.Phase != state.PhaseCreated
}

// listedPod says that an engine could only list a pod so far, not look at it, which alone tells when it was started. A record would be
// without the pod's network namespace, in which its addresses are looked for and its DEL runs, and without what the pod was made from.
func listedPod(p *state.PodView) bool {
	return p.State == engine.PodReady && p.Status.StartedAt.IsZero()
}

// listedContainer is listedPod of a container: a record would be without its mounts and limits, and whether it has a terminal.
func listedContainer(c *state.ContainerView) bool {
	return (c.State == engine.ContainerRunning || c.State == engine.ContainerUnknown) && c.Status.StartedAt.IsZero()
}

// unlooked says that a pod could only be listed, and is about to be looked at by its engine.
func (s *Server) unlooked(p *state.PodView) bool { return listedPod(p) && s.found.lately(p.Engine) }

func (s *Server) unlookedContainer(c *state.ContainerView) bool {
	return listedContainer(c) && s.found.lately(c.Engine)
}

func unadoptedContainer(c *state.ContainerView) bool {
	return !c.Recorded && !c.Adopted && c.ID != "" && c.State != engine.ContainerCreated
}

// adoptFoundPod says whether nothing is to be done later.
func (s *Server) adoptFoundPod(ctx context.Context, id engine.PodID) (done bool) {
	unlock, err := s.lockSoon(ctx, func(ctx context.Context) (func(), error) { return s.podLocks.Lock(ctx, id) })
	if err != nil {
		return false
	}
	defer unlock()
	pod, ok := s.store.Pod(id)
	if !ok || !unadoptedPod(&pod) {
		return true
	}
	if s.unlooked(&pod) {
		return false
	}
	// What our own creation leaves is its own to take back.
	if s.podFlights.underWay(pod.Spec.Key) {
		return false
	}
	if pod, err = s.lookAtPod(ctx, pod); err != nil {
		return errdefs.IsNotFound(err) // its removal is about to be told of
	}
	if s.beingMade(ctx, pod) {
		return false
	}
	return s.adoptPod(ctx, pod)
}

// lookAtPod has the engine look at a pod that has no record, which is answered as it is known then.
func (s *Server) lookAtPod(ctx context.Context, pod state.PodView) (state.PodView, error) {
	status, err := s.engines[pod.Engine].PodStatus(ctx, pod.ID)
	if err != nil || !pod.Status.StartedAt.IsZero() {
		return pod, err
	}
	s.store.ApplyPod(status)
	if now, ok := s.store.Pod(pod.ID); ok {
		pod = now
	}
	return pod, nil
}

// beingMade says that a pod has no address yet, and is so young that one may come.
func (s *Server) beingMade(ctx context.Context, pod state.PodView) bool {
	// Abs: a clock that was set back must not put it off until it has caught up.
	if pod.State != engine.PodReady || pod.Spec.Namespaces.Network != engine.NamespacePod || time.Since(pod.CreatedAt).Abs() > makingLimit {
		return false
	}
	described := pod.Pod
	_ = s.describe(ctx, &described) // told of where it counts
	return len(described.Network.IPs) == 0
}

func (s *Server) adoptFoundContainer(ctx, naming context.Context, id engine.ContainerID) (done bool) {
	unlock, err := s.lockSoon(ctx, func(ctx context.Context) (func(), error) { return s.containerLocks.Lock(ctx, id) })
	if err != nil {
		return false
	}
	defer unlock()
	c, ok := s.store.Container(id)
	if !ok || !unadoptedContainer(&c) {
		return true
	}
	if pod, ok := s.store.Pod(c.PodID); ok && unadoptedPod(&pod) || s.unlookedContainer(&c) {
		return false
	}
	if s.containerFlights.underWay(containerCreation{c.PodID, c.Spec.Key}) {
		return false
	}
	if c, err = s.lookAtContainer(ctx, c); err != nil {
		return errdefs.IsNotFound(err)
	}
	s.adoptContainer(naming, c)
	klog.V(2).InfoS("Adopted a container", "container", c.Spec.Key.Name, "pod", klog.KRef(c.Spec.PodKey.Namespace, c.Spec.PodKey.Name), "id", id)
	return true
}

// lookAtContainer is lookAtPod for a container.
func (s *Server) lookAtContainer(ctx context.Context, c state.ContainerView) (state.ContainerView, error) {
	status, err := s.engines[c.Engine].ContainerStatus(ctx, c.ID)
	if err == nil && c.State == engine.ContainerCreated && status.Spec != nil {
		c.Resources = status.Spec.Resources // without a start nothing says whether what is known of it is a list's
	}
	if err != nil || !listedContainer(&c) {
		return c, err
	}
	s.store.ApplyContainer(status)
	now, ok := s.store.Container(c.ID)
	if !ok {
		return c, fmt.Errorf("container %s: %w", c.ID, errdefs.ErrNotFound)
	}
	return now, nil
}

// lockSoon gives up on what a call holds for longer: others are not to wait for it.
func (s *Server) lockSoon(ctx context.Context, lock func(context.Context) (func(), error)) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, adoptEvery)
	defer cancel()
	return lock(ctx)
}
