package server

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"context"
	"crishim/engine"
	"crishim/state"
	"github.com/containerd/errdefs"
	"os"
	"path/filepath"
	"time"
)

func TestGatherKeepsTheOrderAndLeavesOutWhatIsGone(t *testing.T) {
	items := make([]int, 100)
	for i := range items {
		items[i] = i
	}
	var mu sync.Mutex
	seen := 0
	got, err := gather(items, func(i *int) (int, error) {
		mu.Lock()
		seen++
		mu.Unlock()
		if *i%3 == 0 {
			return 0, fmt.Errorf("item %d: %w", *i, errdefs.ErrNotFound)
		}
		return 10 * *i, nil
	})
	if err != nil || seen != len(items) {
		t.Fatalf("error %v after %d items", err, seen)
	}
	if len(got) != 66 || !slices.IsSorted(got) || got[0] != 10 || got[65] != 980 {
		t.Errorf("got %v", got)
	}
	if none, err := gather(nil, func(*int) (int, error) { return 0, nil }); len(none) != 0 || err != nil {
		t.Errorf("of nothing: %v, %v", none, err)
	}
}

func TestGatherReportsFailuresAndPanicsToItsCaller(t *testing.T) {
	_, err := gather([]int{1, 2, 3}, func(i *int) (int, error) {
		if *i == 2 {
			return 0, fmt.Errorf("broken: %w", errdefs.ErrInternal)
		}
		return *i, nil
	})
	if !errdefs.IsInternal(err) {
		t.Errorf("error %v", err)
	}
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "bad file") {
			t.Errorf("recovered %v", p)
		}
	}()
	_, _ = gather([]int{1, 2, 3}, func(i *int) (int, error) { panic("bad file") })
	t.Error("the panic was swallowed")
}

// A kubelet without cgroupsPerQOS has all pods in one cgroup, whose usage each of them would be told to have.
func TestACgroupOfSeveralPodsIsNoPodsOwn(t *testing.T) {
	pod := func(id, uid, parent string, now engine.PodState) state.PodView {
		return state.PodView{
			Pod:    state.Pod{ID: engine.PodID(id), Spec: engine.PodSpec{Key: engine.PodKey{UID: uid}, CgroupParent: parent}},
			Status: engine.PodStatus{CgroupPath: parent + "/pause-" + id}, State: now,
		}
	}
	pods := []state.PodView{
		pod("a", "1", "/own", engine.PodReady), pod("b", "1", "/own", engine.PodReady), // attempts of one pod
		pod("c", "2", "/all", engine.PodReady), pod("d", "3", "/all", engine.PodReady),
		pod("e", "4", "/was", engine.PodReady), pod("f", "5", "/was", engine.PodNotReady),
		pod("g", "6", "", engine.PodReady), pod("h", "7", "", engine.PodReady),
	}
	pods[3].Spec.CgroupParent = "all.slice" // as of a pod of another shim
	want := map[string]string{"a": "/own", "b": "/own", "e": "/was", "f": "/was"}
	s := &Server{}
	for i := range pods {
		target := s.podTarget(&pods[i], nil, sharedParents(pods))
		if target.CgroupPath != want[target.PodID] {
			t.Errorf("pod %s has the figures of the cgroup %q, want %q", target.PodID, target.CgroupPath, want[target.PodID])
		}
	}
}

// What is removed while the reader of events that feeds the disk sampler is cut off must not be measured, and counted, for ever.
func TestDiskUsageForgetsWhatWentUnseen(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go f.server.disk.Run(ctx)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	sink := f.store.Sink(f.engine.Name())
	const n = eventBuffer + 500
	status := func(i int) engine.ContainerStatus {
		return engine.ContainerStatus{
			ID: engine.ContainerID(fmt.Sprintf("%064x", i+1)), Pod: "p", Key: engine.ContainerKey{Name: fmt.Sprintf("c%d", i)}, State: engine.ContainerCreated,
			CreatedAt: time.Now(), UpperDir: dir, Spec: &engine.ContainerSpec{}}
	}
	for i := range n {
		sink.ContainerChanged(status(i))
	}
	measured := func() int {
		k := 0
		for i := range n {
			if _, _, _, ok := f.server.disk.Usage(string(status(i).ID)); ok {
				k++
			}
		}
		return k
	}
	eventually(t, "all are measured", func() error {
		if k := measured(); k < n {
			return fmt.Errorf("%d of %d", k, n)
		}
		return nil
	})
	// One list of the engine's, which tells of one that is new and of none of the others.
	sink.Resync(engine.Snapshot{Taken: time.Now().Add(time.Second), Containers: []engine.ContainerStatus{status(n)}})
	eventually(t, "what is gone to be forgotten", func() error {
		if k := measured(); k > 0 {
			bytes, _ := f.server.disk.Sum("")
			return fmt.Errorf("%d containers that are gone are still measured, with %d bytes", k, bytes)
		}
		return nil
	})
}
