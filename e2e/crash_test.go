package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// call is one call of a pod's life.
type call struct {
	name string
	// do makes it, again where an earlier try may have done it.
	do func(context.Context) error
	// check says what is not as it must be once it succeeded.
	check func(context.Context) error
	// untouched calls are there for the others.
	untouched bool
}

// life is every call that changes something, in the order of a pod's life.
func (v *victim) life() []call {
	small := &runtimeapi.ImageSpec{Image: v.f.n.Registry.Ref(harness.Small)}
	state := func(name string, state runtimeapi.ContainerState) func(context.Context) error {
		return func(c context.Context) error { return v.checkContainer(c, name, state) }
	}
	fine := func(context.Context) error { return nil }
	return []call{
		{name: "PullImage", do: func(c context.Context) error {
			_, err := v.f.n.Shim.Images.PullImage(c, &runtimeapi.PullImageRequest{Image: small})
			return err
		}, check: func(c context.Context) error { return v.checkImage(c, small, true) }},
		{name: "RemoveImage", do: func(c context.Context) error {
			_, err := v.f.n.Shim.Images.RemoveImage(c, &runtimeapi.RemoveImageRequest{Image: small})
			return err
		}, check: func(c context.Context) error { return v.checkImage(c, small, false) }},
		{name: "RunPodSandbox", do: v.run, check: v.checkRunning},
		{name: "CreateContainer", do: func(c context.Context) error { return v.create(c, "a") },
			check: state("a", runtimeapi.ContainerState_CONTAINER_CREATED)},
		{name: "StartContainer", do: func(c context.Context) error { return v.start(c, "a") }, check: func(c context.Context) error {
			v.waitReady("a")
			return v.checkContainer(c, "a", runtimeapi.ContainerState_CONTAINER_RUNNING)
		}},
		{name: "UpdateContainerResources", do: v.resize, check: v.checkResized},
		{name: "UpdatePodSandboxResources", do: func(c context.Context) error {
			_, err := v.runtime().UpdatePodSandboxResources(c, &runtimeapi.UpdatePodSandboxResourcesRequest{
				PodSandboxId: v.id, Overhead: &runtimeapi.LinuxContainerResources{}, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 4},
			})
			return err
		}, check: v.checkRunningStill},
		{name: "ReopenContainerLog", do: v.rotate, check: v.checkLogs},
		{name: "StopContainer", do: func(c context.Context) error { return v.stopContainer(c, "a") },
			check: state("a", runtimeapi.ContainerState_CONTAINER_EXITED)},
		{name: "RemoveContainer", do: func(c context.Context) error { return v.removeContainer(c, "a") }, check: v.checkRunning},
		{name: "CreateContainer of another", untouched: true, do: func(c context.Context) error { return v.create(c, "b") }, check: fine},
		{name: "StartContainer of another", untouched: true, do: func(c context.Context) error { return v.start(c, "b") }, check: fine},
		{name: "CreateContainer of a third", untouched: true, do: func(c context.Context) error { return v.create(c, "c") }, check: fine},
		{name: "StopPodSandbox", do: v.stop, check: v.checkStopped},
		{name: "RemovePodSandbox", do: v.remove, check: v.checkGone},
	}
}

func (v *victim) checkImage(c context.Context, image *runtimeapi.ImageSpec, present bool) error {
	reply, err := v.f.n.Shim.Images.ImageStatus(c, &runtimeapi.ImageStatusRequest{Image: image})
	if err == nil && (reply.Image != nil) != present {
		err = fmt.Errorf("the image is %v", reply.Image)
	}
	return err
}

// waitReady waits until a container listens to signals, so that it ends as it means to.
func (v *victim) waitReady(name string) {
	v.t.Helper()
	harness.Eventually(v.t, 20*time.Second, "the container's first line", func() error {
		lines, err := harness.ReadLog(v.log(name))
		if err == nil && len(lines) == 0 {
			err = fmt.Errorf("none yet")
		}
		return err
	})
}

func (v *victim) log(name string) string { return filepath.Join(v.config.LogDirectory, name, "0.log") }

func (v *victim) resize(c context.Context) error {
	_, err := v.runtime().UpdateContainerResources(c, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: v.containers["a"], Linux: &runtimeapi.LinuxContainerResources{CpuShares: 77, MemoryLimitInBytes: 64 << 20},
	})
	return err
}

