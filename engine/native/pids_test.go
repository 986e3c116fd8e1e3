package native

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// The end of a container takes all of its processes, and none of another that sees the same PIDs.
//
// Rows: S60
func TestPIDNamespacesEndAlone(t *testing.T) {
	b := serving(t)
	const script = "sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &); while :; do sleep 1; done"
	for _, of := range []engine.NamespaceMode{engine.NamespaceContainer, engine.NamespacePod, engine.NamespaceNode} {
		t.Run(string(of), func(t *testing.T) {
			pod, spec := b.runPod(t, func(s *engine.PodSpec) { s.Namespaces.PID = of })
			var ids []engine.ContainerID
			var groups []string
			start := func(name string, change func(*engine.ContainerSpec)) {
				t.Helper()
				s := b.containerSpec(t, pod, spec, name, script)
				change(s)
				st, err := b.CreateContainer(t.Context(), s)
				if err != nil {
					t.Fatal(err)
				}
				if st, err = b.StartContainer(t.Context(), st.ID, s); err != nil {
					t.Fatal(err)
				}
				ids, groups = append(ids, st.ID), append(groups, st.CgroupPath)
			}
			count := func(i int) int {
				pids, err := b.Engine.cgroups.Processes(groups[i])
				if err != nil && !errdefs.IsNotFound(err) {
					t.Fatal(err)
				}
				return len(pids)
			}
			start("a", func(*engine.ContainerSpec) {})
			start("b", func(*engine.ContainerSpec) {})
			start("target", func(s *engine.ContainerSpec) {
				s.Namespaces.PID, s.Namespaces.PIDTarget = engine.NamespaceTarget, ids[0]
			})
			for i := range ids {
				eventually(t, 10*time.Second, "its processes run", func() bool { return count(i) >= 5 })
			}
			// The one that looks into another ends first, then the one that was looked into.
			for _, i := range []int{2, 0} {
				if err := b.StopContainer(t.Context(), ids[i], 0); err != nil {
					t.Fatal(err)
				}
				eventually(t, 10*time.Second, "nothing of it is left", func() bool { return count(i) == 0 })
				for _, other := range []int{0, 1} {
					if other < i && (count(other) < 5 || b.status(t, ids[other]).State != engine.ContainerRunning) {
						t.Errorf("the end of %d took processes of %d: %d are left", i, other, count(other))
					}
				}
			}
			if count(1) < 5 || b.status(t, ids[1]).State != engine.ContainerRunning {
				t.Errorf("the neighbour has %d processes", count(1))
			}
			b.removePod(t, pod)
			if n := count(1); n != 0 {
				t.Errorf("%d processes outlive the pod", n)
			}
		})
	}
}

// A process that holds a pod's namespaces is made only where the pod shares its PIDs: the others are pinned by mounts.
func TestAPodHasAPauseProcessOnlyWhereItSharesItsPIDs(t *testing.T) {
	b := serving(t)
	inside := func(netns string) (pids int) {
		ns, err := os.Stat(netns)
		if err != nil {
			t.Fatal(err)
		}
		processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
		if err != nil || len(processes) == 0 {
			t.Fatal(processes, err)
		}
		for _, p := range processes {
			if of, err := os.Stat(p); err == nil && os.SameFile(ns, of) { // others end meanwhile
				pids++
			}
		}
		return pids
	}
	for want, change := range []func(*engine.PodSpec){func(*engine.PodSpec) {}, sharedPIDs} {
		pod, _ := b.runPod(t, change)
		st, err := b.PodStatus(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		if got := inside(st.NetNSPath); got != want || (st.PID != 0) != (want != 0) {
			t.Errorf("a pod without containers has %d processes, want %d; its status names process %d", got, want, st.PID)
		}
		b.removePod(t, pod)
	}
}
