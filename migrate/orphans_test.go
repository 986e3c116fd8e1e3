package migrate

import (
	"context"
	"strings"
	"testing"

	"crishim/engine"
	"crishim/state"
)

func TestASandboxOfWhichOnlyTheCheckpointIsLeftIsToBeStopped(t *testing.T) {
	n := newNode(t)
	n.adopter.opts.Engine = "docker"
	n.cached()
	n.checkpoint(Checkpoint{Name: "web", Namespace: "default", Ports: n.mappings}, Dockershim)
	again, hosts, live, torn := engine.PodID(strings.Repeat("6", 64)), engine.PodID(strings.Repeat("7", 64)), engine.PodID(strings.Repeat("8", 64)), engine.PodID(strings.Repeat("9", 64))
	for id, content := range map[engine.PodID]string{
		again:      `{"version":"v1","name":"web","namespace":"default","data":{},"checksum":815459779}`,
		hosts:      `{"version":"v1","name":"host","namespace":"kube-system","data":{"host_network":true},"checksum":996107268}`,
		live:       `{"version":"v1","name":"live","namespace":"default","data":{},"checksum":815459779}`,
		torn:       `{"version":"v1","na`,
		".tmp1234": `{"version":"v1","name":"unfinished","namespace":"default","data":{},"checksum":815459779}`,
	} {
		n.write(CheckpointPath(n.root, id), content)
	}
	known := func(id engine.PodID) bool { return id == live }
	if orphans := n.adopter.Orphans(context.Background(), "native", known); len(orphans) > 0 {
		t.Errorf("of another engine: %+v", orphans)
	}
	found := map[engine.PodID]state.Pod{}
	for _, p := range n.adopter.Orphans(context.Background(), "docker", known) {
		found[p.ID] = p
		if p.Phase != state.PhaseStopping || !p.Adopted || !p.Returned || !p.Network.Done {
			t.Errorf("orphan %+v", p)
		}
	}
	if len(found) != 3 {
		t.Fatalf("%d orphans: %+v", len(found), found)
	}
	if p := found[n.id]; len(p.Network.Attachments) != 2 || p.Spec.Key != (engine.PodKey{Name: "web", Namespace: "default"}) || len(p.Spec.Ports) != 1 {
		t.Errorf("with a network: %+v", p)
	}
	if p := found[again]; len(p.Network.Attachments) != 0 || p.Spec.Key.Attempt != 1 {
		t.Errorf("of the same name: %+v", p)
	}
	if p := found[hosts]; p.Spec.Namespaces.Network != engine.NamespaceNode || len(p.Network.Attachments) != 0 {
		t.Errorf("on the host's network: %+v", p)
	}
}
