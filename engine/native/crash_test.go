//go:build failpoint

package native

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"crishim/engine"
	"crishim/internal/rowsize"
)

// victim is what the process that dies is told.
type victim struct {
	Opts  Options
	Image string
	Spec  engine.PodSpec
}

const victimEnv = "CRISHIM_NATIVE_VICTIM"

// TestVictim is the daemon that dies, in a process of its own.
func TestVictim(t *testing.T) {
	if os.Getenv(victimEnv) == "" {
		t.Skip("it is run by TestTheDaemonIsKilledAtEveryStep")
	}
	var v victim
	if err := json.Unmarshal([]byte(os.Getenv(victimEnv)), &v); err != nil {
		t.Fatal(err)
	}
	b := &bench{opts: v.Opts, image: v.Image}
	b.back(t)
	l := newLife(t, b)
	l.spec = &v.Spec
	for _, call := range l.calls() {
		fmt.Println("call", call.name)
		if err := call.do(t.Context()); err != nil {
			t.Fatalf("%s: %v", call.name, err)
		}
	}
}

// The daemon is killed at every step of every call: the next finds what there is, goes on with it, and removes all of it;
// another pod notices nothing.
//
// Rows: R01, R11 (part), R21 (part)
func TestTheDaemonIsKilledAtEveryStep(t *testing.T) {
	b := serving(t)
	a := arm(t)
	steps := learn(t, b, a, 60)
	a.set(t)
	other, otherSpec := b.runPod(t)
	bystander := b.run(t, other, otherSpec, "c", "sleep 1000")
	pid := b.status(t, bystander).PID
	b.die(t)
	var all []string
	for _, one := range steps {
		all = append(all, one...)
	}
	slices.Sort(all)
	times := rowsize.Of(1, 3)
	for _, step := range slices.Compact(all) {
		// Each time that the life comes by it, up to a few.
		for nth := 1; nth <= times; nth++ {
			died := false
			t.Run(fmt.Sprintf("%s %d", step, nth), func(t *testing.T) {
				spec := b.podSpec(t, sharedPIDs, func(s *engine.PodSpec) { s.CgroupParent = "" })
				a.set(t, fmt.Sprintf("%s=kill*%d", step, nth))
				said := b.live(t, spec, &died)
				a.set(t)
				b.back(t)
				defer b.die(t)
				if st := b.status(t, bystander); st.State != engine.ContainerRunning || st.PID != pid || b.podState(t, other) != engine.PodReady {
					t.Fatalf("another pod's: %+v", st)
				}
				for _, p := range b.allPods() {
					if p.ID == other {
						continue
					}
					if !died {
						t.Errorf("a life that nothing happened to left pod %s", p.ID)
					}
					b.goOn(t, p.ID, said)
					b.removePod(t, p.ID)
					if _, err := os.Stat(filepath.Join("/sys/fs/cgroup/memory", p.Cgroup.Path)); !os.IsNotExist(err) {
						t.Errorf("the pod's cgroup: %v", err)
					}
				}
				b.onlyLeft(t, other, bystander, spec)
			})
			if !died {
				break
			}
		}
	}
	b.back(t)
	b.removePod(t, other)
}

// live runs a life in a process of its own, which dies where it is armed to, and returns the name of the last call.
func (b *bench) live(t *testing.T, spec *engine.PodSpec, died *bool) string {
	t.Helper()
	data, err := json.Marshal(victim{b.opts, b.image, *spec})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestVictim$", "-test.v")
	cmd.Env = append(os.Environ(), victimEnv+"="+string(data), "TMPDIR="+t.TempDir()) // what it leaves goes with this test
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status, _ := exit.Sys().(syscall.WaitStatus)
		*died = status.Signaled() && status.Signal() == syscall.SIGKILL
	}
	if err != nil && !*died {
		t.Fatalf("the life ended otherwise: %v\n%s", err, out)
	}
	i := bytes.LastIndex(out, []byte("call "))
	if i < 0 {
		return ""
	}
	name, _, _ := strings.Cut(string(out[i+len("call "):]), "\n")
	return name
}

// goOn uses what is found after the crash.
func (b *bench) goOn(t *testing.T, pod engine.PodID, call string) {
	t.Helper()
	ready := b.podState(t, pod) == engine.PodReady
	if want := call != "run pod" && call != "stop pod" && call != "release" && call != "remove pod"; want && !ready {
		t.Errorf("killed in %q, and the pod is not ready", call)
	}
	if !ready {
		return
	}
	for _, c := range b.containersOf(pod) {
		st := b.status(t, c.ID)
		if st.State == engine.ContainerCreated && c.Upper != "" && call != "remove a" {
			if _, err := b.StartContainer(t.Context(), c.ID, nil); err != nil && !strings.HasPrefix(call, "create") && call != "stop pod" {
				t.Errorf("killed in %q, then start: %v", call, err)
			}
			st = b.status(t, c.ID)
		}
		if st.State == engine.ContainerRunning {
			b.sh(t, c.ID, "true")
			if err := b.UpdateContainer(t.Context(), c.ID, &engine.Resources{CPUShares: 99}); err != nil {
				t.Error(err)
			}
			if err := b.StopContainer(t.Context(), c.ID, 10*time.Second); err != nil {
				t.Error(err)
			}
			if st := b.status(t, c.ID); st.State != engine.ContainerExited {
				t.Errorf("%+v", st)
			}
		}
	}
}

// onlyLeft checks that our folders have nothing but one pod and container, and no monitor of the victim runs.
func (b *bench) onlyLeft(t *testing.T, pod engine.PodID, c engine.ContainerID, spec *engine.PodSpec) {
	t.Helper()
	known := []string{string(pod), string(c)}
	for _, sub := range []string{
		"run/monitors", "run/bundles", "run/runc", "run/ns", "run/roots/containers", "run/roots/pods", "run/records/pods", "run/records/containers",
		"root/pods", "root/records", "root/exits", "root/roots/containers",
	} {
		entries, err := os.ReadDir(filepath.Join(b.dir, sub))
		if err != nil {
			t.Error(err)
		}
		for _, entry := range entries {
			if !slices.Contains(known, entry.Name()) {
				t.Errorf("left behind: %s/%s", sub, entry.Name())
			}
		}
	}
	eventually(t, 30*time.Second, "the victim's monitors have ended", func() bool {
		return !slices.ContainsFunc(processes(t, "crishim-monitor"), func(pid int) bool {
			data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			return bytes.Contains(data, []byte(spec.Key.Namespace+"/"+spec.Key.Name+"\x00"))
		})
	})
}
