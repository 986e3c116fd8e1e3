package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// clockJumps has the daemon's clock jump by hours, and to the epoch, without pause until the end of during.
func clockJumps(t *testing.T, f *faults, clock *harness.Clock, during func()) {
	t.Helper()
	hour := time.Hour
	wrong := []time.Duration{0, hour, -hour, 0, 40 * time.Second, -40 * time.Second, 30 * 24 * hour, time.Until(time.Unix(1, 0)), -2 * hour}
	stop := make(chan struct{})
	var jumping sync.WaitGroup
	defer jumping.Wait()
	defer close(stop)
	jumping.Go(func() {
		for jumps := 0; ; jumps++ {
			clock.Set(t, wrong[f.random.IntN(len(wrong))])
			select {
			case <-stop:
				t.Logf("%d jumps", jumps)
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	during()
}

// R46: the daemon's clock jumps by hours, a month and to the epoch, and another way than the engine's, while pods live and die.
// No call fails and none is given up early, what is kept is in order of creation, no time is nothing, and no rate is negative.
//
// Rows: R46
func TestClockThatJumps(t *testing.T) {
	harness.Require(t)
	clock := harness.NewClock(t)
	f := newFaultsOf(t, harness.ShimOptions{Clock: clock})
	lives := 1
	if all() {
		lives = 20
	}
	for range lives {
		v := f.victim(t)
		clockJumps(t, f, clock, func() {
			for _, one := range v.life() {
				v.succeed(one)
			}
		})
	}
	f.unharmed(t, true)

	pod := f.n.RunPod(t, "clock")
	busybox := f.n.Registry.Ref(harness.Busybox)
	burn := pod.Run("burn", busybox, []string{"testserver", "burn"})
	var made []string
	clockJumps(t, f, clock, func() {
		waitsForNothing(t, f, pod)
		for i := range 4 {
			c := pod.Run(fmt.Sprintf("c%d", i), busybox, []string{"sh", "-c", "exit 3"})
			made = append(made, c.ID)
			if end := c.WaitExit(); end.ExitCode != 3 || end.CreatedAt <= 0 || end.StartedAt <= 0 || end.FinishedAt < end.StartedAt {
				t.Errorf("the end of a container is %v", end)
			}
		}
		ratesAreSane(t, f, burn)
	})
	inOrder := func(when string) {
		t.Helper()
		reply, err := f.n.Shim.Runtime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod.ID}})
		if err != nil {
			t.Fatal(err)
		}
		var listed []string
		for _, c := range reply.Containers {
			if strings.HasPrefix(c.Metadata.Name, "c") {
				listed = append(listed, c.Id)
			}
			if c.CreatedAt <= 0 {
				t.Errorf("%s container %v was created at %d", when, c.Metadata, c.CreatedAt)
			}
		}
		if !slices.Equal(listed, made) {
			t.Errorf("%s the containers are %v, they were made as %v", when, listed, made)
		}
	}
	inOrder("afterwards")
	// At the next start the clock says that all of this is yet to come.
	f.n.Shim.Stop()
	clock.Set(t, time.Until(time.Unix(1000, 0)))
	f.n.Shim.Start()
	inOrder("after a start in 1970")
	if state := burn.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a start in 1970 a container is %v", state)
	}
	pod.Run("late", busybox, []string{"true"}).WaitExit()
	f.unharmed(t, true)
	clock.Set(t, 0)
	pod.Remove()
}

// waitsForNothing has calls with limits of time in which much less passes than by the clock.
func waitsForNothing(t *testing.T, f *faults, pod *harness.Pod) {
	t.Helper()
	// It ends by itself a second after SIGTERM, long before its grace is over.
	c := pod.Run("ends", f.n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "trap 'sleep 1; exit 7' TERM; echo ready; while :; do sleep 0.1; done"})
	c.WaitLog("ready")
	reply, err := f.n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "sleep 1; echo done"}, Timeout: 50})
	if err != nil || string(reply.Stdout) != "done\n" {
		t.Errorf("an exec of a second with a limit of 50: %v, %v", reply, err)
	}
	_, err = f.n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "1000"}, Timeout: 1})
	wantCode(t, "an exec beyond its limit", err, codes.DeadlineExceeded)
	url := c.ExecURL(harness.Streams{Stdout: &strings.Builder{}}, "echo", "streamed")
	time.Sleep(300 * time.Millisecond) // a dozen jumps
	var out strings.Builder
	if err := harness.StreamSPDY(ctx(t), url, harness.Streams{Stdout: &out}); err != nil || out.String() != "streamed\n" {
		t.Errorf("a stream whose address was asked for hours ago by the clock: %q, %v", out.String(), err)
	}
	c.Stop(60)
	if end := c.WaitExit(); end.ExitCode != 7 {
		t.Errorf("a container that ends within its grace: %v", end)
	}
	// A caller's deadline is kept, too.
	long := pod.Run("long", f.n.Registry.Ref(harness.Busybox), forever)
	brief, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = f.n.Shim.Runtime.ExecSync(brief, &runtimeapi.ExecSyncRequest{ContainerId: long.ID, Cmd: []string{"sleep", "1000"}})
	wantCode(t, "an exec whose caller's deadline passed", err, codes.DeadlineExceeded)
}

// ratesAreSane reads statistics at every turn of the clock.
func ratesAreSane(t *testing.T, f *faults, c *harness.Container) {
	t.Helper()
	var last uint64
	rates := 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		reply, err := f.n.Shim.Runtime.ContainerStats(ctx(t), &runtimeapi.ContainerStatsRequest{ContainerId: c.ID})
		if err != nil {
			t.Fatal(err)
		}
		cpu := reply.Stats.Cpu
		if cpu.UsageCoreNanoSeconds.GetValue() < last || cpu.Timestamp <= 0 {
			t.Errorf("CPU time %v, before it was %d", cpu, last)
		}
		last = cpu.UsageCoreNanoSeconds.GetValue()
		if rate := cpu.UsageNanoCores; rate != nil {
			rates++
			if rate.Value > 64e9 {
				t.Errorf("a rate of %d cores", rate.Value/1e9)
			}
		}
	}
	if rates == 0 {
		t.Error("no rate was told of")
	}
}
