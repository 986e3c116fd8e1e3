package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// creations are the calls that take back what they made where they fail.
var creations = []string{"RunPodSandbox", "CreateContainer", "StartContainer"}

// until makes the calls of a life before the named one, but for those about images, and returns it.
func (v *victim) until(name string) call {
	v.t.Helper()
	for _, one := range v.life() {
		switch one.name {
		case name:
			return one
		case "PullImage", "RemoveImage":
		default:
			v.succeed(one)
		}
	}
	v.t.Fatalf("no call %s", name)
	return call{}
}

// fail makes a call that fails at a step, and perhaps at further ones, and returns the steps after that one.
func (v *victim) fail(one call, at step, further ...string) []step {
	v.t.Helper()
	v.f.arm(v.t, append(further, at.does("error"))...)
	err := one.do(ctx(v.t))
	steps := v.f.traced(v.t)
	v.f.arm(v.t)
	reached := slices.IndexFunc(steps, func(s step) bool { return s.taken && s.name == at.name && s.nth == at.nth })
	if reached < 0 {
		if !at.ofItsOwn() {
			v.t.Errorf("%s did not reach %s: %v", one.name, at, err)
		}
		return nil
	}
	if err == nil {
		// A step that the call can do without; then it must have done the rest.
		if err := one.check(ctx(v.t)); err != nil {
			v.t.Errorf("%s succeeded although %s failed: %v", one.name, at, err)
		}
		return nil
	}
	return steps[reached+1:]
}

// visible checks that what a failed call left is told of: whatever the engine or the network has is listed, no pod as ready
// that the caller was not given.
func (v *victim) visible(name string) {
	v.t.Helper()
	harness.Eventually(v.t, 5*time.Second, "what is left to be listed", func() error {
		pods, err := v.pods(ctx(v.t))
		if err != nil {
			return err
		}
		containers, err := v.list(ctx(v.t), "")
		if err != nil {
			return err
		}
		objects, addresses := v.f.n.ObjectsOfPod(v.t, v.config.Metadata.Uid), v.f.n.CNI.Addresses()
		if name == "RunPodSandbox" {
			for _, pod := range pods {
				if pod.Id != v.id && pod.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
					return fmt.Errorf("pod %v is listed ready", pod)
				}
			}
		}
		if len(pods) == 0 && (len(objects) > 0 || len(addresses) > 1) || len(objects) > len(pods)+len(containers) {
			return fmt.Errorf("the engine has %v, the network %v; listed are pods %v and containers %v", objects, addresses, pods, containers)
		}
		return nil
	})
}

// R11: each step of a creation fails, and then each step of taking it back fails too. What is left is listed, a retry under
// the same names works all the same, and Stop and Remove remove everything.
//
// Rows: R11 (part)
func TestEachStepFailsAndItsUndoToo(t *testing.T) {
	f := newFaults(t)
	steps := f.steps(t)
	for _, name := range creations {
		undos := map[step][]step{}
		failing := slices.DeleteFunc(steps[name], step.ofItsOwn)
		for i, at := range failing {
			t.Run(fmt.Sprintf("%s fails at %s", name, at), func(t *testing.T) {
				v := f.victim(t)
				undos[at] = slices.DeleteFunc(v.fail(v.until(name), at), step.ofItsOwn)
				v.settle(name, i%2 == 0)
			})
		}
		type pair struct{ at, undo step }
		var pairs []pair
		for at, undo := range undos {
			for _, u := range undo {
				pairs = append(pairs, pair{at, u})
			}
		}
		slices.SortFunc(pairs, func(a, b pair) int { return compareSteps(a.at, b.at, a.undo, b.undo) })
		for _, i := range f.sample(len(pairs), 10) {
			p := pairs[i]
			t.Run(fmt.Sprintf("%s fails at %s and %s", name, p.at, p.undo), func(t *testing.T) {
				v := f.victim(t)
				v.fail(v.until(name), p.at, p.undo.does("error"))
				v.settle(name, i%2 == 0)
			})
		}
	}
}

// compareSteps orders pairs, so that a seed always picks the same.
func compareSteps(a, b, a2, b2 step) int {
	return slices.Compare([]string{a.String(), a2.String()}, []string{b.String(), b2.String()})
}

// settle checks what a failed call left, has it made again where the test says so, and removes everything.
func (v *victim) settle(name string, again bool) {
	v.t.Helper()
	v.visible(name)
	if again && name != "StartContainer" { // the kubelet makes another container where one could not be started
		one := v.again(name)
		if err := one.do(ctx(v.t)); err != nil {
			v.t.Errorf("%s again: %v", name, err)
		} else if err := one.check(ctx(v.t)); err != nil {
			v.t.Errorf("after %s again: %v", name, err)
		}
	}
	v.end()
	v.f.unharmed(v.t, false)
}

func (v *victim) again(name string) call {
	life := v.life()
	return life[slices.IndexFunc(life, func(one call) bool { return one.name == name })]
}
