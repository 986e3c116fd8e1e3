package native

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/enginetest"
)

// runcBench is an engine with a handler whose containers Debian's runc makes.
func runcBench(t *testing.T, change ...func(*Options)) *bench {
	t.Helper()
	program, err := exec.LookPath("/usr/sbin/runc")
	if err != nil {
		t.Skip("no runc (apt-get install runc)")
	}
	runtimes := func(o *Options) { o.Runtimes = map[string]string{"runc": program, "gone": "/nonexistent/runtime"} }
	return newBench(t, append([]func(*Options){runtimes}, change...)...)
}

func withRunc(s *engine.PodSpec) { s.Handler = "runc" }

func TestNativeContractWithAnOCIRuntime(t *testing.T) {
	b := runcBench(t)
	enginetest.Run(t, func(t *testing.T) enginetest.Fixture {
		return enginetest.Fixture{
			Engine: b.Engine, Image: b.image, Commands: enginetest.ShellCommands(), CgroupParent: testCgroup, RealProcesses: true, Handler: "runc",
			Resources: func(t *testing.T, id engine.ContainerID) engine.Resources {
				return limitsInEffect(t, b.host.CgroupV2, b.status(t, id).CgroupPath, linearWeight)
			},
		}
	})
}

// linearWeight is how OCI runtimes of before 2025 make cgroup v2's weight of CPU shares.
func linearWeight(shares uint64) uint64 { return 1 + (shares-2)*9999/262142 }

func TestTheHandlersRuntimeMakesTheContainers(t *testing.T) {
	b := runcBench(t)
	b.serve(t)
	pod, s := b.runPod(t, withRunc, sharedPIDs)
	id := b.run(t, pod, s, "a", "trap exit TERM; while :; do sleep 1; done")
	list, err := exec.Command("/usr/sbin/runc", "--root", b.ociRoot()+"/"+string(id)+"/state", "list", "-q").Output()
	if err != nil || strings.TrimSpace(string(list)) != string(id) {
		t.Errorf("runc has %q, %v", list, err)
	}
	// The daemon goes and comes back, as with the engine's own.
	b.die(t)
	b.back(t)
	if out := b.sh(t, id, "echo here"); out != "here\n" {
		t.Errorf("exec: %q", out)
	}
	for _, limits := range []engine.Resources{{MemoryLimit: 64 << 20, MemorySwap: 64 << 20, CPUQuota: 20_000, CPUPeriod: 100_000}, {}} {
		if err := b.UpdateContainer(t.Context(), id, &limits); err != nil {
			t.Fatal(err)
		}
		got := limitsInEffect(t, b.host.CgroupV2, b.status(t, id).CgroupPath)
		if limited := limits.MemoryLimit != 0; limited != (got.MemoryLimit == 64<<20) || limited != (got.CPUQuota == 20_000) {
			t.Errorf("asked for %+v, got %+v", limits, got)
		}
	}
	// The monitor goes, and the container with it.
	kill(t, b.monitorPID(t, pod))
	if st := b.exited(t, id); st.ExitCode != 137 || st.Reason != reasonMonitorLost {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
}

// refusingRunc is a bench whose runc fails with words where its arguments match a pattern of sh's.
func refusingRunc(t *testing.T, pattern, words string) *bench {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in %s) echo %q >&2; exit 1;; esac\nexec /usr/sbin/runc \"$@\"\n", pattern, words)
	program := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	b := runcBench(t, func(o *Options) { o.Runtimes["runc"] = program })
	b.serve(t)
	return b
}

// What cannot be told to end, as an AppArmor profile lets no signal in or its runtime sends none, is killed all the same
// once its time is up.
func TestAContainerThatTakesNoStopSignalIsKilled(t *testing.T) {
	b := refusingRunc(t, `*" kill "*" 15 "`, "permission denied")
	pod, s := b.runPod(t, withRunc)
	id := b.run(t, pod, s, "a", "sleep 1000")
	if err := b.StopContainer(t.Context(), id, 100*time.Millisecond); err != nil {
		t.Error(err)
	}
	if st := b.status(t, id); st.State != engine.ContainerExited || st.ExitCode != 137 {
		t.Errorf("it is %s, exit code %d", st.State, st.ExitCode)
	}
	b.removePod(t, pod)
}

