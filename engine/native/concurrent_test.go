package native

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// descriptors of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Pods live all at once, with execs, updates, ends by themselves, stops and removals that meet: each container's end is told
// once and as it was, and no goroutine, descriptor or process is left.
//
// Rows: R12 (part), R16 (part), R17 (part), S23 (part)
func TestManyPodsAtOnce(t *testing.T) {
	b := serving(t)
	// What stays open for good after the first pod is no leak.
	warm, warmSpec := b.runPod(t)
	b.run(t, warm, warmSpec, "c", "exit 0")
	b.removePod(t, warm)
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	var specs []*engine.PodSpec
	for i := range 8 {
		specs = append(specs, b.podSpec(t, func(s *engine.PodSpec) {
			if i%4 == 0 {
				sharedPIDs(s)
			}
		}))
	}
	var all sync.WaitGroup
	for i, s := range specs {
		all.Go(func() {
			if err := b.busyPod(t.Context(), t, s, i); err != nil {
				t.Errorf("pod %d: %v", i, err)
			}
		})
	}
	all.Wait()
	eventually(t, 30*time.Second, "the goroutines and descriptors are as before", func() bool {
		return runtime.NumGoroutine() <= goroutines+2 && descriptors(t) <= fds+2
	})
}

// busyPod is the life of one pod among others.
func (b *bench) busyPod(ctx context.Context, t *testing.T, s *engine.PodSpec, n int) error {
	id, err := b.CreatePod(ctx, s)
	if err != nil {
		return err
	}
	if _, err := b.StartPod(ctx, id, s); err != nil {
		return err
	}
	var ids []engine.ContainerID
	for i := range 3 {
		spec := b.containerSpec(t, id, s, fmt.Sprintf("c%d", i), fmt.Sprintf("trap 'exit %d' TERM; [ $ME = %d-%d ] || exit 99; n=0; while [ $n -lt 40 ]; do n=$((n+1)); sleep 0.02; done; exit %d", 10+i, n, i, 20+i))
		spec.Env = []engine.EnvVar{{Name: "ME", Value: fmt.Appendf(nil, "%d-%d", n, i)}}
		st, err := b.CreateContainer(ctx, spec)
		if err != nil {
			return err
		}
		if _, err := b.StartContainer(ctx, st.ID, spec); err != nil {
			return err
		}
		ids = append(ids, st.ID)
	}
	var all sync.WaitGroup
	errs := make(chan error, 100)
	for i, c := range ids {
		all.Go(func() {
			for range 3 {
				code, err := b.Exec(ctx, c, &engine.ExecSpec{Command: []string{"sh", "-c", "exit 5"}})
				gone := errdefs.IsFailedPrecondition(err) || errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) // also removed, where all is slow
				if err != nil && !gone && !strings.Contains(err.Error(), "exec") || err == nil && code != 5 && code != 137 {
					errs <- fmt.Errorf("exec: %d, %w", code, err)
				}
			}
		})
		all.Go(func() {
			if err := b.UpdateContainer(ctx, c, &engine.Resources{CPUShares: 99}); err != nil && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err) {
				errs <- fmt.Errorf("update: %w", err)
			}
		})
		// Two stops meet, and some meet the end of the container by itself. Where a stop comes before the trap is set the script, as
		// the first process, goes on to its end, however slow the machine is.
		for range 2 {
			all.Go(func() {
				time.Sleep(time.Duration(rand.IntN(900)) * time.Millisecond)
				if err := b.StopContainer(ctx, c, time.Minute); err != nil {
					errs <- fmt.Errorf("stop: %w", err)
				}
			})
		}
		all.Go(func() {
			time.Sleep(time.Duration(700+rand.IntN(300)) * time.Millisecond)
			if err := b.StopContainer(ctx, c, time.Minute); err != nil {
				errs <- fmt.Errorf("stop: %w", err)
			}
			st, err := b.ContainerStatus(ctx, c)
			// 143 is a stop before the script has set its trap.
			if err != nil || st.State != engine.ContainerExited || int(st.ExitCode) != 10+i && int(st.ExitCode) != 20+i && st.ExitCode != 143 {
				log, _ := os.ReadFile(filepath.Join(s.LogDirectory, fmt.Sprintf("c%d.log", i)))
				errs <- fmt.Errorf("%+v, %w, log %q", st, err, log)
			}
			// The removal meets the clean-up after the end.
			if err := b.RemoveContainer(ctx, c); err != nil {
				errs <- fmt.Errorf("remove: %w", err)
			}
			for deadline := time.Now().Add(time.Minute); len(b.sink.exits(c)) != 1; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					errs <- fmt.Errorf("the end of %s was told %d times", c, len(b.sink.exits(c)))
					break
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		return err
	}
	if err := b.StopPod(ctx, id); err != nil {
		return err
	}
	if err := b.ReleaseNetNS(ctx, id); err != nil {
		return err
	}
	return b.RemovePod(ctx, id)
}

