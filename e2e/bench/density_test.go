package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// How often each call is made on the dense node: slow ones less, on a peer, which may take seconds, hardly.
const listCalls, statsCalls, peerStatsCalls = 100, 15, 3

// statsPause is longer than crishim answers with the same sample, so that each list is read anew.
const statsPause = 1100 * time.Millisecond

// query is a call that changes nothing.
type query struct {
	name  string
	goals []goal
	slow  bool // lists of statistics
	call  func(ctx context.Context, c *harness.Client, pod, container string) (proto.Message, error)
}

var queries = []query{
	{"ListPodSandbox", nil, false, func(ctx context.Context, c *harness.Client, _, _ string) (proto.Message, error) {
		return c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	}},
	{"ListContainers", nil, false, func(ctx context.Context, c *harness.Client, _, _ string) (proto.Message, error) {
		return c.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	}},
	{"PodSandboxStatus", []goal{atMost(0.17)}, false, func(ctx context.Context, c *harness.Client, pod, _ string) (proto.Message, error) {
		return c.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	}},
	{"ContainerStatus", []goal{atMost(0.34)}, false, func(ctx context.Context, c *harness.Client, _, container string) (proto.Message, error) {
		return c.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container})
	}},
	{"ContainerStats", []goal{atMost(0.5)}, false, func(ctx context.Context, c *harness.Client, _, container string) (proto.Message, error) {
		return c.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: container})
	}},
	{"ListContainerStats", []goal{atMost(10)}, true, func(ctx context.Context, c *harness.Client, _, _ string) (proto.Message, error) {
		return c.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	}},
	{"ListPodSandboxStats", []goal{atMost(10)}, true, func(ctx context.Context, c *harness.Client, _, _ string) (proto.Message, error) {
		return c.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	}},
	{"ImageFsInfo", nil, false, func(ctx context.Context, c *harness.Client, _, _ string) (proto.Message, error) {
		return c.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	}},
}

// density fills the node with pods and measures what is asked of it all the time.
func (n *bench) density(count int) {
	n.b.Helper()
	n.widen(count)
	empty := rss(n.node.Shim.PID())
	crishim := n.cri(n.node.Shim.Client, n.image)
	begin := time.Now()
	pods := make([]any, count)
	err := each(count, 8, func(i int) (err error) { pods[i], err = crishim.start(times{}); return err })
	if err != nil {
		n.b.Fatalf("filling the node: %v", err)
	}
	n.pods += count
	n.b.Logf("%d pods in %v", count, time.Since(begin))
	suffix := fmt.Sprintf(", %d pods", count)
	defer n.fillPeer(count)()
	n.ask(suffix)
	n.relist(suffix)
	n.rows = append(n.rows,
		single("RSS of crishim, no pod", "MiB", empty), single("RSS of crishim"+suffix, "MiB", rss(n.node.Shim.PID()), atMost(mostRSS())))
	if harness.Native() {
		n.rows = append(n.rows, n.perPod(count, suffix))
	}
	n.restart(count, suffix)
	n.rows = append(n.rows, single("RSS after the restarts"+suffix, "MiB", rss(n.node.Shim.PID()), atMost(mostRSS())))
	err = each(count, 8, func(i int) error { return crishim.end(pods[i], times{}) })
	if err != nil {
		n.b.Fatalf("emptying the node: %v", err)
	}
	n.pods -= count
}

// widen gives the pod network addresses for more pods than a node usually has.
func (n *bench) widen(count int) {
	if count < 240 {
		return
	}
	list := n.node.CNI.List(false)
	ipam := list["plugins"].([]any)[0].(map[string]any)["ipam"].(map[string]any)
	ipam["ranges"] = []any{[]any{map[string]any{"subnet": "100.64.0.0/20"}}}
	n.node.CNI.Write(n.node.CNI.ConfFile, list)
	n.node.Shim.WaitReady()
}

func single(name, unit string, value float64, goals ...goal) *row {
	return &row{name: name, unit: unit, ours: samples{{value}}, goals: goals}
}

// fillPeer gives the peer as many pods, unless it sees crishim's own, and returns what takes them away.
func (n *bench) fillPeer(count int) (empty func()) {
	n.b.Helper()
	if n.peer == nil || n.listed(*n.peer.client) >= count {
		return func() {}
	}
	pods := make([]any, count)
	err := each(count, 8, func(i int) (err error) { pods[i], err = n.peer.start(times{}); return err })
	if err != nil {
		n.b.Errorf("filling the peer: %v", err)
	}
	return func() {
		err := each(count, 8, func(i int) error {
			if pods[i] == nil {
				return nil
			}
			return n.peer.end(pods[i], times{})
		})
		if err != nil {
			n.b.Errorf("emptying the peer: %v", err)
		}
	}
}

