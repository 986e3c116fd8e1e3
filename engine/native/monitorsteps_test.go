//go:build failpoint

package native

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine"
)

// withFailpoints is a bench whose monitors have failpoints. Those of the pods that run already have none.
func withFailpoints(t *testing.T) *bench {
	t.Helper()
	b := serving(t)
	path := filepath.Join(t.TempDir(), "monitor")
	build := exec.Command("go", "build", "-tags", "netgo osusergo seccomp failpoint", "-trimpath",
		"-ldflags", "-s -w -linkmode external -extldflags -static", "-o", path, "../../cmd/monitor")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the helper: %v\n%s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b.program = func(t testing.TB) *os.File { return sealed(t, program) }
	b.die(t)
	b.back(t)
	return b
}

// sealed is a program as package helper makes it.
func sealed(t testing.TB, program []byte) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("crishim-monitor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "crishim-monitor")
	if _, err := f.Write(program); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
	return f
}

// The monitor dies at every step of its own: whatever it had done or not, the pod ends, what ran in it is killed and says so,
// and the pod is removed like every other; another pod notices nothing.
//
// Rows: R03, R11 (part)
func TestTheMonitorDiesAtEveryStepOfItsOwn(t *testing.T) {
	b := withFailpoints(t)
	other, otherSpec := b.runPod(t)
	bystander := b.run(t, other, otherSpec, "c", "sleep 1000")
	a := armMonitors(t)
	steps := learn(t, b, a, 30)
	for _, call := range newLife(t, b).calls() {
		for _, step := range steps[call.name] {
			t.Run(call.name+" at "+step, func(t *testing.T) {
				l := newLife(t, b)
				running := l.untilTheMonitorDies(t, a, call.name, step)
				b.isLost(t, l, running)
				if st := b.status(t, bystander); st.State != engine.ContainerRunning || b.podState(t, other) != engine.PodReady {
					t.Fatalf("another pod's: %+v", st)
				}
				b.onlyLeft(t, other, bystander, l.spec)
			})
		}
	}
	a.set(t)
	b.removePod(t, other)
}

// untilTheMonitorDies lives a life up to the step, which the call comes by, or what goes on in the background after it. It
// returns the processes that ran until then, by container; for one whose end was asked for it is 0.
func (l *life) untilTheMonitorDies(t *testing.T, a armed, name, step string) map[engine.ContainerID]int {
	t.Helper()
	running := map[engine.ContainerID]int{}
	a.set(t)
	reached := false
	for _, call := range l.calls() {
		if call.name == name {
			reached = true
			a.set(t, step+"=kill")
		}
		for _, c := range l.allContainers() {
			if st := l.status(t, c.ID); c.Spec.Pod == l.pod && st.State == engine.ContainerRunning {
				running[c.ID] = st.PID
			}
		}
		if strings.HasPrefix(call.name, "stop") || strings.HasPrefix(call.name, "remove") {
			clear(running)
		}
		err := call.do(t.Context())
		if a.acted() {
			t.Logf("it died in %q, which said: %v", call.name, err)
			a.set(t)
			return running
		}
		if err != nil {
			t.Fatalf("%s: %v", call.name, err)
		}
		if reached {
			time.Sleep(20 * time.Millisecond) // what goes on in the background may come by
		}
	}
	t.Fatalf("the life did not come by %s", step)
	return nil
}

// isLost checks what became of a pod whose monitor has died, and removes it.
func (b *bench) isLost(t *testing.T, l *life, running map[engine.ContainerID]int) {
	t.Helper()
	p, err := b.pod(l.pod)
	if err != nil {
		return // its making failed, or its removal was under way
	}
	eventually(t, 10*time.Second, "the pod has ended", func() bool { return b.podState(t, l.pod) == engine.PodNotReady })
	for id, pid := range running {
		if st := b.exited(t, id); st.ExitCode != codeKilled || st.Reason != reasonMonitorLost || runs(pid) {
			t.Errorf("its process runs: %v, %+v", runs(pid), st)
		}
	}
	eventually(t, 10*time.Second, "nothing runs in the pod", func() bool {
		pids, err := b.cgroups.Processes(p.Cgroup.Path)
		return err == nil && !slices.ContainsFunc(pids, runs)
	})
	for _, c := range b.containersOf(l.pod) {
		if st := b.status(t, c.ID); st.State == engine.ContainerRunning {
			t.Errorf("a container runs without a monitor: %+v", st)
		}
	}
	b.removePod(t, l.pod)
}

// A container ends by itself while the daemon is down, and its monitor dies while it records that: the code is reported where
// it was recorded, else that the monitor was lost.
//
// Rows: R03 (part), R04 (part)
func TestTheMonitorDiesAtEveryStepOfAnExit(t *testing.T) {
	b := withFailpoints(t)
	a := armMonitors(t)
	for step, recorded := range map[string]bool{
		"monitor.exit.record.before": false, "file.exits.written": false, "monitor.exit.record.after": true,
	} {
		t.Run(step, func(t *testing.T) {
			a.set(t)
			pod, spec := b.runPod(t)
			dir := t.TempDir()
			containers := map[string]engine.ContainerID{}
			for _, name := range []string{"ends", "stays"} {
				s := b.containerSpec(t, pod, spec, name, fmt.Sprintf("while [ ! -e /go/%s ]; do sleep 0.05; done; exit 5", name))
				s.Mounts = []engine.Mount{{ContainerPath: "/go", HostPath: dir}}
				st, err := b.CreateContainer(t.Context(), s)
				if err == nil {
					_, err = b.StartContainer(t.Context(), st.ID, s)
				}
				if err != nil {
					t.Fatal(err)
				}
				containers[name] = st.ID
			}
			monitor := b.monitorPID(t, pod)
			b.die(t)
			a.set(t, step+"=kill")
			if err := os.WriteFile(filepath.Join(dir, "ends"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, "the monitor dies", func() bool { return a.acted() && !runs(monitor) })
			a.set(t)
			b.back(t)
			code, reason := int32(codeKilled), reasonMonitorLost
			if recorded {
				code, reason = 5, engine.ReasonError
			}
			if st := b.exited(t, containers["ends"]); st.ExitCode != code || st.Reason != reason {
				t.Errorf("%+v", st)
			}
			if st := b.exited(t, containers["stays"]); st.ExitCode != codeKilled || st.Reason != reasonMonitorLost {
				t.Errorf("%+v", st)
			}
			b.removePod(t, pod)
		})
	}
}