func (v *victim) checkResized(c context.Context) error {
	reply, err := v.runtime().ContainerStatus(c, &runtimeapi.ContainerStatusRequest{ContainerId: v.containers["a"]})
	if err == nil && (reply.Status.Resources.GetLinux().GetCpuShares() != 77 || reply.Status.Resources.GetLinux().GetMemoryLimitInBytes() != 64<<20) {
		err = fmt.Errorf("the resources are %v", reply.Status.Resources)
	}
	return err
}

func (v *victim) checkRunningStill(c context.Context) error {
	return v.checkContainer(c, "a", runtimeapi.ContainerState_CONTAINER_RUNNING)
}

// rotate is what the kubelet does to a long log.
func (v *victim) rotate(c context.Context) error {
	log := v.log("a")
	if _, err := os.Lstat(log); err == nil {
		v.rotated++
		if err := os.Rename(log, fmt.Sprintf("%s.%d", log, v.rotated)); err != nil {
			return err
		}
	}
	_, err := v.runtime().ReopenContainerLog(c, &runtimeapi.ReopenContainerLogRequest{ContainerId: v.containers["a"]})
	return err
}

// checkLogs: there is a log again, and nothing was written twice.
func (v *victim) checkLogs(context.Context) error {
	if _, err := os.Lstat(v.log("a")); err != nil {
		return err
	}
	files, err := filepath.Glob(v.log("a") + "*")
	if err != nil {
		return err
	}
	var all []harness.LogLine
	for _, file := range files {
		lines, err := harness.ReadLog(file)
		if err != nil {
			return err
		}
		all = append(all, lines...)
	}
	if len(all) != 1 {
		return fmt.Errorf("the container wrote one line, the logs have %v", all)
	}
	return nil
}

func (v *victim) checkStopped(c context.Context) error {
	pods, err := v.pods(c)
	if err == nil && (len(pods) != 1 || pods[0].State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY) {
		err = fmt.Errorf("pods %v, want one not ready", pods)
	}
	if addresses := v.f.n.CNI.Addresses(); err == nil && !slices.Equal(addresses, []string{v.f.ip}) {
		err = fmt.Errorf("addresses %v, want the bystander's alone", addresses)
	}
	return err
}

func (v *victim) checkGone(c context.Context) error {
	pods, err := v.pods(c)
	if err != nil {
		return err
	}
	containers, err := v.list(c, "")
	if err == nil && len(pods)+len(containers) > 0 {
		err = fmt.Errorf("pods %v and containers %v are listed", pods, containers)
	}
	if objects := v.f.n.ObjectsOfPod(v.t, v.config.Metadata.Uid); err == nil && len(objects) > 0 {
		err = fmt.Errorf("the engine has %v", objects)
	}
	return err
}

// succeed makes a call that must succeed, and looks whether it has done what it says.
func (v *victim) succeed(one call) {
	v.t.Helper()
	if err := one.do(ctx(v.t)); err != nil {
		v.t.Fatalf("%s: %v", one.name, err)
	}
	if err := one.check(ctx(v.t)); err != nil {
		v.t.Fatalf("after %s: %v", one.name, err)
	}
}

// crash makes the call, has the daemon end at the step, by kill -9 ("kill") or as a service is stopped ("term"), starts it,
// dying there again at the line again ("" for none), and makes the call once more.
func (v *victim) crash(one call, at step, action, again string) {
	v.t.Helper()
	f := v.f
	f.arm(v.t, at.does(action))
	err := one.do(ctx(v.t))
	ended := f.dead(err)
	if !ended && action == "term" && slices.ContainsFunc(f.traced(v.t), func(s step) bool { return s.taken }) {
		ended = f.deadWithin(time.Minute) // it lets the call end
	}
	if !ended {
		if err != nil || !at.ofItsOwn() {
			v.t.Fatalf("%s was to die at %s and did not: %v", one.name, at, err)
		}
		f.arm(v.t)
	} else {
		f.arm(v.t, again)
		f.restart(v.t)
		if again != "" {
			v.dieAgain(one)
		}
		f.unharmed(v.t, false)
	}
	if err := one.do(ctx(v.t)); err != nil {
		v.t.Fatalf("%s, killed at %s, then again: %v", one.name, at, err)
	}
	if err := one.check(ctx(v.t)); err != nil {
		v.t.Fatalf("after %s, killed at %s: %v", one.name, at, err)
	}
}

// dieAgain makes the call and starts the daemon where it dies of that, or meanwhile of what it does after its start.
func (v *victim) dieAgain(one call) {
	v.t.Helper()
	err := one.do(ctx(v.t))
	if err != nil && !v.f.dead(err) {
		v.t.Fatalf("%s again: %v", one.name, err)
	}
	v.f.arm(v.t)
	if v.f.deadWithin(50 * time.Millisecond) {
		v.f.deaths++
		v.f.restart(v.t)
	}
}

