package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

// ownNode is a node that the test may break, checked for leaks, but of the kinds in except, at its end.
func ownNode(t *testing.T, docker harness.DockerOptions, except ...string) *harness.Node {
	t.Helper()
	n := newNode(t, docker)
	n.NoLeaks(t, except...)
	return n
}

// newNode is a warm one, for who checks it for leaks after a warm-up of its own.
func newNode(t *testing.T, docker harness.DockerOptions) *harness.Node {
	return newNodeWith(t, docker, nil)
}

// newNodeWith is newNode with some settings of the daemon.
func newNodeWith(t *testing.T, docker harness.DockerOptions, settings map[string]any) *harness.Node {
	t.Helper()
	harness.Require(t)
	n := harness.NewNode(t, docker, harness.ShimOptions{Settings: settings})
	n.Pull(t, harness.Busybox)
	n.Pull(t, harness.Web)
	warmUp(t, n)
	return n
}

// R01: pods live through the end of the daemon, whichever end it is.
//
// Rows: R01 (part)
func TestPodsLiveThroughTheEndOfTheDaemon(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "live", hostPort(18080, 80))
	pod.Run("web", n.Registry.Ref(harness.Web), nil)
	chatty := pod.RunChatty(n.Registry.Ref(harness.Busybox), 200)
	ip := pod.IP()
	for name, end := range map[string]func(){"SIGTERM": n.Shim.Stop, "kill -9": n.Shim.Kill} {
		t.Run(name, func(t *testing.T) {
			end()
			if body := httpGet(t, net.JoinHostPort(ip, "80")); body != "host=live path=/\n" {
				t.Errorf("without the daemon the web server says %q", body)
			}
			n.Shim.Start()
			chatty.CheckSurvived()
			if now := pod.IP(); now != ip {
				t.Errorf("address %s became %s", ip, now)
			}
			if state := pod.Status().State; state != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Errorf("the pod is %v", state)
			}
			if got := chatty.Output("echo hello"); got != "hello\n" {
				t.Errorf("exec says %q", got)
			}
			if body := httpGet(t, n.CNI.Gateway+":18080"); body != "host=live path=/\n" {
				t.Errorf("the host port says %q", body)
			}
		})
	}
}

// A container writes all that it has to say while there is no daemon, which holds it up as little as it loses or doubles of that.
//
// Rows: R29
func TestWhatIsWrittenWithoutTheDaemonIsInTheLog(t *testing.T) {
	n := node(t)
	lines := rowsize.Of(100_000, 2_000_000)
	script := fmt.Sprintf("echo ready; sleep 3; seq 1 %d; exec sleep 1000000", lines)
	c := n.RunPod(t, "talks").Run("c", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", script})
	c.WaitLog("ready")
	pid := n.HostPID(t, c.ID)
	n.Shim.Kill()
	harness.Eventually(t, 5*time.Minute, "it to have said everything", func() error {
		if command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.HasSuffix(string(command), "sleep\x001000000\x00") {
			return fmt.Errorf("it is %q, %v", command, err)
		}
		return nil
	})
	n.Shim.Start()
	var want strings.Builder
	want.WriteString("ready\n")
	for i := range lines {
		fmt.Fprintln(&want, i+1)
	}
	harness.Eventually(t, 5*time.Minute, "the log to be whole", func() error {
		entries, err := harness.ReadLog(c.Log)
		if err != nil {
			return err
		}
		if got := harness.JoinLog(entries, "stdout"); got != want.String() {
			return fmt.Errorf("it has %d bytes of %d, or others", len(got), want.Len())
		}
		return nil
	})
}

// R04: an exit is seen, once and exactly, also when the daemon is down at that moment.
//
// Rows: R04
func TestExitsWhileTheDaemonIsDownAreReported(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "exits-down")
	var containers []*harness.Container
	for code := range rowsize.Of(4, 256) {
		containers = append(containers, pod.Run(fmt.Sprintf("exit-%d", code), n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "on-term", fmt.Sprint(code)}))
	}
	oom := pod.Run("oom", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "echo ready; sleep 2; exec testserver alloc 200"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = 32<<20, 32<<20
	})
	killed := pod.Run("killed", n.Registry.Ref(harness.Busybox), forever)
	for _, c := range append(containers, killed) {
		c.WaitLog("ready")
	}
	oom.WaitLog("ready")
	n.Shim.Kill()
	down := time.Now()
	for _, c := range containers {
		if err := syscall.Kill(n.HostPID(t, c.ID), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(n.HostPID(t, killed.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, time.Minute, "all containers to end without the daemon", func() error {
		for _, c := range append(containers, oom, killed) {
			if n.HostPID(t, c.ID) != 0 {
				return fmt.Errorf("%s runs", c.Config.Metadata.Name)
			}
		}
		return nil
	})
	up := time.Now()
	n.Shim.Start()
	for code, c := range containers {
		status := c.WaitExit()
		if status.ExitCode != int32(code) {
			t.Errorf("exit code %d, want %d", status.ExitCode, code)
		}
		if at := time.Unix(0, status.FinishedAt); at.Before(down.Add(-time.Second)) || at.After(up.Add(time.Second)) {
			t.Errorf("finished at %v, not between %v and %v", at, down, up)
		}
		c.WaitLog("bye")
	}
	if status := killed.WaitExit(); status.ExitCode != 137 || status.Reason != "Error" {
		t.Errorf("killed: exit code %d, reason %q", status.ExitCode, status.Reason)
	}
	if status := oom.WaitExit(); status.Reason != "OOMKilled" {
		t.Errorf("reason %q, exit code %d; want OOMKilled", status.Reason, status.ExitCode)
	}
}

// R01: a bad record never keeps the daemon from starting, nor other pods from being served.
//
// Rows: R21 (part)
func TestBadRecordsDoNotStopTheDaemon(t *testing.T) {
	n := ownNode(t, harness.DockerOptions{}, "file") // bad records are kept aside
	pod := n.RunPod(t, "records")
	good := pod.Run("good", n.Registry.Ref(harness.Busybox), forever)
	n.Shim.Stop()
	for _, dir := range recordDirs(t, n.Shim.RootDir) {
		for name, content := range map[string]string{"bad.json": "{", "empty.json": "", "future.json": `{"version": 999}`} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.Shim.Start()
	if got := good.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	pod.Remove()
}

// recordDirs are the folders that hold records now.
func recordDirs(t *testing.T, root string) []string {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".json" && !slices.Contains(dirs, filepath.Dir(path)) {
			dirs = append(dirs, filepath.Dir(path))
		}
		return err
	})
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no record under %s: %v", root, err)
	}
	return dirs
}

