package server

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/process"
	"crishim/state"
)

// Adopter knows what is left on the node, beside the engine's own objects, of pods without a record (package migrate).
type Adopter interface {
	// Adopt fills in the record of a pod that another shim made, or whose record was lost: its network, with addresses, and what else its end will
	// need. What it could not find out is in the error; the record holds the rest.
	Adopt(ctx context.Context, pod *state.Pod) error
	// Orphans are records for pods of an engine whose objects are gone, and of which something is left on the node.
	Orphans(ctx context.Context, engineName string, known func(engine.PodID) bool) []state.Pod
	// Removed is told that the engine has a pod no more, before its record goes.
	Removed(id engine.PodID) error
}

// adopters bounds the adoptions at once: each writes a record and may look into a network namespace.
const adopters = 8

// namesLimit is how long all containers of one adoption may wait for the names of their images: a Docker Engine that lists containers may
// not answer what is asked of images, for ever.
var namesLimit = 30 * time.Second

// adoptAll gives records to the pods and containers that an engine has and that have none: another shim made them, or
// their record was damaged. Without it the kubelet would see no address and make the pod anew, and no DEL would run at its
// end, which leaks the address and the rules of host ports.
func (s *Server) adoptAll(ctx context.Context, engineName string) {
	s.found.listed(engineName)
	var group errgroup.Group
	group.SetLimit(adopters)
	for _, pod := range s.store.Pods() {
		switch {
		case pod.Engine != engineName || !unadoptedPod(&pod):
		case s.unlooked(&pod): // it is adopted as what is found later, and so are its containers
			group.Go(func() error { s.supposeAddress(ctx, pod); return nil })
		default:
			group.Go(func() error { s.adoptPatiently(ctx, pod.ID); return nil })
		}
	}
	_ = group.Wait()
	naming, cancel := context.WithTimeout(ctx, namesLimit)
	defer cancel()
	for _, c := range s.store.Containers() {
		if pod, ok := s.store.Pod(c.PodID); ok && unadoptedPod(&pod) || s.unlookedContainer(&c) {
			continue // as what is found later
		}
		if c.Engine == engineName && unadoptedContainer(&c) {
			group.Go(func() error { s.adoptContainerNow(ctx, naming, c.ID); return nil })
		}
	}
	_ = group.Wait()
	if s.opts.Adopter != nil {
		s.adoptOrphans(ctx, engineName)
	}
}

func (s *Server) adoptOrphans(ctx context.Context, engineName string) {
	known := func(id engine.PodID) bool { _, ok := s.store.Pod(id); return ok }
	for _, pod := range s.opts.Adopter.Orphans(ctx, engineName, known) {
		// The engine was listed a while ago: what an old shim, or a call to an engine that came late, makes meanwhile is no orphan.
		_, err := s.engines[engineName].PodStatus(ctx, pod.ID)
		if err == nil {
			continue
		}
		if errdefs.IsNotFound(err) {
			err = s.store.PutPod(pod)
		}
		for errdefs.IsAlreadyExists(err) && !known(pod.ID) { // one of its name that an earlier start found, and that is not removed yet
			pod.Spec.Key.Attempt++
			err = s.store.PutPod(pod)
		}
		if err != nil {
			klog.ErrorS(err, "A pod that is gone from the engine, and whose network is not, is not recorded; the next start tries again", "id", pod.ID)
			continue
		}
		klog.InfoS("A pod is gone from the engine, and its network is not; it is listed until it is stopped and removed", "pod", klog.KRef(pod.Spec.Key.Namespace, pod.Spec.Key.Name), "id", pod.ID)
	}
}

// supposeAddress gives a pod that is not adopted yet the address that another shim's cache knows, in memory: a kubelet makes a pod
// without one anew.
func (s *Server) supposeAddress(ctx context.Context, pod state.PodView) {
	described := pod.Pod
	if err := s.describe(ctx, &described); err != nil {
		klog.ErrorS(err, "Not everything is known of a pod that its engine could only list", "pod", klog.KRef(pod.Spec.Key.Namespace, pod.Spec.Key.Name), "id", pod.ID)
	}
	s.store.SupposePod(pod.ID, func(p *state.Pod) { p.Network.IPs = described.Network.IPs })
}

// adoptPatiently adopts a pod, trying again and again while this process has no descriptor to look with.
func (s *Server) adoptPatiently(ctx context.Context, id engine.PodID) {
	for !s.adoptPodNow(ctx, id) {
		select {
		case <-time.After(adoptEvery):
		case <-ctx.Done():
			return
		}
	}
}

// adoptPodNow is adoptPod under the pod's lock: where another engine was there first, calls are answered by now. Who has the lock
// for longer stops the pod, and has adopted it; else it is adopted as what is found later.
func (s *Server) adoptPodNow(ctx context.Context, id engine.PodID) (done bool) {
	unlock, err := s.lockSoon(ctx, func(ctx context.Context) (func(), error) { return s.podLocks.Lock(ctx, id) })
	if err != nil {
		return true
	}
	defer unlock()
	pod, ok := s.store.Pod(id)
	return !ok || !unadoptedPod(&pod) || s.adoptPod(ctx, pod)
}