// steps are those of every call of a life, by a life in which nothing happens.
func (f *faults) steps(t *testing.T) map[string][]step {
	t.Helper()
	steps := map[string][]step{}
	t.Run("undisturbed", func(t *testing.T) {
		v := f.victim(t)
		for _, one := range v.life() {
			f.arm(t)
			v.succeed(one)
			if !one.untouched {
				steps[one.name] = f.traced(t)
				t.Logf("%s: %v", one.name, steps[one.name])
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return steps
}

// R01: kill -9 of the daemon, and its end by SIGTERM, before and after every step of every call that changes something. The
// kubelet's retry gets what was begun, once; in the end nothing is left; another pod never notices. Each life of a pod has one
// end in each call, of the two by turns, or all of one where all are walked.
//
// Rows: R01, R37 (part)
func TestDaemonDiesAtEveryStep(t *testing.T) {
	f := newFaults(t)
	steps := f.steps(t)
	lives := 0
	for name := range steps {
		if !all() {
			steps[name] = distinct(steps[name])
		}
		lives = max(lives, len(steps[name]))
	}
	actions := []string{"kill", "term"}
	life := func(i, turn int) {
		t.Run(fmt.Sprintf("step %d, %s", i, actions[turn%2]), func(t *testing.T) {
			v := f.victim(t)
			for _, one := range v.life() {
				if i < len(steps[one.name]) {
					v.crash(one, steps[one.name][i], actions[turn%2], "")
				} else {
					v.succeed(one)
				}
				if !all() {
					turn++
				}
			}
			f.unharmed(t, true)
		})
	}
	for _, i := range f.sample(lives, lives) {
		life(i, i)
		if all() {
			life(i, i+1)
		}
	}
}

// R01: the daemon dies in a call, and again at any step of its next start or of the retry.
//
// Rows: R01 (part), R37 (part)
func TestDaemonDiesTwice(t *testing.T) {
	f := newFaults(t)
	steps := f.steps(t)
	type death struct {
		name string
		at   step
	}
	var firsts []death
	for _, name := range []string{"RunPodSandbox", "CreateContainer", "StartContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"} {
		for _, at := range distinct(steps[name]) {
			firsts = append(firsts, death{name, at})
		}
	}
	twice := func(first death, then int) (died bool) {
		t.Run(fmt.Sprintf("%s %s, then step %d", first.name, first.at, then), func(t *testing.T) {
			before := f.deaths
			v := f.victim(t)
			for _, one := range v.life() {
				switch one.name {
				case first.name:
					v.crash(one, first.at, "kill", step{name: "any", nth: then}.does("kill"))
				case "PullImage", "RemoveImage", "UpdateContainerResources", "UpdatePodSandboxResources", "ReopenContainerLog":
				default:
					v.succeed(one)
				}
			}
			f.unharmed(t, true)
			died = f.deaths > before
		})
		return died
	}
	for _, i := range f.sample(len(firsts), 16) {
		if !all() {
			twice(firsts[i], 1+f.random.IntN(len(steps[firsts[i].name])))
			continue
		}
		for then := 1; twice(firsts[i], then); then++ {
			continue
		}
	}
}

// R01: the daemon dies in a creation and the kubelet never asks again, but removes what is listed: nothing else is left.
//
// Rows: R01 (part), R37 (part)
func TestDaemonDiesAndNobodyComesBack(t *testing.T) {
	f := newFaults(t)
	steps := f.steps(t)
	for _, name := range []string{"RunPodSandbox", "CreateContainer", "StartContainer"} {
		kills := slices.DeleteFunc(distinct(steps[name]), step.ofItsOwn)
		for _, i := range f.sample(len(kills), 8) {
			t.Run(kills[i].String(), func(t *testing.T) {
				v := f.victim(t)
				for _, one := range v.life() {
					if one.name == "PullImage" || one.name == "RemoveImage" {
						continue
					}
					if one.name != name {
						v.succeed(one)
						continue
					}
					f.arm(t, kills[i].does("kill"))
					err := one.do(ctx(t))
					if !f.dead(err) {
						t.Fatalf("%s to die at %s: %v", name, kills[i], err)
					}
					f.arm(t)
					f.restart(t)
					break
				}
				v.end()
				f.unharmed(t, true)
			})
		}
	}
}
