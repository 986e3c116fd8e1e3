package native

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/native/spec"
	"crishim/internal/failpoint"
)

// UpdateContainer implements engine.Containers. One that was not started yet is given the limits at its start.
func (e *Engine) UpdateContainer(ctx context.Context, id engine.ContainerID, r *engine.Resources) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	c, err := e.container(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	state, previous := c.status().State, c.Spec.Resources
	e.mu.Unlock()
	switch state {
	case engine.ContainerCreated:
		err = e.setLimits(c, r)
	case engine.ContainerRunning:
		err = e.changeLimits(ctx, c, r, &previous)
	default:
		err = fmt.Errorf("it is %s: %w", state, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("update the limits of container %s: %w", id, err)
	}
	e.mu.Lock()
	c.Spec.Resources = *r
	e.mu.Unlock()
	// The limits are in effect; that a full disk cannot take the record must not say otherwise.
	quiet(e.saveContainer(c), "record the limits of a container", id)
	return nil
}

// setLimits is for a container without a process.
func (e *Engine) setLimits(c *container, r *engine.Resources) error {
	limits, err := spec.Resources(e.host, r, nil)
	if err != nil {
		return err
	}
	oci, err := e.readBundle(c.ID)
	if err != nil {
		return err
	}
	limits.Devices = oci.Linux.Resources.Devices
	oci.Linux.Resources = limits
	oci.Process.OOMScoreAdj = new(e.oomScoreAdj(r))
	return failpoint.Around("native.container.bundle", func() error { return e.writeBundle(c.ID, oci) })
}

func (e *Engine) changeLimits(ctx context.Context, c *container, r, previous *engine.Resources) error {
	limits, err := spec.Resources(e.host, r, previous)
	if err != nil {
		return err
	}
	data, err := json.Marshal(limits)
	if err != nil {
		return err
	}
	_, client, err := e.running(c.ID)
	if err != nil {
		return err
	}
	from, to := e.oomScoreAdj(previous), e.oomScoreAdj(r)
	if err := e.changeOOMScoreAdj(c, from, to); err != nil {
		return err
	}
	err = failpoint.Around("native.container.update", func() error { return client.Update(ctx, string(c.ID), data) })
	if err != nil {
		quiet(e.changeOOMScoreAdj(c, to, from), "set back oom_score_adj", c.ID)
	}
	return endedMeanwhile(c.ID, err)
}

// ReopenLog implements engine.Containers.
func (e *Engine) ReopenLog(ctx context.Context, id engine.ContainerID) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	_, client, err := e.running(id)
	if err != nil {
		return err
	}
	return endedMeanwhile(id, failpoint.Around("native.container.reopen", func() error { return client.ReopenLog(ctx, string(id)) }))
}
