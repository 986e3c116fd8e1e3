//go:build failpoint

package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/monitor"
	"crishim/internal/failpoint"
)

// life is a pod's, in the order of its calls. Each is made again where an earlier try failed.
type life struct {
	*bench
	t    *testing.T
	pod  engine.PodID
	spec *engine.PodSpec
	ids  map[string]engine.ContainerID
}

type lifeCall struct {
	name string
	do   func(context.Context) error
}

func newLife(t *testing.T, b *bench) *life {
	return &life{bench: b, t: t, spec: b.podSpec(t, sharedPIDs, func(s *engine.PodSpec) { s.CgroupParent = "" }), ids: map[string]engine.ContainerID{}}
}

const lifeScript = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

func (l *life) calls() []lifeCall {
	create := func(name string) lifeCall {
		return lifeCall{"create " + name, func(ctx context.Context) error {
			st, err := l.CreateContainer(ctx, l.containerSpec(l.t, l.pod, l.spec, name, lifeScript))
			l.ids[name] = st.ID
			return err
		}}
	}
	start := func(name string) lifeCall {
		return lifeCall{"start " + name, func(ctx context.Context) error {
			_, err := l.StartContainer(ctx, l.ids[name], nil)
			return err
		}}
	}
	return []lifeCall{
		{"run pod", func(ctx context.Context) error {
			id, err := l.CreatePod(ctx, l.spec)
			if err != nil {
				return err
			}
			l.pod = id
			if _, err = l.StartPod(ctx, id, l.spec); err != nil {
				err = errors.Join(err, l.StopPod(ctx, id), l.ReleaseNetNS(ctx, id), l.RemovePod(ctx, id))
			}
			return err
		}},
		create("a"), start("a"),
		{"update a", func(ctx context.Context) error {
			return l.UpdateContainer(ctx, l.ids["a"], &engine.Resources{CPUShares: 77, MemoryLimit: 64 << 20, OOMScoreAdj: 500})
		}},
		{"update pod", func(ctx context.Context) error {
			return l.UpdatePod(ctx, l.pod, nil, &engine.Resources{CPUShares: 512})
		}},
		{"reopen a", func(ctx context.Context) error { return l.ReopenLog(ctx, l.ids["a"]) }},
		{"exec in a", func(ctx context.Context) error {
			_, err := l.Exec(ctx, l.ids["a"], &engine.ExecSpec{Command: []string{"true"}})
			return err
		}},
		{"stop a", func(ctx context.Context) error {
			err := l.StopContainer(ctx, l.ids["a"], 0)
			// What the process had goes in the background, unless that fails.
			for deadline := time.Now().Add(time.Second); err == nil && l.roots.Present(l.ids["a"]) && time.Now().Before(deadline); {
				time.Sleep(5 * time.Millisecond)
			}
			return err
		}},
		{"remove a", func(ctx context.Context) error { return l.RemoveContainer(ctx, l.ids["a"]) }},
		create("b"), start("b"), create("c"),
		{"stop pod", func(ctx context.Context) error { return l.StopPod(ctx, l.pod) }},
		{"release", func(ctx context.Context) error { return l.ReleaseNetNS(ctx, l.pod) }},
		{"remove pod", func(ctx context.Context) error { return l.RemovePod(ctx, l.pod) }},
	}
}

// armed is the file of failpoints and the trace of steps, of which those with the prefix are looked at.
type armed struct{ file, trace, prefix string }

// arm is for the engine's own steps, armMonitors for those of the monitors that are started from now on.
func arm(t *testing.T) armed         { return armBy(t, failpoint.EnvFile, "native.") }
func armMonitors(t *testing.T) armed { return armBy(t, failpoint.HelperEnvFile, "monitor.") }

func armBy(t *testing.T, variable, prefix string) armed {
	a := armed{filepath.Join(t.TempDir(), "failpoints"), filepath.Join(t.TempDir(), "trace"), prefix}
	t.Setenv(variable, a.file)
	return a
}