// R06: with live-restore, containers live through the death of dockerd; while it is away nothing false is said.
//
// Rows: R06
func TestDockerdDiesWithLiveRestore(t *testing.T) {
	harness.AboutDocker(t)
	n := ownNode(t, harness.DockerOptions{LiveRestore: true})
	pod := n.RunPod(t, "restore")
	chatty := pod.RunChatty(n.Registry.Ref(harness.Busybox), 100)
	other := pod.Run("other", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "on-term", "6"})
	other.WaitLog("ready")
	pid := n.HostPID(t, other.ID)
	pods := []*harness.Pod{pod}
	var quiet []*harness.Container
	for range rowsize.Of(1, 99) {
		beside := n.RunPod(t, "beside")
		pods, quiet = append(pods, beside), append(quiet, beside.Run("quiet", n.Registry.Ref(harness.Busybox), forever))
	}
	outages := make([]time.Duration, rowsize.Of(1, 20))
	if len(outages) > 2 {
		outages[1], outages[2] = 10*time.Second, 2*time.Minute
	}
	for i, outage := range outages {
		n.Docker.Kill()
		checkAway(t, n, "EngineUnavailable", len(quiet)+2, len(pods))
		if i == 0 {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil { // ends while nobody looks
				t.Fatal(err)
			}
		}
		time.Sleep(outage)
		n.Docker.Start()
		began := time.Now()
		n.Shim.WaitReady()
		if took := time.Since(began); took > rowsize.Of(30*time.Second, 2*time.Second) {
			t.Errorf("dockerd was back for %v before it was seen", took)
		}
		chatty.CheckSurvived()
		if status := other.WaitExit(); status.ExitCode != 6 {
			t.Errorf("exit code %d of the container that ended meanwhile, want 6", status.ExitCode)
		}
		for _, c := range quiet {
			if status := c.Status(); status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("a container beside is %v", status)
			}
		}
	}
	for _, pod := range pods {
		pod.Remove()
	}
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v were not given back", left)
	}
}