// A program that fails to remove a container, each time, keeps its pod from ending for some tries, and not for ever.
func TestAPodWhoseOCIRuntimeRemovesNothingEnds(t *testing.T) {
	b := refusingRunc(t, `*" delete "*`, "it cannot be removed")
	pod, s := b.runPod(t, withRunc)
	b.run(t, pod, s, "a", "sleep 1000")
	eventually(t, 20*time.Second, "the pod ends", func() bool { return b.StopPod(t.Context(), pod) == nil })
	b.removePod(t, pod)
}

// A program that is gone, as when its package was removed or has moved it, keeps no container and no pod from ending.
func TestAPodWhoseOCIRuntimeIsGoneEnds(t *testing.T) {
	program := filepath.Join(t.TempDir(), "runtime")
	b := runcBench(t, func(o *Options) { o.Runtimes["runc"] = program })
	b.serve(t)
	for name, end := range map[string]func(engine.PodID, engine.ContainerID) error{
		"the container first": func(_ engine.PodID, id engine.ContainerID) error {
			return errors.Join(b.StopContainer(t.Context(), id, 100*time.Millisecond), b.RemoveContainer(t.Context(), id))
		},
		"at once": func(pod engine.PodID, _ engine.ContainerID) error { return b.StopPod(t.Context(), pod) },
		"after its monitor": func(pod engine.PodID, id engine.ContainerID) error {
			kill(t, b.monitorPID(t, pod))
			b.exited(t, id)
			return b.StopPod(t.Context(), pod)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(program, []byte("#!/bin/sh\nexec /usr/sbin/runc \"$@\"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			pod, s := b.runPod(t, withRunc)
			id := b.run(t, pod, s, "a", "sleep 1000")
			group := b.containers[id].Cgroup.Path
			if err := os.Remove(program); err != nil {
				t.Fatal(err)
			}
			if err := end(pod, id); err != nil {
				t.Error(err)
			}
			if pids, err := b.cgroups.Processes(group); err != nil || len(pids) != 0 {
				t.Errorf("there run %v, %v", pids, err)
			}
			b.removePod(t, pod)
		})
	}
}

// What one call of the program logs is told of that call, whatever others run beside it.
func TestExecsByAnOCIRuntimeThatFailAtOnceSayWhy(t *testing.T) {
	b := runcBench(t)
	b.serve(t)
	pod, s := b.runPod(t, withRunc)
	id := b.run(t, pod, s, "a", "sleep 1000")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				code, err := b.Exec(t.Context(), id, &engine.ExecSpec{Command: []string{"nope"}})
				if code != 127 || err == nil || !strings.Contains(err.Error(), `"nope"`) {
					t.Errorf("exit code %d, %v", code, err)
				}
			}
		})
	}
	all.Wait()
	b.removePod(t, pod)
}

