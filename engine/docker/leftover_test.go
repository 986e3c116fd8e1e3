package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/container"

	"crishim/engine"
)

// waiting runs a shell that waits for its input's end, by another command line. end gives it that, and reaps it.
func waiting(t *testing.T, args ...string) (cmd *exec.Cmd, end func()) {
	t.Helper()
	cmd = exec.Command("/bin/sh")
	cmd.Args = args
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = input.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	// A process is seen without a command line until its exec is over, of which Start sees the beginning.
	for line := []byte(nil); len(line) == 0; {
		if line, err = os.ReadFile(procPath(cmd.Process.Pid, "cmdline")); err != nil {
			t.Fatal(err)
		}
	}
	return cmd, end
}

// A number that is another process's by the time that it is pinned must not end that one.
func TestOnlyTheProcessThatIsMeantIsKilled(t *testing.T) {
	cmd, end := waiting(t, "sh", "-c", "read _; exit 7")
	if err := killIf(cmd.Process.Pid, func() bool { return false }); err != nil {
		t.Error(err)
	}
	other, endOther := waiting(t, "sh", "-c", "read _; exit 7")
	if err := killIf(other.Process.Pid, func() bool { return true }); err != nil {
		t.Error(err)
	}
	if endOther(); other.ProcessState.ExitCode() != -1 {
		t.Errorf("the one that was meant ended with %s", other.ProcessState)
	}
	if err := killIf(other.Process.Pid, func() bool { return false }); err != nil {
		t.Errorf("one that is gone: %v", err)
	}
	if end(); cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("the one that was not meant ended with %s", cmd.ProcessState)
	}
}

func TestAShimIsKnownByItsCommandLine(t *testing.T) {
	for want, args := range map[string][]string{
		testContainer: {"/usr/bin/containerd-shim-runc-v2", "-c", "read _", "-namespace", "moby", "-id", testContainer},
		"":            {"/usr/bin/another", "-c", "read _", "-namespace", "moby", "-id", testContainer},
		"x":           {"containerd-shim", "-c", "read _", "-id", "x"},
	} {
		cmd, _ := waiting(t, args...)
		if got := shimOf(cmd.Process.Pid); got != want {
			t.Errorf("%q is the shim of %q", args, got)
		}
	}
	cmd, _ := waiting(t, "containerd-shim-runc-v2", "-c", "read _", "-id")
	if got := shimOf(cmd.Process.Pid); got != "" {
		t.Errorf("one without an id is the shim of %q", got)
	}
}

// What is removed is named by the container's id: anything else may be a pod's, with what runs in it.
func TestOnlyTheContainersOwnCgroupIsRemoved(t *testing.T) {
	for name, version2 := range map[string]bool{"version 1": false, "version 2": true} {
		root := t.TempDir()
		f := &facts{cgroupDriver: engine.CgroupfsDriver, cgroupRoot: root, cgroupV2: version2}
		made := []string{"/kubepods/pod1", "/kubepods/pod1/" + testContainer + "/below"}
		hierarchies := []string{"", "/memory"}
		if version2 {
			hierarchies = hierarchies[:1]
		}
		for _, hierarchy := range hierarchies {
			for _, cgroup := range made {
				if err := os.MkdirAll(filepath.Join(root, hierarchy, cgroup), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		there := func(cgroup string) (n int) {
			for _, hierarchy := range hierarchies {
				if _, err := os.Stat(filepath.Join(root, hierarchy, cgroup)); err == nil {
					n++
				}
			}
			return n
		}
		removeForgottenCgroups("/kubepods/pod1", testContainer, f)
		removeForgottenCgroups("/kubepods/pod1/"+testContainer, testContainer, &facts{cgroupDriver: engine.SystemdDriver, cgroupRoot: root, cgroupV2: version2})
		if there(made[1]) != len(hierarchies) {
			t.Errorf("%s: what is another's was removed", name)
		}
		removeForgottenCgroups("/kubepods/pod1/"+testContainer, testContainer, f)
		if there("/kubepods/pod1/"+testContainer) != 0 || there(made[0]) != len(hierarchies) {
			t.Errorf("%s: the container's is left, or its pod's is not", name)
		}
	}
}

// A comparison finds what an event was lost for: what is new, what changed, what is gone.
func TestAComparisonFindsWhatNoEventTold(t *testing.T) {
	id := func(digit string) string { return strings.Repeat(digit, 64) }
	summary := func(digit, state string) container.Summary {
		return container.Summary{
			ID: id(digit), State: state, Names: []string{"/k8s_app_web_shop_uid_0"},
			Labels: map[string]string{labelType: typeContainer, labelSandbox: id("f")},
		}
	}
	e := &Engine{}
	e.logs.Store(&logs{e: e})
	e.logs.Load().owed.Store(engine.ContainerID(id("4")), struct{}{})
	w := &watcher{e: e, s: &session{}, dirty: map[string]object{}, seen: map[string]seenObject{
		id("1"): {workload, "running"}, id("2"): {workload, "running"}, id("3"): {sandbox, "running"}, id("4"): {workload, "exited"},
	}}
	w.compare([]container.Summary{summary("1", "running"), summary("2", "exited"), summary("4", "exited"), summary("5", "created")})
	want := map[string]object{id("2"): workload, id("3"): sandbox, id("4"): workload, id("5"): workload}
	for digit := range "123456" {
		one := id(string("123456"[digit]))
		kind, marked := w.dirty[one]
		if wanted, ok := want[one]; ok != marked || kind != wanted {
			t.Errorf("%.1s: to be looked at: %t, as %v", one, marked, kind)
		}
	}
}
