package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// adoption is a node with the pods of an old shim, which a daemon adopts that dies or fails on the way.
type adoption struct {
	*faults
	old      *harness.OldShim
	pod      *harness.Pod
	host     *harness.Pod
	once     *harness.Container
	attached *harness.Chatty
	ip       string
}

func newAdoption(t *testing.T) *adoption {
	t.Helper()
	dir := harness.WorkDir(t, "f")
	a := &adoption{faults: &faults{file: filepath.Join(dir, "steps"), trace: filepath.Join(dir, "trace"), random: rand.New(seed(t))}, old: harness.NewOldShim(t)}
	a.arm(t)
	a.n = harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Failpoints: true, Env: []string{"CRISHIM_FAILPOINTS=" + a.file}, Settings: a.old.Settings()})
	busybox := a.n.Pull(t, harness.Busybox)
	warmUp(t, a.n)
	a.n.Shim.Stop()
	config := a.n.PodConfig("old")
	hostPort(18310, 80)(config)
	a.pod = a.old.RunPod(t, a.n, config, `{"data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18310}]},"checksum":1}`)
	a.once = a.old.Run(a.pod, a.pod.ContainerConfig("once", busybox, "sh", "-c", "echo once"))
	a.n.Docker.WaitStopped(t, a.once.ID)
	a.attached = harness.WatchChatty(a.old.Run(a.pod, a.pod.ContainerConfig("chatty", busybox, "/bin/testserver", "log", "50")))
	config = a.n.PodConfig("old-host")
	onHostNetwork(config)
	a.host = a.old.RunPod(t, a.n, config, `{"data":{"host_network":true},"checksum":12315789}`)
	t.Cleanup(func() {
		for _, p := range []*harness.Pod{a.pod, a.host} {
			p.Remove()
		}
	})
	return a
}

// unadopt has the pods be the old shim's alone again.
func (a *adoption) unadopt(t *testing.T) {
	t.Helper()
	if a.n.Shim.Running() {
		a.n.Shim.Stop()
	}
	a.n.Shim.Forget()
	for _, c := range []*harness.Container{a.once, a.attached.Container} {
		a.old.Link(c)
	}
}

// check looks whether both pods are served as they are, and their logs have each line once.
func (a *adoption) check(t *testing.T) {
	t.Helper()
	pods, err := a.n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	containers, err := a.n.Shim.Runtime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, p := range pods.Items {
		listed[p.Id] = p.State == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	for _, c := range containers.Containers {
		listed[c.Id] = true
	}
	if want := map[string]bool{a.pod.ID: true, a.host.ID: true, a.once.ID: true, a.attached.ID: true}; !maps.Equal(listed, want) {
		t.Fatalf("listed is %v, want %v", listed, want)
	}
	if ip := a.pod.IP(); ip == "" || a.ip != "" && ip != a.ip {
		t.Fatalf("the pod's address is %q, was %q", ip, a.ip)
	}
}

// checkWhole is check, and that all of it is written down and both logs have each line once.
func (a *adoption) checkWhole(t *testing.T) {
	t.Helper()
	a.check(t)
	for kind, want := range map[string]int{"pods": 2, "containers": 2} {
		if records, err := filepath.Glob(filepath.Join(a.n.Shim.RootDir, "state", kind, "*.json")); err != nil || len(records) != want {
			t.Errorf("records of %s: %v, %v", kind, records, err)
		}
	}
	a.attached.CheckSurvived()
	if lines, err := harness.ReadLog(a.once.Log); err != nil || harness.JoinLog(lines, "stdout") != "once\n" {
		t.Errorf("the log of a container that had ended is %v, %v", lines, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(a.attached.Log)); err != nil || len(entries) != 1 {
		t.Errorf("beside the log are %v, %v", entries, err)
	}
}

// begin starts the daemon and says whether it died, or serves.
func (a *adoption) begin(t *testing.T) (died bool) {
	t.Helper()
	a.n.Shim.StartWithoutWaiting()
	harness.Eventually(t, time.Minute, "the daemon to serve or to die", func() error {
		if died = !a.n.Shim.Running(); died {
			return nil
		}
		_, err := a.n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
		return err
	})
	return died
}

// R29: the daemon dies before and after each step of the adoption of another shim's pods, or the step fails. The next start
// finishes it: nothing is lost, no line of a log is there twice, and no container notices.
//
// Rows: R29 (part), R01 (part)
func TestAnAdoptionDiesOrFailsAtEachStep(t *testing.T) {
	harness.AboutDocker(t)
	harness.Require(t)
	a := newAdoption(t)
	a.unadopt(t)
	a.arm(t)
	if a.begin(t) {
		t.Fatalf("the daemon died:\n%s", a.n.Shim.LogTail())
	}
	a.ip = a.pod.IP()
	a.checkWhole(t)
	traced := a.traced(t)
	steps := distinct(traced)
	t.Logf("an adoption has the steps %v", steps)
	for _, name := range []string{"netns.pin.before", "log.takeover.before", "state.pod.update.before", "state.container.update.before"} {
		if !slices.ContainsFunc(traced, func(s step) bool { return strings.HasPrefix(s.name, name) }) {
			t.Errorf("an adoption has no step %s", name)
		}
	}
	for _, action := range []string{"kill", "error"} {
		for _, i := range a.sample(len(steps), 8) {
			t.Run(fmt.Sprintf("%s at %v", action, steps[i]), func(t *testing.T) {
				a.unadopt(t)
				a.arm(t, steps[i].does(action))
				died := a.begin(t)
				if action == "kill" && !died && !steps[i].ofItsOwn() {
					died = a.deadWithin(5 * time.Second)
				}
				if !died && action == "error" {
					a.check(t) // also with what could not be written down
				}
				a.arm(t)
				if !died {
					a.n.Shim.Stop()
				}
				if a.begin(t) {
					t.Fatalf("the second start died:\n%s", a.n.Shim.LogTail())
				}
				a.checkWhole(t)
			})
		}
	}
}