// adoptContainerNow is adoptPodNow for a container.
func (s *Server) adoptContainerNow(ctx, naming context.Context, id engine.ContainerID) {
	unlock, err := s.lockSoon(ctx, func(ctx context.Context) (func(), error) { return s.containerLocks.Lock(ctx, id) })
	if err != nil {
		return
	}
	defer unlock()
	if c, ok := s.store.Container(id); ok && unadoptedContainer(&c) {
		s.adoptContainer(naming, c)
	}
}

// adoptPod writes the record. Where the disk takes none it is kept in memory: the pod must not lose its address. It says false, and
// does nothing, where this process could not look (process.Starved): what is not known then is not absent.
func (s *Server) adoptPod(ctx context.Context, pod state.PodView) (done bool) {
	adopted := pod.Pod
	err := s.describe(ctx, &adopted)
	if process.Starved(err) {
		klog.ErrorS(err, "A pod without a record is adopted once there are descriptors to look at it", "pod", klog.KRef(pod.Spec.Key.Namespace, pod.Spec.Key.Name), "id", pod.ID)
		return false
	}
	if err != nil {
		klog.ErrorS(err, "Not everything is known of a pod without a record; what that is may be left on the node at its end", "pod", klog.KRef(pod.Spec.Key.Namespace, pod.Spec.Key.Name), "id", pod.ID)
	}
	become := func(p *state.Pod) error {
		p.Spec, p.Phase, p.Network, p.Adopted = adopted.Spec, adopted.Phase, adopted.Network, adopted.Adopted
		return nil
	}
	if err := s.store.UpdatePod(pod.ID, become); err != nil {
		klog.ErrorS(err, "The record of an adopted pod is not written; the next start adopts it again", "id", pod.ID)
		s.store.SupposePod(pod.ID, func(p *state.Pod) { _ = become(p) })
		return true
	}
	klog.V(2).InfoS("Adopted a pod", "pod", klog.KRef(pod.Spec.Key.Namespace, pod.Spec.Key.Name), "id", pod.ID, "phase", adopted.Phase, "ips", adopted.Network.IPs)
	return true
}

// describe finds the network of a pod without a record.
func (s *Server) describe(ctx context.Context, pod *state.Pod) error {
	if s.opts.Adopter != nil {
		return s.opts.Adopter.Adopt(ctx, pod)
	}
	if s.opts.BridgeNetwork || pod.Spec.Namespaces.Network == engine.NamespaceNode {
		pod.Network.Done = true
		return nil
	}
	attachments, err := s.network.Cached(string(pod.ID))
	if err != nil || len(attachments) == 0 {
		return err
	}
	pod.Network = state.Network{Done: true}
	for _, a := range attachments {
		pod.Network.IPs = append(pod.Network.IPs, a.IPs()...)
	}
	if pod.Phase == state.PhaseStopped {
		pod.Phase = state.PhaseStopping // its DEL has not run
	}
	pod.Network.Attachments, err = encodeAttachments(attachments)
	return err
}

// adoptContainer writes the record. The container is told of by its image's id only where naming ends first.
func (s *Server) adoptContainer(naming context.Context, c state.ContainerView) {
	pod, ok := s.store.Pod(c.PodID)
	// The engine has the image by what CreateContainer named it, which is its id where a kubelet did.
	image, err := s.engines[c.Engine].Image(naming, string(c.ImageID))
	if err != nil {
		klog.V(2).InfoS("The image of an adopted container is told of by its id only", "id", c.ID, "image", c.ImageID, "err", err)
	}
	phase := c.Phase
	if phase == state.PhaseCreated { // when it was found
		phase = startedPhase(c.State)
	}
	err = s.store.UpdateContainer(c.ID, func(c *state.Container) error {
		c.Adopted, c.Phase = ok && pod.Adopted, phase
		nameImage(&c.Spec.Image, image)
		return nil
	})
	if err != nil {
		klog.ErrorS(err, "The record of an adopted container is not written; the next start adopts it again", "id", c.ID)
	}
}

func startedPhase(now engine.ContainerState) state.Phase {
	switch now {
	case engine.ContainerRunning:
		return state.PhaseRunning
	case engine.ContainerExited:
		return state.PhaseStopped
	}
	return state.PhaseCreated
}

// lostNetwork says that the pod has a network of its own, of which nothing is known.
func lostNetwork(pod state.PodView) bool {
	return pod.Spec.Namespaces.Network == engine.NamespacePod && pod.Phase != state.PhaseIntent && !pod.Network.Done && len(pod.Network.Attachments) == 0
}
