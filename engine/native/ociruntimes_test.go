package native

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/enginetest"
)

// runcBench is an engine with a handler whose containers Debian's runc makes.
func runcBench(t *testing.T) *bench {
	t.Helper()
	program, err := exec.LookPath("/usr/sbin/runc")
	if err != nil {
		t.Skip("no runc (apt-get install runc)")
	}
	return newBench(t, func(o *Options) { o.Runtimes = map[string]string{"runc": program, "gone": "/nonexistent/runtime"} })
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
