package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// earlierCommit is what the daemon is upgraded from and downgraded to: the first that had the native engine. A change that cannot
// live with it needs a new version of the record or of the protocol, and a later commit here.
const earlierCommit = "0a471a69b8e03b46cd4a8550e022828a6952c19f"

// The daemon is upgraded under running pods, and downgraded again: each of the two versions serves what the other one made,
// also what is half-way, monitors included, and takes it away.
//
// Rows: R05 (part), R01 (part)
func TestDaemonIsUpgradedAndDowngradedUnderRunningPods(t *testing.T) {
	harness.Require(t)
	earlier := harness.Earlier(t, earlierCommit)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Binary: earlier})
	waitAnswered(t, n)
	current := n.Shim.Current() // built before any pod waits for it
	busybox := n.Pull(t, harness.Busybox)
	n.Pull(t, harness.Web)
	olds := makeWorkload(t, n, "olds", 18130)
	images := imageIDs(t, n)
	n.Shim.Kill()
	olds.endOne(n)
	n.Shim.Use(current)
	n.Shim.Start()
	if now := imageIDs(t, n); now != images {
		t.Errorf("images %s, before the upgrade %s", now, images)
	}
	olds.checkServed(n)
	agreed(t, n, 10*time.Second)

	news := makeWorkload(t, n, "news", 18131)
	n.Shim.Kill()
	news.endOne(n)
	n.Shim.Use(earlier)
	n.Shim.Start()
	waitAnswered(t, n)
	olds.chatty.CheckSurvived()
	news.checkServed(n)
	olds.later.Stop(10) // made by the later daemon in a pod of the earlier one
	olds.later.Remove()

	n.Shim.Stop()
	n.Shim.Use(current)
	n.Shim.Start()
	for _, w := range []*workload{olds, news} {
		w.chatty.CheckSurvived()
		w.pod.Remove()
	}
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v are left", left)
	}
	n.RunPod(t, "last").Run("c", busybox, forever).WaitLog("ready")
	agreed(t, n, 10*time.Second)
}

// waitAnswered waits until the earlier daemon answers every call: it said that it is ready before.
func waitAnswered(t *testing.T, n *harness.Node) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "the earlier daemon answers", func() error {
		_, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
		return err
	})
}

// workload is a pod with containers in every state, and one whose containers share its processes.
type workload struct {
	t                                       *testing.T
	pod, sharing                            *harness.Pod
	chatty                                  *harness.Chatty
	web, ends, shell, created, shared       *harness.Container
	exited, exitedMeanwhile, removed, later *harness.Container
	port                                    int32
	name                                    string
}

