package server

import (
	"context"
	"math"
	"runtime"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// More seconds than 292 years of nanoseconds are many, and not none.
func TestTimesThatNoDurationHoldsAreLong(t *testing.T) {
	for _, timeout := range []int64{math.MaxInt64, 1 << 34} {
		f := newFixture(t)
		pod := f.runPod("p")
		a := f.startContainer(pod, "p", "a", "stubborn")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := f.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: a, Timeout: timeout})
		cancel()
		if s := f.containerStatus(a); err == nil || s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("timeout %d: killed at once: %s exit %d (%v)", timeout, s.State, s.ExitCode, err)
		}
	}
	f := newFixture(t)
	a := f.startContainer(f.runPod("p"), "p", "a", "sleep", "100")
	if _, err := f.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: a, Cmd: []string{"echo", "x"}, Timeout: 1 << 34}); err != nil {
		t.Error(err)
	}
}

// Hundreds of containers stop at once when a node is drained: the moment in which each waits for the news of its exit takes
// little memory.
func TestAStopTakesLittleMemory(t *testing.T) {
	f := newFixture(t)
	id := engine.ContainerID(f.startContainer(f.runPod("p"), "p", "a", "sleep", "100"))
	least := uint64(math.MaxUint64) // of some, as others allocate too
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if f.server.knowsExit(t.Context(), id) {
			t.Fatal("a container that runs has exited")
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	if least > 256<<10 {
		t.Errorf("the wait for an exit takes %d KiB", least>>10)
	}
}
