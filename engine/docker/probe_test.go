package docker

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
)

// putProbe makes a container as probe does, without an event.
func (f *fakeEngine) putProbe(id, name, rootDir string) {
	state := created
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers[id] = container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{ID: id, Name: "/" + name, State: &state, HostConfig: &container.HostConfig{}},
		Config:            &container.Config{Labels: map[string]string{labelType: "", labelProbe: rootDir}},
	}
}

func TestAProbeThatNobodyUsesIsRemovedWheneverItAppears(t *testing.T) {
	f := newFake(t)
	removed := func(id string) bool { return f.requests("DELETE /containers/"+id) > 0 }
	e, sink := watched(t, f.socket, func(o *Options) { f.putProbe(testContainer, probePrefix+"before", o.RootDir) })
	sink.waitReady(t)
	eventually(t, 20*time.Second, "what was left before is removed", func() bool { return removed(testContainer) })

	const another, foreign = "3333333333333333333333333333333333333333333333333333333333333333", "4444444444444444444444444444444444444444444444444444444444444444"
	e.probes.Store(probePrefix+"late", true)
	f.putProbe(otherContainer, probePrefix+"late", e.opts.RootDir)
	f.putProbe(another, probePrefix+"another", "/another/daemon")
	f.putProbe(foreign, "somebody", e.opts.RootDir)
	w := e.current.Load().watch
	w.reconcile()
	if removed(otherContainer) {
		t.Error("a probe was removed under who uses it")
	}
	e.probes.Delete(probePrefix + "late")
	w.reconcile()
	if !removed(otherContainer) {
		t.Error("a probe that dockerd made late is left")
	}
	if removed(another) || removed(foreign) {
		t.Error("a container of somebody else was removed")
	}
}