// ask makes each query, the sides in turns.
func (n *bench) ask(suffix string) {
	n.b.Helper()
	for _, q := range queries {
		r := &row{name: q.name + suffix, unit: "ms", goals: q.goals}
		if q.slow && harness.Native() {
			r.goals = []goal{atMost(5)}
		}
		if strings.HasSuffix(q.name, "Status") && n.peer != nil && !n.sameEngine {
			r.goals = []goal{ofPeer(1)} // the constants are another machine's containerd
		}
		calls, peerCalls := listCalls, listCalls
		if q.slow {
			calls, peerCalls = statsCalls, peerStatsCalls
		}
		r.ours = samples{n.askMany(&q, &n.node.Shim.Client, calls)}
		if n.peer != nil {
			r.peer = samples{n.askMany(&q, n.peer.client, peerCalls)}
			r.ours[0] = append(r.ours[0], n.askMany(&q, &n.node.Shim.Client, calls)...)
		}
		n.rows = append(n.rows, r)
		isList := strings.HasPrefix(q.name, "List")
		if isList {
			r.floor = samples{n.decoding(&q, calls)}
		}
		if isList && !q.slow {
			r.goals = []goal{ofPeer(0.6)}
			if n.sameEngine {
				r.goals = []goal{ofPeer(0.1)} // it asks Docker; others have an index
			}
			n.rows = append(n.rows, single(q.name+" p99"+suffix, "ms", quantile(r.ours.all(), 0.99), atMost(30)))
		}
	}
}

// askMany returns how long each call took; nothing where the server has no such call.
func (n *bench) askMany(q *query, c *harness.Client, count int) []float64 {
	n.b.Helper()
	pods, containers := n.ids(c)
	var list []float64
	for i := range count {
		ctx, cancel := context.WithTimeout(n.b.Context(), 2*time.Minute)
		start := time.Now()
		_, err := q.call(ctx, c, pods[i%len(pods)], containers[i%len(containers)])
		took := ms(time.Since(start))
		cancel()
		if err != nil {
			if c == &n.node.Shim.Client {
				n.b.Fatalf("%s: %v", q.name, err)
			}
			n.b.Logf("%s of the peer: %v", q.name, err)
			return nil
		}
		list = append(list, took)
		if q.slow {
			time.Sleep(statsPause)
		}
	}
	return list
}

// decoding returns how long a client takes to decode the reply alone, which no server can be faster than.
func (n *bench) decoding(q *query, count int) []float64 {
	n.b.Helper()
	reply, err := q.call(n.b.Context(), &n.node.Shim.Client, "", "")
	if err != nil {
		n.b.Fatalf("%s: %v", q.name, err)
	}
	encoded, err := proto.Marshal(reply)
	if err != nil {
		n.b.Fatalf("encoding the reply to %s: %v", q.name, err)
	}
	var list []float64
	for range count {
		into := reply.ProtoReflect().New().Interface()
		start := time.Now()
		if err := proto.Unmarshal(encoded, into); err != nil {
			n.b.Fatalf("decoding the reply to %s: %v", q.name, err)
		}
		list = append(list, ms(time.Since(start)))
	}
	return list
}

func (n *bench) ids(c *harness.Client) (pods, containers []string) {
	n.b.Helper()
	podReply, err := c.Runtime.ListPodSandbox(n.b.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.b.Fatalf("listing pods: %v", err)
	}
	containerReply, err := c.Runtime.ListContainers(n.b.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		n.b.Fatalf("listing containers: %v", err)
	}
	for _, p := range podReply.Items {
		pods = append(pods, p.Id)
	}
	for _, c := range containerReply.Containers {
		containers = append(containers, c.Id)
	}
	return pods, containers
}

func (n *bench) listed(c harness.Client) int {
	n.b.Helper()
	reply, err := c.Runtime.ListPodSandbox(n.b.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.b.Fatalf("listing pods: %v", err)
	}
	return len(reply.Items)
}

// relistFor is how long the kubelet's routine is kept up for each measurement of CPU time.
const relistFor = 20 * time.Second

