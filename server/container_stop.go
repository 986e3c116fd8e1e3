package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/internal/failpoint"
)

// StopContainer sends the stop signal and kills after the timeout. OK for an unknown, never started or exited container.
// A second call while the first one waits sends no second signal; it kills if its own timeout ends earlier.
func (s *Server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.store.FindContainer(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	eng, err := s.engineOf(c.Engine)
	if err != nil {
		return nil, err
	}
	if c.State == engine.ContainerCreated {
		if err := s.abortStart(ctx, eng, c.ID); err != nil {
			return nil, fmt.Errorf("stop container %s: %w", c.ID, err)
		}
		c, _ = s.store.Container(c.ID)
	}
	if c.ID == "" || c.State == engine.ContainerExited || c.State == engine.ContainerCreated {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	grace := seconds(req.GetTimeout())
	err = s.stops.stop(ctx, c.ID, grace, func(grace time.Duration) error { return eng.StopContainer(ctx, c.ID, grace) })
	if err != nil {
		return nil, fmt.Errorf("stop container %s: %w", c.ID, err)
	}
	if err := failpoint.Hit("StopContainer.stopped"); err != nil {
		return nil, err
	}
	// The reply promises that the container has exited: what the next Status says must agree.
	if err := s.awaitExit(ctx, eng, c.ID); err != nil {
		return nil, fmt.Errorf("stop container %s: %w", c.ID, err)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// seconds is a duration of CRI's, which may be more than a time.Duration holds: it must not become none.
func seconds(n int64) time.Duration {
	const most = 1 << 31 // 68 years: what is added to it stays in range
	return time.Duration(min(max(n, 0), most)) * time.Second
}

// abortStart ends a start that is under way, if there is one: what started after all is killed.
func (s *Server) abortStart(ctx context.Context, eng engine.Engine, id engine.ContainerID) error {
	if !s.starts.abort(id) {
		return nil
	}
	unlock, err := s.containerLocks.Lock(ctx, id)
	if err != nil {
		return fmt.Errorf("wait for the end of its start: %w", err)
	}
	defer unlock()
	// Whatever the index knows: an engine may have gone on although the call was given up.
	if err := eng.StopContainer(ctx, id, 0); err != nil {
		return err
	}
	return s.awaitExit(ctx, eng, id)
}

// exitEvent is how long a stop that has succeeded waits for the engine's event of it before it asks.
const exitEvent = 5 * time.Millisecond

// exitEvents is how many events of others may come meanwhile. More lead to a look; room for many would be a MiB for each stop.
const exitEvents = 100

// awaitExit returns when the index knows of the exit. The engine's event, which follows at once, leads to a look at the
// container; only where that takes long is another one made.
func (s *Server) awaitExit(ctx context.Context, eng engine.Engine, id engine.ContainerID) error {
	if s.knowsExit(ctx, id) {
		return nil
	}
	status, err := eng.ContainerStatus(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	s.store.ApplyContainer(status)
	return nil
}

// knowsExit gives the index a moment to learn of the container's exit, and says whether it has.
func (s *Server) knowsExit(ctx context.Context, id engine.ContainerID) bool {
	exited := func() bool {
		c, ok := s.store.Container(id)
		return !ok || c.State == engine.ContainerExited
	}
	if exited() {
		return true
	}
	sub := s.store.Subscribe(exitEvents)
	defer sub.Close()
	timer := time.NewTimer(exitEvent)
	defer timer.Stop()
	for open := true; open && !exited(); { // first after Subscribe: nothing is missed
		select {
		case _, open = <-sub.Events():
		case <-timer.C:
			open = false
		case <-ctx.Done():
			open = false
		}
	}
	return exited()
}

// stops are the stops under way, one per container.
type stops struct {
	mu sync.Mutex
	m  map[engine.ContainerID]chan struct{}
}

// stop runs act with the grace, or, while another call's act runs, waits for that one and kills when grace ends first.
func (s *stops) stop(ctx context.Context, id engine.ContainerID, grace time.Duration, act func(grace time.Duration) error) error {
	deadline := time.Now().Add(grace)
	for {
		s.mu.Lock()
		other, busy := s.m[id]
		if !busy {
			if s.m == nil {
				s.m = map[engine.ContainerID]chan struct{}{}
			}
			s.m[id] = make(chan struct{})
		}
		s.mu.Unlock()
		if !busy {
			defer s.end(id)
			return act(time.Until(deadline))
		}
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-other:
			// It ended, perhaps only because its caller left: then this call takes over. act returns at once if it succeeded.
			timer.Stop()
		case <-timer.C:
			return act(0)
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

func (s *stops) end(id engine.ContainerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.m[id])
	delete(s.m, id)
}
