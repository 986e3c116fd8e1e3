package docker

import (
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"crishim/engine"
)

// The pause image of a pod that another shim made is none of ours, and no container names it: it is pinned while the pod is
// there, or the kubelet would collect it.
func TestThePauseImageOfAPodIsPinnedWhileThePodIsThere(t *testing.T) {
	f := newFake(t)
	name, _ := podName(engine.PodKey{Name: "old", Namespace: "n", UID: "u"})
	image := "sha256:" + strings.Repeat("a", 64)
	f.mu.Lock()
	f.containers[testPod] = container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{ID: testPod, Name: "/" + name, Image: image, State: &container.State{Status: "exited"}, HostConfig: &container.HostConfig{}},
		Config:            &container.Config{Labels: map[string]string{labelType: typeSandbox}},
	}
	f.mu.Unlock()
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	pinned := func(id string) bool {
		t.Helper()
		img, err := e.Image(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return img.Pinned
	}
	if !pinned(image) || pinned("sha256:"+strings.Repeat("b", 64)) {
		t.Error("pinned is another image")
	}
	gone := strings.ReplaceAll(f.event(testPod, events.ActionDestroy), typeContainer, typeSandbox)
	f.mu.Lock()
	delete(f.containers, testPod)
	f.mu.Unlock()
	f.send(gone)
	eventually(t, 5*time.Second, "the image of a pod that is gone is like others", func() bool { return !pinned(image) })
}