// relist measures the CPU time of the daemons while both lists are asked for each second, and statistics each ten seconds.
func (n *bench) relist(suffix string) {
	n.b.Helper()
	engine, name, stats := n.enginePIDs(), "crishim + Docker", atMost(11.5)
	if harness.Native() {
		name, stats = "crishim + monitors", ofPeer(0.1)
	} else if n.sameEngine {
		stats = ofPeer(1. / 3)
	}
	shim := []int{n.node.Shim.PID()}
	for _, part := range []struct {
		name  string
		stats bool
		goals []goal
	}{{"relist each s", false, nil}, {"relist each s, statistics each 10 s", true, []goal{stats}}} {
		both := &row{name: "CPU of " + name + ", " + part.name + suffix, unit: "ms/s", goals: part.goals}
		alone := &row{name: "CPU of crishim alone, " + part.name + suffix, unit: "ms/s"}
		used := n.routine(&n.node.Shim.Client, part.stats, shim, engine)
		both.ours, alone.ours = samples{{used[0] + used[1]}}, samples{{used[0]}}
		if n.peer != nil {
			resume := n.aside(peer)
			used := n.routine(n.peer.client, part.stats, n.peerPIDs, n.peerEnginePIDs(engine))
			resume()
			both.peer, alone.peer = samples{{used[0] + used[1]}}, samples{{used[0]}}
		}
		n.rows = append(n.rows, both, alone)
	}
}

// routine returns the milliseconds a second of each group of processes.
func (n *bench) routine(c *harness.Client, stats bool, groups ...[]int) []float64 {
	n.b.Helper()
	begin, before := time.Now(), cpu(groups)
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var calls sync.WaitGroup
	for i := 0; time.Since(begin) < relistFor; i++ {
		ctx, cancel := context.WithTimeout(n.b.Context(), time.Minute)
		calls.Go(func() { _, _ = c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}) })
		calls.Go(func() { _, _ = c.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{}) })
		if stats && i%10 == 0 {
			calls.Go(func() { _, _ = c.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{}) })
			calls.Go(func() { _, _ = c.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}) })
		}
		calls.Wait()
		cancel()
		<-second.C
	}
	elapsed := time.Since(begin).Seconds()
	used := cpu(groups)
	for i := range used {
		used[i] = (used[i] - before[i]) / elapsed
	}
	return used
}

// enginePIDs are dockerd and its containerd, or the native engine's monitors.
func (n *bench) enginePIDs() []int {
	if harness.Native() {
		return n.monitors()
	}
	pids := []int{n.node.Docker.PID()}
	file := filepath.Join(filepath.Dir(n.node.Docker.DataRoot), "exec", "containerd", "containerd.pid")
	if data, err := os.ReadFile(file); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// cpu is the CPU time so far of each group of processes, in ms, by the kernel's clock of each process: what /proc tells is
// counted by ticks of 10 ms, which work of a millisecond slips between.
func cpu(groups [][]int) []float64 {
	total := make([]float64, len(groups))
	for i, pids := range groups {
		for _, pid := range pids {
			var used unix.Timespec
			if unix.ClockGettime(processClock(pid), &used) == nil { // an error where the process has ended
				total[i] += float64(used.Nano()) / 1e6
			}
		}
	}
	return total
}

// processClock is clock_getcpuclockid(3).
func processClock(pid int) int32 { return ^int32(pid)<<3 | 2 }

// rss is a process's resident memory in MiB.
func rss(pid int) float64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	var kib float64
	_, _ = fmt.Sscan(rest, &kib) // 0 shows that it could not be read
	return kib / 1024
}

// restart measures from the start of the process until both lists are whole.
func (n *bench) restart(count int, suffix string) {
	n.b.Helper()
	r := &row{name: "restart to first whole lists" + suffix, unit: "ms", goals: []goal{atMost(300)}}
	for range 5 {
		n.node.Shim.Stop()
		begin := time.Now()
		n.node.Shim.StartWithoutWaiting()
		client := n.dialSoon()
		for !n.whole(client, count) {
			if time.Since(begin) > time.Minute {
				n.b.Fatalf("the lists are not whole a minute after the start:\n%s", n.node.Shim.LogTail())
			}
			time.Sleep(2 * time.Millisecond)
		}
		r.ours = append(r.ours, []float64{ms(time.Since(begin))})
		n.node.Shim.WaitReady()
	}
	n.rows = append(n.rows, r)
}

// dialSoon connects as soon as the socket accepts: gRPC's own pauses between attempts would count.
func (n *bench) dialSoon() *harness.Client {
	n.b.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if acceptsUnix(n.node.Shim.Socket) {
			return harness.Dial(n.b, n.node.Shim.Socket)
		}
		time.Sleep(2 * time.Millisecond)
	}
	n.b.Fatalf("crishim does not accept:\n%s", n.node.Shim.LogTail())
	return nil
}

func acceptsUnix(socket string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Connect(fd, &unix.SockaddrUnix{Name: socket}) == nil
}

func (n *bench) whole(c *harness.Client, count int) bool {
	ctx, cancel := context.WithTimeout(n.b.Context(), 10*time.Second)
	defer cancel()
	pods, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}})
	if err != nil {
		return false
	}
	containers, err := c.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	return err == nil && len(pods.Items) >= count && len(containers.Containers) >= count
}