func makeWorkload(t *testing.T, n *harness.Node, name string, port int32) *workload {
	t.Helper()
	busybox := n.Registry.Ref(harness.Busybox)
	w := &workload{t: t, port: port, name: name, pod: n.RunPod(t, name, hostPort(port, 80))}
	onTerm := func(container string, code int) *harness.Container {
		return w.pod.Run(container, busybox, []string{"/bin/testserver", "on-term", fmt.Sprint(code)})
	}
	w.web = w.pod.Run("web", n.Registry.Ref(harness.Web), nil)
	w.chatty = w.pod.RunChatty(busybox, 50)
	w.ends, w.exitedMeanwhile, w.removed = onTerm("ends", 7), onTerm("meanwhile", 8), onTerm("removed", 0)
	w.shell = w.pod.Run("shell", busybox, []string{"sh", "-c", "while read x; do echo got $x; done"}, func(c *runtimeapi.ContainerConfig) {
		c.Stdin, c.StdinOnce = true, true
	})
	w.exited = w.pod.Run("exited", busybox, []string{"sh", "-c", "exit 3"})
	w.exited.WaitExit()
	w.created = w.pod.Create(w.pod.ContainerConfig("created", busybox, forever...))
	w.sharing = n.RunPod(t, name+"-sharing", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	w.shared = w.sharing.Run("shared", busybox, forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	for _, c := range []*harness.Container{w.ends, w.exitedMeanwhile, w.removed, w.shared} {
		c.WaitLog("ready")
	}
	return w
}

// endOne ends a container while no daemon runs.
func (w *workload) endOne(n *harness.Node) {
	w.t.Helper()
	if err := syscall.Kill(n.HostPID(w.t, w.exitedMeanwhile.ID), syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	harness.Eventually(w.t, 20*time.Second, "a container to end without the daemon", func() error {
		if pid := n.HostPID(w.t, w.exitedMeanwhile.ID); pid != 0 {
			return fmt.Errorf("process %d runs", pid)
		}
		return nil
	})
}

// checkServed does with the workload what a kubelet does with pods, by a daemon that did not make it. The pod, its web server and
// what writes its log live on.
func (w *workload) checkServed(n *harness.Node) {
	t := w.t
	t.Helper()
	busybox := n.Registry.Ref(harness.Busybox)
	w.chatty.CheckSurvived()
	if body := httpGet(t, fmt.Sprintf("%s:%d", n.CNI.Gateway, w.port)); body != "host="+w.name+" path=/\n" {
		t.Errorf("the host port says %q", body)
	}
	for c, want := range map[*harness.Container]int32{w.exited: 3, w.exitedMeanwhile: 8} {
		if status := c.WaitExit(); status.ExitCode != want || status.FinishedAt == 0 {
			t.Errorf("container %s: exit code %d, finished at %d; want code %d", c.Config.Metadata.Name, status.ExitCode, status.FinishedAt, want)
		}
	}
	if got := w.chatty.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	var out harness.Buffer
	terminal := harness.Streams{Stdin: strings.NewReader("exit\n"), Stdout: &out, TTY: true}
	if err := harness.StreamSPDY(ctx(t), w.web.ExecURL(terminal, "/bin/testserver", "identity"), terminal); err != nil {
		t.Errorf("exec with a terminal: %v", err)
	}
	var attached harness.Buffer
	streams := harness.Streams{Stdin: strings.NewReader("one\n"), Stdout: &attached}
	if err := harness.StreamSPDY(ctx(t), w.shell.AttachURL(streams), streams); err != nil {
		t.Errorf("attach: %v", err)
	}
	if got := attached.String(); got != "got one\n" {
		t.Errorf("attach says %q", got)
	}
	if status := w.shell.WaitExit(); status.ExitCode != 0 {
		t.Errorf("exit code %d at the end of the input", status.ExitCode)
	}
	if _, err := n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: w.chatty.ID}); err != nil {
		t.Errorf("reopening a log: %v", err)
	}
	w.chatty.CheckSurvived()
	if _, err := n.Shim.Runtime.UpdateContainerResources(ctx(t), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: w.chatty.ID, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20},
	}); err != nil {
		t.Errorf("updating resources: %v", err)
	}
	if limit := w.chatty.Status().GetResources().GetLinux().GetMemoryLimitInBytes(); limit != 64<<20 {
		t.Errorf("the memory limit is %d after the update", limit)
	}
	stats, err := n.Shim.Runtime.ContainerStats(ctx(t), &runtimeapi.ContainerStatsRequest{ContainerId: w.chatty.ID})
	if err != nil || stats.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("statistics %v, %v", stats, err)
	}
	w.created.Start()
	w.created.WaitLog("ready")
	w.later = w.pod.Run("later", busybox, forever)
	w.later.WaitLog("ready")
	w.ends.Stop(10)
	if status := w.ends.WaitExit(); status.ExitCode != 7 {
		t.Errorf("exit code %d, want 7", status.ExitCode)
	}
	w.ends.WaitLog("bye")
	w.removed.Stop(10)
	w.removed.Remove()
	w.exited.Remove()
	if got := w.shared.Output("ls -d /proc/1 && echo alive"); got != "/proc/1\nalive\n" {
		t.Errorf("exec in a pod of shared processes says %q", got)
	}
	w.sharing.Remove()
}

// imageIDs are the images with their names, as one text.
func imageIDs(t *testing.T, n *harness.Node) string {
	t.Helper()
	reply, err := n.Shim.Images.ListImages(ctx(t), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, img := range reply.Images {
		all = append(all, fmt.Sprintln(img.Id, img.RepoTags, img.RepoDigests))
	}
	slices.Sort(all)
	return strings.Join(all, "")
}