// A start that is given up halfway leaves a container that can be started.
//
// Rows: R10 (part), R11 (part)
func TestAStartThatIsGivenUp(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	for i := range 12 {
		s := b.containerSpec(t, pod, spec, fmt.Sprintf("c%d", i), "exit 3")
		st, err := b.CreateContainer(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*3)*time.Millisecond)
		_, err = b.StartContainer(ctx, st.ID, s)
		cancel()
		if err != nil {
			if st := b.status(t, st.ID); st.State != engine.ContainerCreated {
				t.Errorf("given up: %+v", st)
			}
			if _, err := b.StartContainer(t.Context(), st.ID, s); err != nil {
				t.Fatalf("start again: %v", err)
			}
		}
		if st := b.exited(t, st.ID); st.ExitCode != 3 {
			t.Errorf("%+v", st)
		}
	}
	b.removePod(t, pod)
}

// An update reaches oom_score_adj of what runs, of execs to come and of a container that is started later.
func TestAnUpdateOfOOMScoreAdj(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000 & trap 'exit 0' TERM; while :; do sleep 0.05; done")
	score := func(id engine.ContainerID) string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(b.status(t, id).PID), "oom_score_adj"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	if err := b.UpdateContainer(t.Context(), id, &engine.Resources{CPUShares: 50, OOMScoreAdj: 700}); err != nil {
		t.Fatal(err)
	}
	if got := score(id); got != "700" {
		t.Errorf("oom_score_adj is %s", got)
	}
	if got := b.sh(t, id, "cat /proc/self/oom_score_adj"); got != "700\n" {
		t.Errorf("an exec's is %s", got)
	}
	st, err := b.CreateContainer(t.Context(), b.containerSpec(t, pod, spec, "later", "sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.UpdateContainer(t.Context(), st.ID, &engine.Resources{OOMScoreAdj: 300}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.StartContainer(t.Context(), st.ID, nil); err != nil {
		t.Fatal(err)
	}
	if got := score(st.ID); got != "300" {
		t.Errorf("oom_score_adj of the later one is %s", got)
	}
	// Lower than this host allows is the lowest that it does.
	if err := b.UpdateContainer(t.Context(), id, &engine.Resources{OOMScoreAdj: -998}); err != nil {
		t.Fatal(err)
	}
	if got, want := score(id), strconv.Itoa(max(-998, b.host.OOMScoreAdjMin)); got != want {
		t.Errorf("oom_score_adj is %s, want %s", got, want)
	}
	b.removePod(t, pod)
}

// What a refused update had set already is as before, also where there was no limit before.
func TestARefusedUpdateChangesNothing(t *testing.T) {
	refusing := func(b *bench, change func(*engine.PodSpec)) func(*testing.T) {
		return func(t *testing.T) {
			pod, s := b.runPod(t, change)
			id := b.run(t, pod, s, "a", "sleep 1000")
			for _, before := range []engine.Resources{{}, {MemoryLimit: 64 << 20, MemorySwap: 64 << 20, CPUShares: 512, CPUQuota: 50_000, CPUPeriod: 50_000}} {
				if err := b.UpdateContainer(t.Context(), id, &before); err != nil {
					t.Fatal(err)
				}
				want, wantCPUs := b.limits(t, id), b.cpus(t, id)
				wrong := engine.Resources{MemoryLimit: 96 << 20, MemorySwap: 96 << 20, CPUShares: 2048, CPUQuota: 1 << 60, CPUPeriod: 20_000, CpusetCPUs: "0"}
				if err := b.UpdateContainer(t.Context(), id, &wrong); err == nil {
					t.Fatal("a quota of 36000 years was accepted")
				}
				if got, cpus := b.limits(t, id), b.cpus(t, id); !reflect.DeepEqual(got, want) || cpus != wantCPUs {
					t.Errorf("limits %+v, CPUs %s; want %+v, %s", got, cpus, want, wantCPUs)
				}
			}
			b.removePod(t, pod)
		}
	}
	t.Run("own runtime", refusing(serving(t), func(*engine.PodSpec) {}))
	t.Run("an OCI runtime", func(t *testing.T) {
		b := runcBench(t)
		b.serve(t)
		refusing(b, withRunc)(t)
	})
}

// cpus are those that a container may use.
func (b *bench) cpus(t *testing.T, id engine.ContainerID) string {
	t.Helper()
	dir, file := "/sys/fs/cgroup/cpuset", "cpuset.effective_cpus"
	if b.host.CgroupV2 {
		dir, file = "/sys/fs/cgroup", "cpuset.cpus.effective"
	}
	data, err := os.ReadFile(filepath.Join(dir, b.status(t, id).CgroupPath, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// What was told of a container stays what it was: its reader, who may take a found container's specification from it, holds no lock
// of ours.
func TestAStatusIsNotChangedByAnUpdate(t *testing.T) {
	b := serving(t)
	pod, s := b.runPod(t)
	id := b.run(t, pod, s, "a", "sleep 1000")
	before := b.status(t, id)
	updated := make(chan error, 1)
	go func() { updated <- b.UpdateContainer(t.Context(), id, &engine.Resources{CPUShares: 512}) }()
	told := before.Spec.Resources // under the race detector
	if err := <-updated; err != nil {
		t.Fatal(err)
	}
	if told.CPUShares == 512 || before.Spec.Resources.CPUShares == 512 {
		t.Error("the status of before the update has its limits")
	}
	if now := b.status(t, id).Spec.Resources.CPUShares; now != 512 {
		t.Errorf("the status of after the update has %d CPU shares", now)
	}
	b.removePod(t, pod)
}
