package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// R03: kill -9 of the pod's monitor at every step of every call that changes something in the pod: while the daemon holds still
// there, or together with the daemon. The pod ends, its containers say why, the kubelet's next attempt runs beside what is
// left, and all of it is removed; another pod never notices.
//
// Rows: R01 (part), R03
func TestMonitorDiesAtEveryStep(t *testing.T) {
	harness.AboutNative(t)
	f := newFaults(t)
	steps := f.steps(t)
	type death struct {
		name     string
		at       step
		together bool // with the daemon
	}
	var deaths []death
	for _, one := range (&victim{f: f}).life() {
		for _, at := range watched(one.name, steps[one.name]) {
			deaths = append(deaths, death{one.name, at, false}, death{one.name, at, true})
		}
	}
	for _, i := range f.sample(len(deaths), 24) {
		d := deaths[i]
		name := fmt.Sprintf("%s at %s", d.name, d.at)
		if d.together {
			name += " with the daemon"
		}
		t.Run(name, func(t *testing.T) {
			v := f.victim(t)
			one := v.until(d.name)
			had := v.reported(ctx(t))
			killed := v.killMonitor(one, d.at, d.together)
			if killed {
				v.lost(had, strings.HasPrefix(d.name, "Stop"))
			} else if err := one.do(ctx(t)); err != nil {
				t.Fatalf("%s, where no monitor was there to be killed at %s: %v", one.name, d.at, err)
			}
			f.unharmed(t, false)
			v.nextAttempt()
			v.end()
			f.unharmed(t, true)
		})
	}
}

// watched are the steps at which the pod has a monitor.
func watched(call string, steps []step) []step {
	from, to := 0, len(steps)
	switch call {
	case "PullImage", "RemoveImage", "RemovePodSandbox":
		return nil
	case "RunPodSandbox":
		from = slices.IndexFunc(steps, func(s step) bool { return s.name == "native.pod.spawn.after" })
	case "StopPodSandbox":
		to = slices.IndexFunc(steps, func(s step) bool { return s.name == "native.pod.shutdown.after" })
	}
	return distinct(steps[from:to])
}

// killMonitor makes the call and has the monitor of its pod killed at the step, with the daemon or while that waits there. It says
// whether there was one.
func (v *victim) killMonitor(one call, at step, together bool) bool {
	v.t.Helper()
	f := v.f
	action := "hold"
	if together {
		action = "kill"
	}
	f.arm(v.t, at.does(action))
	c := ctx(v.t)
	done := make(chan error, 1)
	go func() { done <- one.do(c) }()
	reached := func() bool { return slices.ContainsFunc(f.traced(v.t), func(s step) bool { return s.taken }) }
	var err error
	for returned := false; !returned && !reached(); {
		select {
		case err = <-done:
			returned = true
			done <- err
		case <-time.After(5 * time.Millisecond):
		}
	}
	if !reached() && !at.ofItsOwn() {
		v.t.Fatalf("%s did not reach %s: %v", one.name, at, err)
	}
	if together && reached() && !f.dead(<-done) {
		v.t.Fatalf("%s was to die at %s and did not", one.name, at)
	}
	killed := false
	for _, m := range f.n.Monitors() {
		if m.Pod == v.config.Metadata.Namespace+"/"+v.config.Metadata.Name {
			killed = m.Signal(syscall.SIGKILL) || killed
		}
	}
	f.arm(v.t)
	switch {
	case together && f.deadWithin(50*time.Millisecond):
		f.restart(v.t)
	case !together:
		err = <-done
	}
	v.t.Logf("killed: %v; the call: %v", killed, err)
	return killed
}

// reported are the victim's containers by id, and how those have ended that have.
func (v *victim) reported(c context.Context) map[string]*runtimeapi.ContainerStatus {
	v.t.Helper()
	list, err := v.list(c, "")
	if err != nil {
		v.t.Fatal(err)
	}
	all := map[string]*runtimeapi.ContainerStatus{}
	for _, one := range list {
		reply, err := v.runtime().ContainerStatus(c, &runtimeapi.ContainerStatusRequest{ContainerId: one.Id})
		if err != nil {
			v.t.Fatal(err)
		}
		all[one.Id] = reply.Status
	}
	return all
}

// lost waits until what a monitor took with it is told of: no pod is ready, and no container runs. One that ran before the call,
// and still is there, has ended by the monitor's death, or by the call where that was to stop it.
func (v *victim) lost(had map[string]*runtimeapi.ContainerStatus, stopped bool) {
	v.t.Helper()
	harness.Eventually(v.t, 10*time.Second, "the pod to have ended", func() error {
		pods, err := v.pods(ctx(v.t))
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if pod.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				return fmt.Errorf("pod %v", pod)
			}
		}
		containers, err := v.list(ctx(v.t), "")
		if err != nil {
			return err
		}
		for _, c := range containers {
			if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING || c.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
				return fmt.Errorf("container %v", c)
			}
		}
		return nil
	})
	for id, now := range v.reported(ctx(v.t)) {
		was := had[id]
		switch {
		case was == nil || was.State == runtimeapi.ContainerState_CONTAINER_CREATED:
		case was.State == runtimeapi.ContainerState_CONTAINER_EXITED:
			if now.ExitCode != was.ExitCode || now.Reason != was.Reason || now.FinishedAt != was.FinishedAt {
				v.t.Errorf("the end of container %s is %v, and was %v", id, now, was)
			}
		case now.State != runtimeapi.ContainerState_CONTAINER_EXITED || now.FinishedAt == 0,
			(now.ExitCode != 137 || now.Reason != "MonitorLost") && !(stopped && (now.ExitCode == 0 || now.ExitCode == 137)):
			v.t.Errorf("container %s ran, and its end is %v", id, now)
		}
	}
}

// nextAttempt is what the kubelet does about a pod that has ended: it ends what is left of it, and makes the next one.
func (v *victim) nextAttempt() {
	v.t.Helper()
	c := ctx(v.t)
	pods, err := v.pods(c)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, pod := range pods {
		v.id = pod.Id
		if err := v.stop(c); err != nil {
			v.t.Fatalf("stopping a pod whose monitor was killed: %v", err)
		}
	}
	v.config.Metadata.Attempt++
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"RunPodSandbox", v.run},
		{"CreateContainer", func(c context.Context) error { return v.create(c, "a") }},
		{"StartContainer", func(c context.Context) error { return v.start(c, "a") }},
	} {
		if err := step.do(c); err != nil {
			v.t.Fatalf("%s of the next attempt: %v", step.name, err)
		}
	}
	reply, err := v.runtime().ContainerStatus(c, &runtimeapi.ContainerStatusRequest{ContainerId: v.containers["a"]})
	if err != nil || reply.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		v.t.Errorf("the next attempt's container is %v, %v", reply.GetStatus(), err)
	}
}
