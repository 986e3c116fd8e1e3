package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// faults is a node whose daemon dies, fails or sleeps at the steps that a test names (see internal/failpoint), with a pod
// that must never notice.
type faults struct {
	n           *harness.Node
	file, trace string
	runs        int
	// deaths counts the ends of the daemon while it was to start, or to do again what it had died of.
	deaths    int
	random    *rand.Rand
	bystander *harness.Pod
	chatty    *harness.Chatty
	ip        string
}

func newFaults(t *testing.T) *faults {
	t.Helper()
	return newFaultsOf(t, harness.ShimOptions{Failpoints: true})
}

// newFaultsOf is newFaults with another daemon, which may have no steps.
func newFaultsOf(t *testing.T, daemon harness.ShimOptions) *faults {
	t.Helper()
	harness.Require(t)
	dir := harness.WorkDir(t, "f")
	f := &faults{file: filepath.Join(dir, "steps"), trace: filepath.Join(dir, "trace"), random: rand.New(seed(t))}
	f.arm(t)
	daemon.Env = append(daemon.Env, "CRISHIM_FAILPOINTS="+f.file)
	f.n = harness.NewNode(t, harness.DockerOptions{}, daemon)
	for _, image := range []string{harness.Busybox, harness.Web} {
		f.n.Pull(t, image)
	}
	warmUp(t, f.n)
	f.bystander = f.n.RunPod(t, "bystander", hostPort(18300, 80))
	f.bystander.Run("web", f.n.Registry.Ref(harness.Web), nil)
	f.chatty = f.bystander.RunChatty(f.n.Registry.Ref(harness.Busybox), 100)
	f.ip = f.bystander.IP()
	f.n.Shim.Restart() // all that the daemon keeps of the bystander is written
	return f
}

// seed is E2E_SEED, or a new one that is told.
func seed(t *testing.T) rand.Source {
	t.Helper()
	number := rand.Uint64()
	if text := os.Getenv("E2E_SEED"); text != "" {
		parsed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("E2E_SEED: %v", err)
		}
		number = parsed
	}
	t.Logf("E2E_SEED=%d", number)
	return rand.NewPCG(number, number)
}

// all says that everything is to be walked and nothing left to chance: `make crash`.
func all() bool { return os.Getenv("E2E_CRASH") == "all" }

// few says that a part of what is sampled, and of what is walked otherwise, has to do: the core of an engine's tests.
func few() bool { return os.Getenv("E2E_CRASH") == "few" }

// sample is the numbers below n in any order, or at most so many of them unless all are to be walked.
func (f *faults) sample(n, most int) []int {
	numbers := f.random.Perm(n)
	switch {
	case all():
		return numbers
	case few():
		most = (most + 2) / 3
	}
	return numbers[:min(n, most)]
}

// arm says what happens from now on, on top of a new trace.
func (f *faults) arm(t *testing.T, lines ...string) {
	t.Helper()
	f.runs++
	if err := os.Remove(f.trace); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	text := fmt.Sprintf("# run %d\ntrace=%s\n%s\n", f.runs, f.trace, strings.Join(lines, "\n"))
	if err := os.WriteFile(f.file+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.file+".new", f.file); err != nil {
		t.Fatal(err)
	}
}

// step is the nth hit of a name.
type step struct {
	name string
	nth  int
	// taken says that the daemon did there what it was told to.
	taken bool
}

func (s step) String() string { return s.name + "*" + strconv.Itoa(s.nth) }

// does is the line that has the action happen there.
func (s step) does(action string) string { return s.name + "=" + action + "*" + strconv.Itoa(s.nth) }

// ofItsOwn says that the daemon goes there when it wants to, and not in the course of a call: where log pumps are begun and what they do, what the
// index learnt of an engine's events and writes behind, and what the native engine takes away after the end of a container. Whether a
// process is signalled by the daemon or by Docker, or by one after the other, is a matter of what Docker has told by then.
func (s step) ofItsOwn() bool {
	if strings.HasPrefix(s.name, "logpump/") || strings.Contains(s.name, ".flush.") || strings.HasPrefix(s.name, "file.") {
		return true
	}
	name := strings.TrimSuffix(strings.TrimSuffix(s.name, ".before"), ".after")
	return slices.Contains([]string{
		"log.takeover", "signal", "docker.POST.containers.kill", "native.process.delete", "native.container.uncgroup", "native.container.unstate", "native.container.unpin", "native.container.unmount",
	}, name)
}

