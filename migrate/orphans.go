package migrate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/process"
	"crishim/state"
)

// Orphans are records for the sandboxes of which only a shim's checkpoint is left: somebody removed their containers (docker
// system prune). Their addresses and rules are still held, so they are to be listed, as the shims did, until the kubelet has them
// stopped and removed. The checkpoint knows no UID; attempts number those of one name. known says which ids are some pod's.
func (a *Adopter) Orphans(ctx context.Context, engineName string, known func(engine.PodID) bool) []state.Pod {
	if engineName != a.opts.Engine {
		return nil
	}
	var orphans []state.Pod
	attempts := map[engine.PodKey]uint32{}
	for _, root := range a.opts.Roots {
		entries, err := os.ReadDir(filepath.Join(root, "sandbox"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			klog.ErrorS(err, "Another shim's checkpoints cannot be looked through", "root", root)
		}
		for _, entry := range entries {
			id := engine.PodID(entry.Name())
			if !sandboxID(entry.Name()) || known(id) || slices.ContainsFunc(orphans, func(p state.Pod) bool { return p.ID == id }) {
				continue
			}
			c, _, err := ReadCheckpoint(root, id)
			if err != nil {
				klog.ErrorS(err, "A checkpoint without a sandbox is left where it is", "id", id)
				continue
			}
			pod := orphan(id, engineName, &c)
			pod.Spec.Key.Attempt = attempts[pod.Spec.Key]
			attempts[engine.PodKey{Name: c.Name, Namespace: c.Namespace}]++
			if info, err := entry.Info(); err == nil {
				pod.CreatedAt = info.ModTime()
			}
			err = a.Adopt(ctx, &pod)
			if process.Starved(err) {
				klog.ErrorS(err, "A checkpoint without a sandbox is left where it is", "id", id)
				continue
			}
			if err != nil {
				klog.ErrorS(err, "Not everything is known of a sandbox of which only the checkpoint is left", "id", id)
			}
			orphans = append(orphans, pod)
		}
	}
	return orphans
}

func orphan(id engine.PodID, engineName string, c *Checkpoint) state.Pod {
	network := engine.NamespacePod
	if c.HostNetwork {
		network = engine.NamespaceNode
	}
	return state.Pod{
		ID: id, Engine: engineName, CreatedAt: time.Now(), Phase: state.PhaseStopping, Returned: true,
		Spec: engine.PodSpec{
			Key:        engine.PodKey{Name: c.Name, Namespace: c.Namespace},
			Namespaces: engine.Namespaces{Network: network, PID: engine.NamespaceContainer, IPC: engine.NamespacePod},
		},
	}
}

// sandboxID says whether a file's name is a whole id of Docker's: unfinished checkpoints begin with ".".
func sandboxID(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}
