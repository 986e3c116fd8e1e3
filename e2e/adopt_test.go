package e2e

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// asker gets a page again and again.
type asker struct {
	address, want string
	stop          chan struct{}
	done          sync.WaitGroup
	asked         int
	failures      []string
}

func ask(t *testing.T, address, want string) *asker {
	t.Helper()
	return askEvery(t, 20*time.Millisecond, address, want)
}

func askEvery(t *testing.T, pace time.Duration, address, want string) *asker {
	t.Helper()
	if got := httpGet(t, address); got != want {
		t.Fatalf("%s says %q", address, got)
	}
	a := &asker{address: address, want: want, stop: make(chan struct{})}
	a.done.Go(func() {
		for {
			select {
			case <-a.stop:
				return
			case <-time.After(pace):
			}
			a.asked++
			if got, err := tryGet(address); err != nil || got != want {
				a.failures = append(a.failures, fmt.Sprintf("%q, %v", got, err))
			}
		}
	})
	return a
}

func (a *asker) check(t *testing.T) {
	t.Helper()
	close(a.stop)
	a.done.Wait()
	if len(a.failures) > 0 || a.asked == 0 {
		t.Errorf("%d of %d requests to %s failed: %v", len(a.failures), a.asked, a.address, a.failures)
	}
}

// kubenetRules are what dockershim, with kubenet, made for a host port: see Kubernetes' hostport_manager.go.
func kubenetRules(id, pod string, hostPort int, target string) string {
	sum := sha256.Sum256([]byte(id + strconv.Itoa(hostPort) + "TCP"))
	chain := "KUBE-HP-" + base32.StdEncoding.EncodeToString(sum[:])[:16]
	return fmt.Sprintf(`*nat
:KUBE-HOSTPORTS - [0:0]
:%[1]s - [0:0]
-A PREROUTING -m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS
-A OUTPUT -m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS
-A KUBE-HOSTPORTS -m comment --comment "%[2]s_e2e hostport %[3]d" -m tcp -p tcp --dport %[3]d -j %[1]s
-A %[1]s -m comment --comment "%[2]s_e2e hostport %[3]d" -m tcp -p tcp -j DNAT --to-destination %[4]s
COMMIT
`, chain, pod, hostPort, target)
}

// recovered waits until the daemon answers every call: Status comes before.
func recovered(t *testing.T, n *harness.Node) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "the daemon to have recovered", func() error {
		_, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
		return err
	})
}