// A runc of before 1.2 mounts its own program in its folder for the moment of a start: killed in that moment it leaves the mount there,
// with which the container is removed all the same.
//
// Rows: R03 (part)
func TestWhatAKilledOCIRuntimeLeftMountedKeepsNoContainer(t *testing.T) {
	b := runcBench(t)
	b.serve(t)
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	leave := func(t *testing.T, dir string) {
		t.Helper()
		at := filepath.Join(dir, "runc.left")
		err := os.WriteFile(at, nil, 0o600)
		if err == nil {
			err = unix.Mount(program, at, "", unix.MS_BIND, "")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, lost := range map[string]bool{"by its monitor": false, "after its monitor": true} {
		t.Run(name, func(t *testing.T) {
			pod, s := b.runPod(t, withRunc)
			id := b.run(t, pod, s, "a", "sleep 1000")
			leave(t, filepath.Join(b.ociRoot(), string(id), "state"))
			if lost {
				kill(t, b.monitorPID(t, pod))
				b.exited(t, id)
			}
			if err := b.RemoveContainer(t.Context(), id); err != nil {
				t.Error(err)
			}
			b.removePod(t, pod)
		})
	}
	t.Run("at the start", func(t *testing.T) {
		nobodys := filepath.Join(b.ociRoot(), newID(), "state")
		b.die(t)
		if err := os.MkdirAll(nobodys, 0o700); err != nil {
			t.Fatal(err)
		}
		leave(t, nobodys)
		b.back(t)
		if _, err := os.Stat(nobodys); !os.IsNotExist(err) {
			t.Errorf("it is there still: %v", err)
		}
	})
	if _, err := os.Stat(program); err != nil {
		t.Error(err)
	}
}

// A process in a pod of a user namespace opens its own output by name, as images do with the files of their logs.
//
// Rows: S61 (part)
func TestStdioInAUserNamespaceByAnOCIRuntime(t *testing.T) {
	ran := false
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			program, err := exec.LookPath(name)
			if err != nil {
				t.Skip("no " + name)
			}
			b := newBench(t, func(o *Options) { o.Runtimes = map[string]string{name: program} })
			if !b.Info().Features.UserNamespaces {
				t.Skip("this host has no user namespaces for pods")
			}
			if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.controllers"); err == nil && name == "crun" {
				t.Skip("crun runs on no host with both versions of cgroups")
			}
			ran = true
			b.serve(t)
			maps := []engine.IDMapping{{ContainerID: 0, HostID: 200000, Length: 65536}}
			pod, s := b.runPod(t, func(s *engine.PodSpec) {
				s.Handler, s.Namespaces.User = name, &engine.UserNamespace{UIDs: maps, GIDs: maps}
			})
			const script = "echo out >/dev/stdout && echo err >/dev/stderr && cat /proc/self/uid_map"
			for user, uid := range map[string]int64{"root": 0, "user": 1000} {
				spec := b.containerSpec(t, pod, s, user, script+" && exec sleep 1000")
				spec.Security.UID = &uid
				st, err := b.CreateContainer(t.Context(), spec)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := b.StartContainer(t.Context(), st.ID, spec); err != nil {
					t.Fatal(err)
				}
				var log string
				eventually(t, 20*time.Second, user+" has written all", func() bool {
					data, _ := os.ReadFile(spec.LogPath)
					log = string(data)
					return strings.Contains(log, " 65536") || b.status(t, st.ID).State == engine.ContainerExited
				})
				for _, want := range []string{"stdout F out\n", "stderr F err\n", " 200000 "} {
					if !strings.Contains(log, want) {
						t.Errorf("%s: the log has no %q:\n%s", user, want, log)
					}
				}
				out := strings.Fields(b.sh(t, st.ID, script))
				slices.Sort(out) // the streams are not in order with each other
				if !slices.Equal(out, []string{"0", "200000", "65536", "err", "out"}) {
					t.Errorf("%s: exec: %q", user, out)
				}
			}
			b.removePod(t, pod)
		})
	}
	if !ran {
		t.Skip("no OCI runtime could be tried")
	}
}

// The daemon starts also where what a runtime has left behind holds its output.
func TestAnOCIRuntimeWhoseChildHoldsItsOutput(t *testing.T) {
	dir := t.TempDir()
	program, pidFile := filepath.Join(dir, "runtime"), filepath.Join(dir, "pid")
	script := "#!/bin/sh\nsleep 60 &\necho $! > " + pidFile + "\n" + `echo '{"ociVersionMin":"1.0.0","mountOptions":["ro","rro"]}'` + "\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(o *Options) { o.Runtimes = map[string]string{"odd": program} })
	if all := b.Info().Handlers; all["odd"].RecursiveReadonlyMounts != all[""].RecursiveReadonlyMounts {
		t.Errorf("what it said before its end does not count: %+v", all)
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Errorf("the daemon waited until the child had ended: %v", err)
	}
}

func TestAHandlerWhoseRuntimeIsNotThere(t *testing.T) {
	b := runcBench(t)
	b.serve(t)
	if features, ok := b.Info().Handlers["gone"]; !ok || features.UserNamespaces {
		t.Errorf("handlers %v", b.Info().Handlers)
	}
	for handler, is := range map[string]func(error) bool{"gone": errdefs.IsFailedPrecondition, "unknown": errdefs.IsFailedPrecondition} {
		pod, s := b.runPod(t, func(s *engine.PodSpec) { s.Handler = handler })
		spec := b.containerSpec(t, pod, s, "a", "true")
		st, err := b.CreateContainer(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.StartContainer(t.Context(), st.ID, spec); !is(err) {
			t.Errorf("%s: %v", handler, err)
		}
		if state := b.status(t, st.ID).State; state != engine.ContainerCreated {
			t.Errorf("%s: it is %s", handler, state)
		}
		b.removePod(t, pod)
	}
}