// traced are the steps since arm, in order.
func (f *faults) traced(t *testing.T) []step {
	t.Helper()
	data, err := os.ReadFile(f.trace)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var steps []step
	seen := map[string]int{}
	for line := range strings.Lines(string(data)) {
		name, action, _ := strings.Cut(strings.TrimSpace(line), "\t")
		seen[name]++
		if one := (step{name, seen[name], action != ""}); !strings.HasPrefix(name, "logpump/") || name == "logpump/reopened" {
			steps = append(steps, one)
		}
	}
	return steps
}

// distinct leaves out the steps before which nothing has happened since the step before: the same state of the node. What
// happens does so between the .before and the .after of a name, or between the parts of one; the handlers' own steps, whose
// names begin with a call's, are between those.
func distinct(steps []step) []step {
	var kept []step
	for i, s := range steps {
		if i == 0 || !strings.HasSuffix(steps[i-1].name, ".after") && !unicode.IsUpper(rune(steps[i-1].name[0])) {
			kept = append(kept, s)
		}
	}
	return kept
}

// dead waits for the daemon to be gone after a call, as long as a kill takes, and says whether it is. Where the call lost its
// connection, it goes.
func (f *faults) dead(err error) bool {
	if harness.Code(err) == codes.Unavailable {
		return f.deadWithin(20 * time.Second)
	}
	return f.deadWithin(time.Second)
}

func (f *faults) deadWithin(limit time.Duration) bool {
	for end := time.Now().Add(limit); f.n.Shim.Running(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// restart starts the daemon, again where it dies at a step of its start, and disarms what it died of.
func (f *faults) restart(t *testing.T) {
	t.Helper()
	f.n.Shim.StartWithoutWaiting()
	f.ready(t, func() {
		f.deaths++
		f.arm(t)
		f.n.Shim.StartWithoutWaiting()
	})
}

// ready waits until the daemon is ready for pods; died is called where it has ended.
func (f *faults) ready(t *testing.T, died func()) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "the daemon to be ready", func() error {
		if !f.n.Shim.Running() {
			died()
		}
		call, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		reply, err := f.n.Shim.Runtime.Status(call, &runtimeapi.StatusRequest{})
		for _, condition := range reply.GetStatus().GetConditions() {
			if !condition.Status {
				err = fmt.Errorf("%v", condition)
			}
		}
		return err
	})
}

// unharmed checks the pod that must never notice: cheaply, or in whole.
func (f *faults) unharmed(t *testing.T, whole bool) {
	t.Helper()
	reply, err := f.n.Shim.Runtime.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: f.bystander.ID})
	if err != nil || reply.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || reply.Status.Network.GetIp() != f.ip {
		t.Fatalf("the bystander, whose address was %s, is %v, %v", f.ip, reply.GetStatus(), err)
	}
	if !whole {
		return
	}
	f.chatty.CheckSurvived()
	for _, address := range []string{net.JoinHostPort(f.ip, "80"), f.n.CNI.Gateway + ":18300"} {
		if body := httpGet(t, address); body != "host=bystander path=/\n" {
			t.Errorf("the bystander says %q at %s", body, address)
		}
	}
}

// victim is a pod of a test, driven as the kubelet drives one: what failed is done again under the same names.
type victim struct {
	f          *faults
	t          *testing.T
	config     *runtimeapi.PodSandboxConfig
	id         string
	containers map[string]string // name → id
	rotated    int
}

// victim prepares a pod; in the end the node must be as it was.
func (f *faults) victim(t *testing.T) *victim {
	t.Helper()
	f.n.NoLeaks(t)
	v := &victim{f: f, t: t, config: f.n.PodConfig("victim"), containers: map[string]string{}}
	hostPort(18301, 80)(v.config)
	f.n.PreparePod(t, v.config)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		f.arm(t) // what is left must not fail the next ones too
		if !f.n.Shim.Running() {
			f.restart(t)
		}
		v.end()
	})
	return v
}

func (v *victim) runtime() runtimeapi.RuntimeServiceClient { return v.f.n.Shim.Runtime }

func (v *victim) run(c context.Context) error {
	reply, err := v.runtime().RunPodSandbox(c, &runtimeapi.RunPodSandboxRequest{Config: v.config})
	if err == nil {
		v.id = reply.PodSandboxId
	}
	return err
}