// checkAway checks what is said while dockerd is away: RuntimeReady=false with the reason; Lists whole or Unavailable, promptly;
// calls that need the engine Unavailable. A dockerd that hangs is away only once it was waited for.
func checkAway(t *testing.T, n *harness.Node, reason string, containers, pods int) {
	t.Helper()
	harness.Eventually(t, time.Minute, "RuntimeReady=false", func() error {
		reply, err := n.Shim.Runtime.Status(ctx(t), &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		condition := "RuntimeReady"
		if n.Shim.Both() {
			condition = "EngineReady/docker" // the other engine keeps the node ready
		}
		for _, c := range reply.Status.Conditions {
			if c.Type == condition && (c.Status || c.Reason != reason || c.Message == "") {
				return fmt.Errorf("condition %v", c)
			}
		}
		return nil
	})
	for name, call := range map[string]func(context.Context) (int, error){
		"ListContainers": func(c context.Context) (int, error) {
			reply, err := n.Shim.Runtime.ListContainers(c, &runtimeapi.ListContainersRequest{})
			return len(reply.GetContainers()) - containers, err
		},
		"ListPodSandbox": func(c context.Context) (int, error) {
			reply, err := n.Shim.Runtime.ListPodSandbox(c, &runtimeapi.ListPodSandboxRequest{})
			return len(reply.GetItems()) - pods, err
		},
	} {
		began := time.Now()
		more, err := call(ctx(t))
		if took := time.Since(began); took > promptly() {
			t.Errorf("%s took %v with dockerd away", name, took)
		}
		if err != nil {
			wantCode(t, name+" with dockerd away", err, codes.Unavailable)
		} else if more != 0 {
			t.Errorf("%s leaves something out with dockerd away", name)
		}
	}
	began := time.Now()
	_, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Registry.Ref(harness.Small)}})
	wantCode(t, "PullImage with dockerd away", err, codes.Unavailable)
	if took := time.Since(began); took > promptly() {
		t.Errorf("PullImage took %v with dockerd away", took)
	}
}

// R07: without live-restore a restart of dockerd ends all containers: they are reported, and the pods' addresses come back.
//
// Rows: R07
func TestDockerdRestartsWithoutLiveRestore(t *testing.T) {
	harness.AboutDocker(t)
	n := ownNode(t, harness.DockerOptions{})
	for range rowsize.Of(1, 20) {
		restartWithoutLiveRestore(t, n)
	}
}

func restartWithoutLiveRestore(t *testing.T, n *harness.Node) {
	t.Helper()
	pod := n.RunPod(t, "norestore", hostPort(18081, 80))
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "on-term", "5"})
	c.WaitLog("ready")
	n.Docker.Restart()
	n.Shim.WaitReady()
	if status := c.WaitExit(); status.ExitCode != 5 {
		t.Errorf("exit code %d, want 5", status.ExitCode)
	}
	harness.Eventually(t, 10*time.Second, "the pod to be not ready", func() error {
		if state := pod.Status().State; state != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			return fmt.Errorf("it is %v", state)
		}
		return nil
	})
	c.WaitLog("bye")
	pod.Remove()
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v were not given back", left)
	}
	// The next attempt of the pod works, on the same host port.
	again := n.RunPod(t, "norestore", hostPort(18081, 80))
	again.Run("web", n.Registry.Ref(harness.Web), nil)
	if body := httpGet(t, n.CNI.Gateway+":18081"); body != "host=norestore path=/\n" {
		t.Errorf("the host port says %q", body)
	}
	again.Remove()
}

// R08: a dockerd that hangs hangs nobody.
//
// Rows: R08
func TestDockerdHangs(t *testing.T) {
	harness.AboutDocker(t)
	n := ownNode(t, harness.DockerOptions{})
	pod := n.RunPod(t, "hang")
	chatty := pod.RunChatty(n.Registry.Ref(harness.Busybox), 10)
	n.Docker.Pause()
	defer n.Docker.Resume()
	calls := map[string]func(context.Context) error{
		"PodSandboxStatus": func(c context.Context) error {
			_, err := n.Shim.Runtime.PodSandboxStatus(c, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID})
			return err
		},
	}
	maps.Copy(calls, questions(n))
	for name, call := range calls {
		began := time.Now()
		err := call(ctx(t))
		if took := time.Since(began); took > promptly() {
			t.Errorf("%s took %v with dockerd stopped", name, took)
		}
		if err != nil && harness.Code(err) != codes.Unavailable {
			t.Errorf("%s with dockerd stopped: %v", name, err)
		}
	}

	checkAway(t, n, "EngineNotResponding", 1, 1)
	listsAreQuick(t, n) // of what runs as its processes show
	config := n.PodConfig("refused")
	n.PreparePod(t, config)
	for name, call := range map[string]func(context.Context) error{
		"RunPodSandbox": func(c context.Context) error {
			_, err := n.Shim.Runtime.RunPodSandbox(c, &runtimeapi.RunPodSandboxRequest{Config: config})
			return err
		},
		"CreateContainer": func(context.Context) error {
			_, err := pod.TryCreate(pod.ContainerConfig("refused", n.Registry.Ref(harness.Busybox), forever...))
			return err
		},
		"ExecSync": func(c context.Context) error {
			_, err := n.Shim.Runtime.ExecSync(c, &runtimeapi.ExecSyncRequest{ContainerId: chatty.ID, Cmd: []string{"true"}})
			return err
		},
		"StopContainer": func(c context.Context) error {
			_, err := n.Shim.Runtime.StopContainer(c, &runtimeapi.StopContainerRequest{ContainerId: chatty.ID})
			return err
		},
	} {
		began := time.Now()
		wantCode(t, name+" with a dockerd that hangs", call(ctx(t)), codes.Unavailable)
		if took := time.Since(began); took > promptly() {
			t.Errorf("%s took %v with a dockerd that hangs", name, took)
		}
	}

	n.Docker.Resume()
	n.Shim.WaitReady()
	chatty.CheckSurvived()
	if got := chatty.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	if of, err := n.Docker.Containers(); err != nil || len(of) != 2 {
		t.Errorf("dockerd has %v, %v; want the pod and its container", of, err)
	}
	pod.Remove()
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v were not given back", left)
	}
}

