package native

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/monitor"
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
	limits, err := e.askUpdate(ctx, c, r)
	if err != nil {
		return fmt.Errorf("update the limits of container %s: %w", id, err)
	}
	if err := e.update(ctx, c, r, limits); err != nil {
		return fmt.Errorf("update the limits of container %s: %w", id, err)
	}
	e.tellUpdated(ctx, c)
	return nil
}

// update sets r, nil to leave it as it is, and over it what plugins set before and set now.
func (e *Engine) update(ctx context.Context, c *container, r *engine.Resources, limits *specs.LinuxResources) error {
	c.limits.Lock()
	defer c.limits.Unlock()
	e.mu.Lock()
	state, previous, before := c.status().State, c.Spec.Resources, c.PluginLimits
	e.mu.Unlock()
	if r == nil {
		r = &previous
	}
	over := spec.Yield(before, &previous, r)
	if limits != nil {
		over = spec.Overlay(over, limits)
	}
	var err error
	switch state {
	case engine.ContainerCreated:
		err = e.setLimits(c, r, &previous, over)
	case engine.ContainerRunning:
		err = e.changeLimits(ctx, c, r, &previous, over)
	default:
		err = fmt.Errorf("it is %s: %w", state, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	c.Spec.Resources, c.PluginLimits = *r, over
	e.mu.Unlock()
	// The limits are in effect; that a full disk cannot take the record must not say otherwise.
	quiet(e.saveContainer(c), "record the limits of a container", c.ID)
	return nil
}

// setLimits is for a container without a process.
func (e *Engine) setLimits(c *container, r, previous *engine.Resources, over *specs.LinuxResources) error {
	if c.cleared {
		return errCleared
	}
	limits, err := spec.Resources(e.host, r, nil)
	if err != nil {
		return err
	}
	oci, err := e.readBundle(c.ID)
	if err != nil {
		return err
	}
	limits.Devices = oci.Linux.Resources.Devices
	oci.Linux.Resources = spec.Overlay(limits, over)
	if to := e.oomScoreAdj(r); to != e.oomScoreAdj(previous) { // else it may be a plugin's
		oci.Process.OOMScoreAdj = &to
	}
	return failpoint.Around("native.container.bundle", func() error { return e.writeBundle(c.ID, oci) })
}

func (e *Engine) changeLimits(ctx context.Context, c *container, r, previous *engine.Resources, over *specs.LinuxResources) error {
	limits, err := spec.Resources(e.host, r, previous)
	if err != nil {
		return err
	}
	limits = spec.Overlay(limits, over)
	memory := int64(0)
	if m := limits.Memory; m != nil && m.Limit != nil {
		memory = *m.Limit
	}
	memory = engine.MemoryMax(memory, limits.Unified)
	if err := e.cgroups.FitsUsage(c.Cgroup.Path, memory); err != nil {
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
		quiet(e.changeOOMScoreAdj(c, to, from), "set back oom_score_adj", c.ID)
		return err
	}
	err = failpoint.Around("native.container.update", func() error { return client.Update(ctx, string(c.ID), data) })
	if err != nil {
		quiet(e.changeOOMScoreAdj(c, to, from), "set back oom_score_adj", c.ID)
		quiet(e.setBackLimits(ctx, client, c, r, previous, over), "set back the limits", c.ID)
		err = e.cgroups.Refused(c.Cgroup.Path, memory, err)
	}
	return endedMeanwhile(c.ID, err)
}

// setBackLimits undoes an update to r, and over, that was refused. What makes the containers may not have undone it, or not what was set for
// the first time.
func (e *Engine) setBackLimits(ctx context.Context, client *monitor.Client, c *container, r, previous *engine.Resources, over *specs.LinuxResources) error {
	limits, err := spec.Resources(e.host, previous, r)
	if err != nil {
		return err
	}
	data, err := json.Marshal(spec.Lift(e.host, spec.Overlay(limits, c.PluginLimits), over))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
	defer cancel()
	if err := client.Update(ctx, string(c.ID), data); !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) { // of one that has ended
		return err
	}
	return nil
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