// The pods of cri-dockerd go on under crishim: the same containers, addresses, host ports, attempts and logs, and nothing of
// them is left when they are removed, where cri-dockerd leaves rules of host ports that dockershim had made.
//
// Rows: S67 (part), R29 (part)
func TestPodsOfAnotherShimAreAdopted(t *testing.T) {
	harness.AboutDocker(t)
	harness.Require(t)
	old := harness.NewOldShim(t)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Settings: old.Settings()})
	busybox, web := n.Pull(t, harness.Busybox), n.Pull(t, harness.Web)
	foreignImage := n.Pull(t, harness.Entrypoint)
	warmUp(t, n)
	n.NoLeaks(t)
	n.Shim.Stop()

	config := n.PodConfig("web")
	hostPort(18080, 80)(config)
	config.Annotations["note"] = "kept as it is"
	pod := old.RunPod(t, n, config, `{"data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18080}]},"checksum":2344035810}`)
	init := old.Run(pod, pod.ContainerConfig("init", busybox, "sh", "-c", "echo made ready"))
	n.Docker.WaitStopped(t, init.ID)
	first := old.Run(pod, pod.ContainerConfig("chatty", busybox, "sh", "-c", "echo failing; exit 3"))
	n.Docker.WaitStopped(t, first.ID)
	chatty := harness.WatchChatty(old.Run(pod, pod.Attempt(1, pod.ContainerConfig("chatty", busybox, "/bin/testserver", "log", "100"))))
	server := old.Run(pod, pod.ContainerConfig("server", web, "/bin/testserver", "http", ":80"))
	echoes := old.Run(pod, pod.ContainerConfig("echo", busybox, "/bin/testserver", "tcp", "127.0.0.1:7"))
	reading := pod.ContainerConfig("reader", busybox, "sh", "-c", "while read x; do echo got $x; done")
	reading.Stdin, reading.StdinOnce = true, true
	reader := old.Run(pod, reading)
	terminal := pod.ContainerConfig("terminal", busybox, "/bin/testserver", "log", "20")
	terminal.Tty = true
	tty := harness.WatchChatty(old.Run(pod, terminal))

	config = n.PodConfig("host")
	onHostNetwork(config)
	host := old.RunPod(t, n, config, `{"data":{"host_network":true},"checksum":12315789}`)
	onHost := old.Run(host, host.ContainerConfig("c", busybox, forever...))

	// Its process has ended; its address and its rules are there. Its checkpoint is damaged.
	config = n.PodConfig("ended")
	hostPort(18081, 80)(config)
	ended := old.RunPod(t, n, config, `{"data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18081}]},"checksum":1}`)
	restore := exec.Command("iptables-restore", "--noflush")
	restore.Stdin = strings.NewReader(kubenetRules(ended.ID, "ended", 18081, n.CNI.Subnet+".250:80"))
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n.Docker.Post("/containers/" + ended.ID + "/kill")
	n.Docker.WaitStopped(t, ended.ID)

	// Neither its checkpoint nor its results are there any more.
	bare := old.RunPod(t, n, n.PodConfig("bare"), "")
	inBare := old.Run(bare, bare.ContainerConfig("c", busybox, forever...))
	for _, file := range old.Left() {
		if strings.Contains(file, bare.ID) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}

	// Somebody removed its container: its checkpoint, its address and its rules are there.
	config = n.PodConfig("pruned")
	pruned := old.RunPod(t, n, config, `{"data":{},"checksum":2305795928}`)
	n.Docker.Delete("/containers/" + pruned.ID + "?force=1&v=1")

	foreign := strings.TrimSpace(n.Docker.CLI(t, "run", "-d", "--network", "none", "--name", "backup", foreignImage, "sleep", "1000"))
	t.Cleanup(func() { n.Docker.Delete("/containers/" + foreign + "?force=1&v=1") })
	state := func(id string) string {
		return strings.TrimSpace(n.Docker.CLI(t, "inspect", "-f", "{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}", id))
	}
	before := map[string]string{}
	for _, id := range []string{pod.ID, init.ID, first.ID, chatty.ID, server.ID, echoes.ID, reader.ID, tty.ID, host.ID, onHost.ID, ended.ID, bare.ID, inBare.ID, foreign} {
		before[id] = state(id)
	}
	files := old.Left()
	requests := ask(t, "127.0.0.1:18080", "host=web path=/\n")

	from := n.Shim.LogSize()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log since the adoption:\n%s", n.Shim.LogFrom(from))
		}
	})
	told := checkPreflight(t, n, old, map[string]string{pod.ID: "keep", host.ID: "keep", bare.ID: "keep", ended.ID: "collect"})
	checkObserver(t, n, map[string]string{pod.ID: told[pod.ID], bare.ID: ""}, chatty.Log)
	for id, was := range before {
		if now := state(id); now != was {
			t.Errorf("by looking at it, container %s became %q, was %q", id, now, was)
		}
	}
	if left := old.Left(); !slices.Equal(left, files) {
		t.Errorf("by looking at them, the old shim's files became %v, were %v", left, files)
	}
	n.Shim.Start()
	t.Cleanup(func() {
		for _, p := range []*harness.Pod{pod, host, ended, bare, pruned} {
			p.Remove()
		}
	})
	recovered(t, n)
	checkAdopted := func(when string) {
		t.Helper()
		pods, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		containers, err := n.Shim.Runtime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		listed := map[string]bool{foreign: true} // it is not, see below
		for _, p := range pods.Items {
			listed[p.Id] = true
		}
		for _, c := range containers.Containers {
			listed[c.Id] = true
		}
		status := pruned.Status()
		if status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || status.Metadata.Name != "pruned" || status.Metadata.Namespace != "e2e" {
			t.Errorf("%s the pod whose container was removed is %v", when, status)
		}
		delete(listed, pruned.ID)
		if want := slices.Sorted(maps.Keys(before)); !slices.Equal(slices.Sorted(maps.Keys(listed)), want) || len(pods.Items)+len(containers.Containers) != len(want) {
			t.Errorf("%s %d pods and %d containers are listed: %v, want %v", when, len(pods.Items), len(containers.Containers), slices.Sorted(maps.Keys(listed)), want)
		}
		for id, was := range before {
			if now := state(id); now != was {
				t.Errorf("%s container %s was %q and is %q", when, id, was, now)
			}
		}
		for _, p := range []*harness.Pod{pod, host, bare, ended} {
			status := p.Status()
			ready := status.State == runtimeapi.PodSandboxState_SANDBOX_READY
			if ready != (p != ended) || !maps.Equal(status.Labels, p.Config.Labels) || !maps.Equal(status.Annotations, p.Config.Annotations) || status.Metadata.String() != p.Config.Metadata.String() {
				t.Errorf("%s pod %s is %v", when, p.Config.Metadata.Name, status)
			}
			if ip := status.GetNetwork().GetIp(); ready && (p == host) != (ip == "") || ip != "" && !strings.HasPrefix(ip, n.CNI.Subnet+".") {
				t.Errorf("%s pod %s has the address %q", when, p.Config.Metadata.Name, ip)
			}
		}
		for c, want := range map[*harness.Container]runtimeapi.ContainerState{
			init: runtimeapi.ContainerState_CONTAINER_EXITED, first: runtimeapi.ContainerState_CONTAINER_EXITED, server: runtimeapi.ContainerState_CONTAINER_RUNNING,
			chatty.Container: runtimeapi.ContainerState_CONTAINER_RUNNING, onHost: runtimeapi.ContainerState_CONTAINER_RUNNING,
		} {
			status := c.Status()
			if status.State != want || !maps.Equal(status.Labels, c.Config.Labels) || !maps.Equal(status.Annotations, c.Config.Annotations) ||
				status.Metadata.String() != c.Config.Metadata.String() || status.LogPath != c.Log {
				t.Errorf("%s container %s is %v", when, c.Config.Metadata.Name, status)
			}
		}
		if status := first.Status(); status.ExitCode != 3 || status.Reason != "Error" {
			t.Errorf("%s the first attempt ended with %d, %s", when, status.ExitCode, status.Reason)
		}
		chatty.CheckSurvived()
		tty.CheckSurvived()
		first.WaitLines(1)
		for c, want := range map[*harness.Container]string{init: "made ready\n", first: "failing\n"} {
			if lines, err := harness.ReadLog(c.Log); err != nil || harness.JoinLog(lines, "stdout") != want {
				t.Errorf("%s the log of %s is %v, %v", when, c.Config.Metadata.Name, lines, err)
			}
		}
	}
	checkAdopted("after the adoption")
	if left := old.Left(); !slices.Equal(left, files) {
		t.Errorf("the old shim's files were %v and are %v", files, left)
	}
	// The old shim is not ended yet, and makes another one.
	config = n.PodConfig("late")
	hostPort(18082, 80)(config)
	late := old.RunPod(t, n, config, `{"data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18082}]},"checksum":1}`)
	t.Cleanup(func() { late.Remove() })
	inLate := harness.WatchChatty(old.Run(late, late.ContainerConfig("chatty", busybox, "/bin/testserver", "log", "20")))
	harness.Eventually(t, time.Minute, "the pod of the old shim to be adopted", func() error {
		r, err := n.Shim.Runtime.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: late.ID})
		if err == nil && r.Status.GetNetwork().GetIp() == "" {
			err = fmt.Errorf("it is %v", r.Status)
		}
		return err
	})
	harness.Eventually(t, time.Minute, "its container to be adopted, and its log carried over", func() error {
		info, err := os.Lstat(inLate.Log)
		if err != nil {
			return err
		}
		r, err := n.Shim.Runtime.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: inLate.ID})
		if err == nil && (!info.Mode().IsRegular() || r.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING) {
			err = fmt.Errorf("the log is %v, the container %v", info.Mode(), r.Status)
		}
		return err
	})
	inLate.CheckSurvived()
	for _, id := range []string{late.ID, inLate.ID} {
		before[id] = state(id)
	}
	n.Shim.KillAndRestart()
	recovered(t, n)
	checkAdopted("after kill -9")
	n.Shim.Restart()
	recovered(t, n)
	checkAdopted("after a restart")
	inLate.CheckSurvived()

	// Whatever is asked of a pod of our own.
	if out := server.Output("cat /proc/1/cmdline | tr '\\0' ' '"); out != "/bin/testserver http :80 " {
		t.Errorf("exec: %q", out)
	}
	forward, err := harness.ForwardSPDY(pod.PortForwardURL(7), 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := echo(forward, "hello"); err != nil {
		t.Error(err)
	}
	forward.End()
	var stdout harness.Buffer
	streams := harness.Streams{Stdin: strings.NewReader("one\n"), Stdout: &stdout}
	if err := harness.StreamSPDY(ctx(t), reader.AttachURL(streams), streams); err != nil || stdout.String() != "got one\n" {
		t.Errorf("attach says %q, %v", stdout.String(), err)
	}
	reader.WaitExit()
	stats, err := n.Shim.Runtime.ContainerStats(ctx(t), &runtimeapi.ContainerStatsRequest{ContainerId: chatty.ID})
	if err != nil || stats.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || stats.Stats.GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("statistics: %v, %v", stats, err)
	}
	podStats, err := n.Shim.Runtime.PodSandboxStats(ctx(t), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod.ID})
	if err != nil || podStats.Stats.GetLinux().GetNetwork().GetDefaultInterface().GetRxBytes().GetValue() == 0 {
		t.Errorf("statistics of the pod: %v, %v", podStats, err)
	}
	if _, err := n.Shim.Images.RemoveImage(ctx(t), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: foreignImage}}); harness.Code(err) == codes.OK {
		t.Error("the image of somebody else's container was removed")
	}

	// The log is rotated, and the next attempt is made as in a pod of our own.
	if err := os.Rename(chatty.Log, chatty.Log+".20240101-000000"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: chatty.ID}); err != nil {
		t.Error(err)
	}
	chatty.WaitLines(2)
	chatty.Stop(1)
	chatty.Remove()
	if err := os.RemoveAll(filepath.Dir(chatty.Log)); err != nil {
		t.Fatal(err)
	}
	next := pod.Create(pod.Attempt(2, pod.ContainerConfig("chatty", busybox, "/bin/testserver", "log", "100")))
	next.Start()
	next.WaitLog("line 3")
	requests.check(t)

	// Nothing is left of any.
	ip := pod.IP()
	checkVerify(t, n, old, pod)
	for _, p := range []*harness.Pod{pod, host, ended, bare, pruned, late} {
		p.Remove()
	}
	if left := old.Left(); len(left) > 0 {
		t.Errorf("of the old shim's files %v are left", left)
	}
	rules, err := exec.Command("iptables-save", "-t", "nat").CombinedOutput()
	if err != nil || strings.Contains(string(rules), "18080") || strings.Contains(string(rules), "18081") || strings.Contains(string(rules), "18082") || strings.Contains(string(rules), "KUBE-") || strings.Contains(string(rules), ip+"/32") {
		t.Errorf("rules are left, %v:\n%s", err, rules)
	}
	if !refused("127.0.0.1:18080") || !refused(net.JoinHostPort(n.CNI.Gateway, "18081")) {
		t.Error("a host port is still open")
	}
	if left := n.CNI.Addresses(); len(left) > 0 {
		t.Errorf("addresses %v were not given back", left)
	}
	if now := state(foreign); now != before[foreign] {
		t.Errorf("somebody else's container was %q and is %q", before[foreign], now)
	}
}
