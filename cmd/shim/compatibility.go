package main

import (
	"context"

	"k8s.io/klog/v2"

	"crishim/config"
	"crishim/engine"
	"crishim/migrate"
)

// takenBack is the docker engine beside whose pods an old shim's checkpoints are kept, for the day when it is started again.
type takenBack struct {
	dockerEngine
	keeper *migrate.Keeper
}

// withCheckpoints is eng as it is where no old shim is named.
func withCheckpoints(eng dockerEngine, c *config.Config) (nodeEngine, error) {
	if c.Compatibility == "" {
		return eng, nil
	}
	keeper, err := migrate.NewKeeper(migrate.Shim(c.Compatibility), c.ShimRoot())
	if err != nil {
		return nil, err
	}
	klog.InfoS("Pods are made so that an old shim can take them back", "shim", c.Compatibility, "root", c.ShimRoot(), "cniCache", c.CNICacheDir())
	return takenBack{eng, keeper}, nil
}

// StartPod writes the checkpoint first: what runs has one.
func (e takenBack) StartPod(ctx context.Context, id engine.PodID, spec *engine.PodSpec) (engine.PodStatus, error) {
	if err := e.keeper.Keep(id, spec); err != nil {
		return engine.PodStatus{}, err
	}
	return e.dockerEngine.StartPod(ctx, id, spec)
}

// RemovePod removes the checkpoint last, so that a removal that fails can be repeated by either.
func (e takenBack) RemovePod(ctx context.Context, id engine.PodID) error {
	if err := e.dockerEngine.RemovePod(ctx, id); err != nil {
		return err
	}
	return e.keeper.Forget(id)
}