// checkRunning: there is one pod, and it works.
func (v *victim) checkRunning(c context.Context) error {
	pods, err := v.pods(c)
	if err != nil {
		return err
	}
	if len(pods) != 1 || pods[0].Id != v.id || pods[0].State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("pods %v, want one ready with id %s", pods, v.id)
	}
	reply, err := v.runtime().PodSandboxStatus(c, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: v.id})
	if err != nil {
		return err
	}
	if reply.Status.Network.GetIp() == "" {
		return fmt.Errorf("the pod has no address")
	}
	if objects := v.f.n.ObjectsOfPod(v.t, v.config.Metadata.Uid); len(objects) != 1 {
		return fmt.Errorf("the engine has %v for one pod", objects)
	}
	return nil
}

// pods are those that are listed for the victim.
func (v *victim) pods(c context.Context) ([]*runtimeapi.PodSandbox, error) {
	reply, err := v.runtime().ListPodSandbox(c, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": v.config.Metadata.Uid}},
	})
	return reply.GetItems(), err
}

func (v *victim) containerConfig(name string) *runtimeapi.ContainerConfig {
	config := (&harness.Pod{ID: v.id, Config: v.config}).ContainerConfig(name, v.f.n.Registry.Ref(harness.Busybox), forever...)
	config.Mounts = []*runtimeapi.Mount{
		{HostPath: v.config.LogDirectory, ContainerPath: "/logs", Readonly: true, RecursiveReadOnly: true},
		{Image: &runtimeapi.ImageSpec{Image: v.f.n.Registry.Ref(harness.Web)}, ContainerPath: "/image", Readonly: true},
	}
	return config
}

func (v *victim) create(c context.Context, name string) error {
	reply, err := v.runtime().CreateContainer(c, &runtimeapi.CreateContainerRequest{
		PodSandboxId: v.id, Config: v.containerConfig(name), SandboxConfig: v.config,
	})
	if err == nil {
		v.containers[name] = reply.ContainerId
	}
	return err
}

// start starts a container; where an earlier call did, that it runs is as good.
func (v *victim) start(c context.Context, name string) error {
	_, err := v.runtime().StartContainer(c, &runtimeapi.StartContainerRequest{ContainerId: v.containers[name]})
	if harness.Code(err) == codes.FailedPrecondition && v.checkContainer(c, name, runtimeapi.ContainerState_CONTAINER_RUNNING) == nil {
		return nil
	}
	return err
}

// checkContainer: there is one container of the name, in the state.
func (v *victim) checkContainer(c context.Context, name string, state runtimeapi.ContainerState) error {
	containers, err := v.list(c, name)
	if err != nil {
		return err
	}
	if len(containers) != 1 || containers[0].Id != v.containers[name] || containers[0].State != state {
		return fmt.Errorf("containers %v, want one %v with id %s", containers, state, v.containers[name])
	}
	return nil
}

// list is the victim's containers of a name, "" for all.
func (v *victim) list(c context.Context, name string) ([]*runtimeapi.Container, error) {
	labels := map[string]string{"io.kubernetes.pod.uid": v.config.Metadata.Uid}
	if name != "" {
		labels["io.kubernetes.container.name"] = name
	}
	reply, err := v.runtime().ListContainers(c, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: labels}})
	return reply.GetContainers(), err
}

func (v *victim) stopContainer(c context.Context, name string) error {
	_, err := v.runtime().StopContainer(c, &runtimeapi.StopContainerRequest{ContainerId: v.containers[name], Timeout: 10})
	return err
}

func (v *victim) removeContainer(c context.Context, name string) error {
	_, err := v.runtime().RemoveContainer(c, &runtimeapi.RemoveContainerRequest{ContainerId: v.containers[name]})
	return err
}

func (v *victim) stop(c context.Context) error {
	_, err := v.runtime().StopPodSandbox(c, &runtimeapi.StopPodSandboxRequest{PodSandboxId: v.id})
	return err
}

func (v *victim) remove(c context.Context) error {
	_, err := v.runtime().RemovePodSandbox(c, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: v.id})
	return err
}

// end removes the pod as a kubelet does that was told of no id: by what is listed.
func (v *victim) end() {
	v.t.Helper()
	c, cancel := context.WithTimeout(context.Background(), time.Minute) // also in a cleanup
	defer cancel()
	pods, err := v.pods(c)
	if err != nil {
		v.t.Errorf("listing the pod at the end: %v", err)
	}
	for _, pod := range pods {
		v.id = pod.Id
		if err := v.stop(c); err != nil {
			v.t.Errorf("stopping what is left of the pod: %v", err)
		}
		if err := v.remove(c); err != nil {
			v.t.Errorf("removing what is left of the pod: %v", err)
		}
	}
}
