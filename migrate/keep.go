package migrate

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/internal/atomicfile"
	"crishim/internal/failpoint"
)

// Keeper keeps an old shim's checkpoints of pods that it did not make, so that it can take them back.
type Keeper struct {
	shim Shim
	root string
}

// NewKeeper makes the shim's folders below root where they are missing, as the shim does.
func NewKeeper(shim Shim, root string) (*Keeper, error) {
	if shim != Dockershim && shim != CRIDockerd {
		return nil, fmt.Errorf("no shim %q is known whose checkpoints could be kept: %w", shim, errdefs.ErrInvalidArgument)
	}
	k := &Keeper{shim: shim, root: root}
	if err := os.MkdirAll(CheckpointPath(root, ""), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of %s's checkpoints: %w", shim, err)
	}
	return k, nil
}

// Keep writes the checkpoint of a pod that is about to start: the shim has its own at the same point.
func (k *Keeper) Keep(id engine.PodID, spec *engine.PodSpec) error {
	c := Checkpoint{
		Name: spec.Key.Name, Namespace: spec.Key.Namespace, HostNetwork: spec.Namespaces.Network == engine.NamespaceNode, Ports: spec.Ports,
	}
	content, err := c.Encode(k.shim)
	if err != nil {
		return fmt.Errorf("checkpoint of pod %s for %s: %w", id, k.shim, err)
	}
	path := CheckpointPath(k.root, id)
	err = failpoint.Around("compatibility.checkpoint", func() error { return atomicfile.Write(path, content, 0o600) })
	if err != nil {
		return fmt.Errorf("checkpoint of pod %s for %s: %w; mend %s, or turn compatibility off", id, k.shim, err, k.root)
	}
	return nil
}

// Forget removes the checkpoint of a pod that is gone. OK when there is none.
func (k *Keeper) Forget(id engine.PodID) error {
	err := failpoint.Around("compatibility.forget", func() error { return atomicfile.Remove(CheckpointPath(k.root, id)) })
	if err != nil {
		return fmt.Errorf("remove the checkpoint of pod %s for %s: %w", id, k.shim, err)
	}
	return nil
}