// Rows: S67 (part)
func TestContainerRemovedBehindOurBackIsGone(t *testing.T) {
	harness.AboutDocker(t)
	n := node(t)
	pod := n.RunPod(t, "behind")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	n.Docker.Delete("/containers/" + c.ID + "?force=1")
	harness.Eventually(t, 30*time.Second, "the container to be gone or exited", func() error {
		reply, err := n.Shim.Runtime.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
		if harness.Code(err) == codes.NotFound || err == nil && reply.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return nil
		}
		return fmt.Errorf("%v, %v", reply, err)
	})
	n.Docker.Delete("/containers/" + pod.ID + "?force=1")
	harness.Eventually(t, 30*time.Second, "the pod to be gone or not ready", func() error {
		reply, err := n.Shim.Runtime.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID})
		if harness.Code(err) == codes.NotFound || err == nil && reply.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			return nil
		}
		return fmt.Errorf("%v, %v", reply, err)
	})
}

// After a reboot nothing runs: pods are not ready, their containers have ended, and the next attempt runs beside what is left,
// which is removed with its addresses.
//
// Rows: R24 (part)
func TestReboot(t *testing.T) {
	for round := range rowsize.Of(1, 50) {
		t.Run(fmt.Sprint(round), aReboot)
	}
}

func aReboot(t *testing.T) {
	n := ownNode(t, harness.DockerOptions{})
	clear(warm) // the rules that a first pod makes go
	busybox := n.Registry.Ref(harness.Busybox)
	pod := n.RunPod(t, "before", hostPort(18080, 80))
	chatty := pod.RunChatty(busybox, 50)
	ended := pod.Run("ended", busybox, []string{"sh", "-c", "exit 3"})
	ended.WaitExit()
	created := pod.Create(pod.ContainerConfig("created", busybox, forever...))
	n.Reboot(t, nil)
	if status := pod.Status(); status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", status.State)
	}
	if status := chatty.Status(); status.State != runtimeapi.ContainerState_CONTAINER_EXITED || status.ExitCode == 0 || status.FinishedAt == 0 {
		t.Errorf("what ran is %v", status)
	}
	if status := ended.Status(); status.State != runtimeapi.ContainerState_CONTAINER_EXITED || status.ExitCode != 3 {
		t.Errorf("what had ended is %v", status)
	}
	if _, err := n.Shim.Runtime.StartContainer(ctx(t), &runtimeapi.StartContainerRequest{ContainerId: created.ID}); err == nil {
		t.Error("a container starts in a pod that has ended")
	}
	next := n.RunPod(t, "before", hostPort(18080, 80), func(c *runtimeapi.PodSandboxConfig) {
		c.Metadata.Uid, c.Metadata.Attempt = pod.Config.Metadata.Uid, 1
	})
	next.Run("web", n.Registry.Ref(harness.Web), nil)
	pod.Remove()
	chatty.CheckLog()
	if left := n.CNI.Addresses(); len(left) != 1 || left[0] != next.IP() {
		t.Errorf("addresses %v, want %s alone", left, next.IP())
	}
	for _, address := range []string{net.JoinHostPort(next.IP(), "80"), n.CNI.Gateway + ":18080"} {
		if body := httpGet(t, address); body != "host=before path=/\n" {
			t.Errorf("the next attempt says %q at %s", body, address)
		}
	}
	agreed(t, n, 10*time.Second)
}