// set says what happens from now on; the trace begins anew.
func (a armed) set(t *testing.T, lines ...string) {
	t.Helper()
	_ = os.Remove(a.trace)
	text := fmt.Sprintf("# %d\ntrace=%s\n%s\n", time.Now().UnixNano(), a.trace, strings.Join(lines, "\n"))
	if err := os.WriteFile(a.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// steps are those that were hit, each once.
func (a armed) steps() (steps []string) {
	data, _ := os.ReadFile(a.trace)
	for line := range strings.Lines(string(data)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if strings.HasPrefix(name, a.prefix) && !slices.Contains(steps, name) {
			steps = append(steps, name)
		}
	}
	return steps
}

// acted says whether a step was hit at which something happens.
func (a armed) acted() bool {
	data, _ := os.ReadFile(a.trace)
	return strings.Contains(string(data), "\t")
}

// learn lives a life in which nothing happens, with so many steps at least.
func learn(t *testing.T, b *bench, a armed, least int) (steps map[string][]string) {
	t.Helper()
	steps = map[string][]string{}
	l := newLife(t, b)
	total := 0
	for _, call := range l.calls() {
		a.set(t)
		if err := call.do(t.Context()); err != nil {
			t.Fatalf("%s: %v", call.name, err)
		}
		steps[call.name] = a.steps()
		total += len(steps[call.name])
		t.Logf("%s: %v", call.name, steps[call.name])
	}
	if total < least {
		t.Fatalf("only %d steps have failpoints", total)
	}
	return steps
}

// Every step of every call fails, before or after it was made: the call says so, and made again it succeeds; in the end
// nothing is left.
//
// Rows: R11 (part)
func TestEveryStepFailsOnce(t *testing.T) {
	b := serving(t)
	a := arm(t)
	steps := learn(t, b, a, 60)
	other, otherSpec := b.runPod(t)
	bystander := b.run(t, other, otherSpec, "c", "sleep 1000")
	for i := range longest(steps) {
		l := newLife(t, b)
		for _, call := range l.calls() {
			a.set(t)
			if i < len(steps[call.name]) {
				step := steps[call.name][i]
				a.set(t, step+"=error*1")
				err := call.do(t.Context())
				if err != nil && !strings.Contains(err.Error(), step) {
					t.Errorf("%s, failing at %s: %v", call.name, step, err)
				}
				if err == nil && !background(step) {
					t.Errorf("%s did not fail at %s", call.name, step)
				}
				a.set(t)
				if err == nil {
					continue
				}
			}
			if err := call.do(t.Context()); err != nil {
				t.Fatalf("%s, after it failed once at %v: %v", call.name, at(steps[call.name], i), err)
			}
		}
		if st := b.status(t, bystander); st.State != engine.ContainerRunning {
			t.Fatalf("another pod's: %+v", st)
		}
	}
	a.set(t)
	b.removePod(t, other)
}

// background says whether a step may be made where nobody waits for it, or is none that the call depends on.
func background(step string) bool {
	return strings.Contains(step, ".record.") || strings.HasPrefix(step, "native.process.delete") || strings.HasPrefix(step, "native.container.un")
}

func at(steps []string, i int) string {
	if i < len(steps) {
		return steps[i]
	}
	return "no step"
}

func longest(steps map[string][]string) (n int) {
	for _, s := range steps {
		n = max(n, len(s))
	}
	return n
}

// The monitor is killed at every step of every call: the pod ends and is removed like every other.
//
// Rows: R03 (part), R11 (part)
func TestTheMonitorIsKilledAtEveryStep(t *testing.T) {
	b := serving(t)
	a := arm(t)
	steps := learn(t, b, a, 60)
	other, otherSpec := b.runPod(t)
	bystander := b.run(t, other, otherSpec, "c", "sleep 1000")
	for name, all := range steps {
		for _, step := range all {
			t.Run(name+" at "+step, func(t *testing.T) {
				l := newLife(t, b)
				killed := false
				for _, call := range l.calls() {
					if call.name != name {
						if err := call.do(t.Context()); err != nil {
							if !killed {
								t.Fatalf("%s: %v", call.name, err)
							}
							continue
						}
						continue
					}
					a.set(t, step+"=sleep:200ms*1")
					done := make(chan error, 1)
					go func() { done <- call.do(t.Context()) }()
					var err error
					for returned := false; !returned && !slices.Contains(a.steps(), step); {
						select {
						case err = <-done: // the step was made before, in the background
							returned = true
							done <- err
						case <-time.After(2 * time.Millisecond):
						}
					}
					killed = b.killMonitorsOf(l.spec)
					err = <-done
					a.set(t)
					t.Logf("killed: %v; the call: %v", killed, err)
					if err != nil && name == "run pod" {
						l.pod = ""
					}
					break
				}
				if _, err := b.pod(l.pod); l.pod != "" && err == nil {
					if killed {
						eventually(t, 10*time.Second, "the pod has ended", func() bool { return b.podState(t, l.pod) == engine.PodNotReady })
					}
					b.removePod(t, l.pod)
				}
				if st := b.status(t, bystander); st.State != engine.ContainerRunning {
					t.Fatalf("another pod's: %+v", st)
				}
			})
		}
	}
	a.set(t)
	b.removePod(t, other)
}

// killMonitorsOf kills the monitor of a pod by its name.
func (b *bench) killMonitorsOf(s *engine.PodSpec) (killed bool) {
	records, _ := filepath.Glob(filepath.Join(b.opts.RunDir, "monitors", "*", monitor.RecordName))
	for _, path := range records {
		record, err := monitor.ReadRecord(filepath.Dir(path))
		if err == nil && record.Pod == s.Key.Namespace+"/"+s.Key.Name && runs(record.PID) {
			killed = unix.Kill(record.PID, unix.SIGKILL) == nil || killed
		}
	}
	return killed
}
