package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/state"
)

// A DEL that keeps failing stops holding the pod back after so many tries or so long; it is then owed.
const delTries = 5

var delAfter = 10 * time.Minute

// StopPodSandbox kills what runs in the pod, detaches its network and stops it. OK for an unknown or stopped pod; after
// an error everything that was not done is done by the next call.
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	pod, err := s.store.FindPod(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.abortPod(ctx, pod); err != nil {
		return nil, err
	}
	unlock, err := s.podLocks.Lock(ctx, pod.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.stopPod(ctx, pod.ID); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// abortPod ends the making of the pod, if it is under way: what it had made is taken back when this returns, or recorded.
// The work that is in flight for the pod's key may be that of its successor, which nobody stops.
func (s *Server) abortPod(ctx context.Context, pod state.PodView) error {
	s.podFlights.abort(errEnds, func(key engine.PodKey) bool {
		now, ok := s.store.Pod(pod.ID)
		return ok && key == pod.Spec.Key && (!now.Recorded || now.Phase == state.PhaseIntent || now.Phase == state.PhaseCreated)
	})
	now, ok := s.store.Pod(pod.ID)
	if !ok || now.Recorded && (now.Phase == state.PhaseStopping || now.Phase == state.PhaseStopped) {
		return nil
	}
	return s.podFlights.wait(ctx, pod.Spec.Key)
}

// stopPod requires the pod's lock.
func (s *Server) stopPod(ctx context.Context, id engine.PodID) error {
	pod, ok := s.store.Pod(id)
	if ok && !pod.Recorded && !pod.Adopted {
		// With the stop it has a record, by which nobody would look any more for what its DEL needs.
		var unseen error
		if pod.Status.StartedAt.IsZero() {
			if pod, unseen = s.lookAtPod(ctx, pod); unseen != nil {
				klog.ErrorS(unseen, "A pod that its engine could only list is stopped without a look at it", "id", id)
			}
		}
		// One that was never started needs none, but that is not known of one which had ended without a look.
		if (unseen != nil || unadoptedPod(&pod)) && !s.adoptPod(ctx, pod) {
			return fmt.Errorf("look at the network of pod sandbox %s, which has no record: %w", id, errdefs.ErrResourceExhausted)
		}
		pod, ok = s.store.Pod(id)
	}
	if !ok || pod.Phase == state.PhaseStopped && pod.State == engine.PodNotReady {
		return nil
	}
	eng, err := s.engineOf(pod.Engine)
	if err != nil {
		return err
	}
	if err := s.setPodPhase(pod, state.PhaseStopping); err != nil {
		return err
	}
	if err := failpoint.Hit("StopPodSandbox.recorded"); err != nil {
		return err
	}
	// Nothing is made in the pod from now on. What is being made takes itself back.
	s.containerFlights.abort(errEnds, func(c containerCreation) bool { return c.pod == id })
	if err := s.killContainersOf(ctx, eng, id); err != nil {
		return fmt.Errorf("kill the pod's containers: %w", err)
	}
	// The network namespace is pinned, so DEL finds it whether or not the pod's process is still there.
	var delErr, stopErr error
	var both sync.WaitGroup
	both.Go(func() {
		defer caught(&delErr)
		delErr = s.detach(ctx, pod)
	})
	both.Go(func() {
		defer caught(&stopErr)
		if stopErr = eng.StopPod(ctx, id); stopErr != nil {
			stopErr = fmt.Errorf("stop the pod sandbox: %w", stopErr)
		}
	})
	both.Wait()
	if err := errors.Join(delErr, stopErr); err != nil {
		return err
	}
	if err := failpoint.Hit("StopPodSandbox.stopped"); err != nil {
		return err
	}
	if err := eng.ReleaseNetNS(ctx, id); err != nil {
		return fmt.Errorf("release the network namespace: %w", err)
	}
	return s.store.UpdatePod(id, func(p *state.Pod) error {
		p.Phase, p.PID, p.StartTicks, p.NetNSPath, p.Network, p.Leftover = state.PhaseStopped, 0, 0, "", state.Network{Done: true}, ""
		return nil
	})
}

// wholePodPatience is how long containers have to end by themselves where the end of the pod ends them too.
var wholePodPatience = 20 * time.Second

// killContainersOf kills the pod's containers, and leaves those that hang to an engine that ends them with the pod.
func (s *Server) killContainersOf(ctx context.Context, eng engine.Engine, id engine.PodID) error {
	_, whole := eng.(engine.WholePods)
	patient, cancel := ctx, func() {}
	if whole {
		patient, cancel = context.WithTimeout(ctx, wholePodPatience)
	}
	defer cancel()
	var containers errgroup.Group
	for _, c := range s.store.ContainersOf(id) {
		containers.Go(func() (err error) {
			defer caught(&err)
			return s.killWithPod(patient, eng, c)
		})
	}
	err := containers.Wait()
	if err != nil && whole && patient.Err() != nil && ctx.Err() == nil {
		klog.ErrorS(err, "Containers that could not be killed are ended with their pod", "pod", id)
		return nil
	}
	return err
}

// killWithPod kills a container of a pod whose phase says by now that it ends. A start that began before is aborted
// and waited for, and none begins after: otherwise a container could run in a stopped pod.
func (s *Server) killWithPod(ctx context.Context, eng engine.Engine, c state.ContainerView) error {
	if c.State == engine.ContainerCreated {
		if err := s.abortStart(ctx, eng, c.ID); err != nil {
			return err
		}
		unlock, err := s.containerLocks.Lock(ctx, c.ID)
		if err != nil {
			return err
		}
		unlock()
		c, _ = s.store.Container(c.ID)
	}
	if c.ID == "" || c.State != engine.ContainerRunning && c.State != engine.ContainerUnknown {
		return nil
	}
	if err := eng.StopContainer(ctx, c.ID, 0); err != nil {
		return err
	}
	return s.awaitExit(ctx, eng, c.ID)
}

func (s *Server) setPodPhase(pod state.PodView, phase state.Phase) error {
	if pod.Phase == phase {
		return nil
	}
	return s.store.UpdatePod(pod.ID, func(p *state.Pod) error { p.Phase = phase; return nil })
}

// detach runs CNI DEL for what the record holds, or hands it over as owed once it has failed often enough.
func (s *Server) detach(ctx context.Context, pod state.PodView) error {
	attachments, err := attachmentsOf(pod.Pod)
	if err != nil {
		klog.ErrorS(err, "A recorded attachment cannot be read; what it holds may be left on the node", "id", pod.ID)
	}
	if len(attachments) == 0 {
		return nil
	}
	err = s.timedCNI("DEL", func() error { return s.network.Del(ctx, attachments) })
	if err == nil {
		s.delFailures.forget(pod.ID)
		return failpoint.Hit("StopPodSandbox.detached")
	}
	if !s.delFailures.enough(pod.ID) {
		return fmt.Errorf("detach the pod's network: %w", err)
	}
	if oweErr := s.network.Owe(attachments, err.Error()); oweErr != nil {
		return fmt.Errorf("detach the pod's network: %w", errors.Join(err, oweErr))
	}
	klog.ErrorS(err, "The pod's network could not be detached; the DEL is owed and will be retried", "id", pod.ID)
	s.delFailures.forget(pod.ID)
	return nil
}

// delFailures counts failed DELs per pod, in memory: after a restart a pod gets its tries anew.
type delFailures struct {
	mu    sync.Mutex
	since map[engine.PodID]delFailure
}

type delFailure struct {
	first time.Time
	tries int
}

// enough notes one more failure and says whether the pod should wait no longer.
func (d *delFailures) enough(id engine.PodID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.since == nil {
		d.since = map[engine.PodID]delFailure{}
	}
	f := d.since[id]
	if f.tries == 0 {
		f.first = time.Now()
	}
	f.tries++
	d.since[id] = f
	return f.tries >= delTries || time.Since(f.first) >= delAfter
}

func (d *delFailures) forget(id engine.PodID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.since, id)
}
