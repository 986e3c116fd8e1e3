package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/mounttree"
	"crishim/internal/rowsize"
)

func TestPodLivesFromRunToRemove(t *testing.T) {
	n := node(t)
	started := time.Now()
	pod := n.RunPod(t, "life")
	status := pod.Status()
	if status.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v after RunPodSandbox", status.State)
	}
	if at := time.Unix(0, status.CreatedAt); at.Before(started.Add(-time.Second)) || at.After(time.Now()) {
		t.Errorf("created at %v, run at %v", at, started)
	}
	if got, want := status.Metadata.String(), pod.Config.Metadata.String(); got != want {
		t.Errorf("metadata %s, want %s", got, want)
	}
	for key, want := range pod.Config.Labels {
		if status.Labels[key] != want {
			t.Errorf("label %s is %q, want %q", key, status.Labels[key], want)
		}
	}
	if len(status.Labels) != len(pod.Config.Labels) || len(status.Annotations) != len(pod.Config.Annotations) {
		t.Errorf("labels %v and annotations %v, want exactly those of the configuration", status.Labels, status.Annotations)
	}

	web := pod.Run("web", n.Registry.Ref(harness.Web), nil)
	if body := httpGet(t, net.JoinHostPort(pod.IP(), "80")+"/hello"); body != "host=life path=/hello\n" {
		t.Errorf("the web server says %q", body)
	}
	running := web.Status()
	if running.State != runtimeapi.ContainerState_CONTAINER_RUNNING || running.StartedAt < running.CreatedAt || running.FinishedAt != 0 {
		t.Errorf("status of a running container: %v", running)
	}
	if running.LogPath != web.Log {
		t.Errorf("log path %q, want %q", running.LogPath, web.Log)
	}

	web.Stop(5)
	exited := web.Status()
	if exited.State != runtimeapi.ContainerState_CONTAINER_EXITED || exited.FinishedAt < exited.StartedAt {
		t.Errorf("status of a stopped container: %v", exited)
	}
	web.Remove()
	if _, err := os.Stat(web.Log); err != nil {
		t.Errorf("the log file is the kubelet's to remove: %v", err)
	}
	pod.Stop()
	if state := pod.Status().State; state != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v after StopPodSandbox", state)
	}
	if left := n.CNI.Addresses(); slices.Contains(left, status.Network.Ip) {
		t.Errorf("address %s was not given back", status.Network.Ip)
	}
	pod.Remove()
	_, err := n.Shim.Runtime.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID})
	wantCode(t, "status of a removed pod", err, codes.NotFound)
}

func TestListsFilter(t *testing.T) {
	n := node(t)
	one, two := n.RunPod(t, "one"), n.RunPod(t, "two")
	a := one.Run("a", n.Registry.Ref(harness.Busybox), forever)
	b := two.Create(two.ContainerConfig("b", n.Registry.Ref(harness.Busybox), "true"))
	two.Run("c", n.Registry.Ref(harness.Busybox), []string{"true"}).WaitExit()

	for name, row := range map[string]struct {
		filter *runtimeapi.ContainerFilter
		want   []string
	}{
		"by full id":   {&runtimeapi.ContainerFilter{Id: a.ID}, []string{"a"}},
		"by short id":  {&runtimeapi.ContainerFilter{Id: b.ID[:13]}, []string{"b"}},
		"by pod":       {&runtimeapi.ContainerFilter{PodSandboxId: two.ID}, []string{"b", "c"}},
		"by label":     {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": one.Config.Metadata.Uid}}, []string{"a"}},
		"pod, created": {&runtimeapi.ContainerFilter{PodSandboxId: two.ID, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_CREATED}}, []string{"b"}},
		"pod, exited":  {&runtimeapi.ContainerFilter{PodSandboxId: two.ID, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}}, []string{"c"}},
		"absent id":    {&runtimeapi.ContainerFilter{Id: strings.Repeat("0", 64)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			reply, err := n.Shim.Runtime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{Filter: row.filter})
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, c := range reply.Containers {
				names = append(names, c.Metadata.Name)
			}
			slices.Sort(names)
			if !slices.Equal(names, row.want) {
				t.Errorf("got %v, want %v", names, row.want)
			}
		})
	}
	two.Stop()
	ready, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(ready.Items) != 1 || ready.Items[0].Id != one.ID {
		t.Errorf("ready pods %v, want only %s", ready.Items, one.ID)
	}
}

func TestContainerSeesThePodsNamesAndResolver(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "names")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "GREETING", Value: []byte("a b\n$x=\"é\"")})
		c.WorkingDir = "/tmp"
	})
	for script, want := range map[string]string{
		"hostname":              "names\n",
		"cat /proc/1/comm":      "testserver\n", // its own PID namespace
		"pwd":                   "/tmp\n",
		`printf %s "$GREETING"`: "a b\n$x=\"é\"",
		"printenv KUBERNETES_SERVICE_HOST 2>/dev/null || env | sed -n 's/^KUBERNETES_SERVICE_HOST=//p'": "192.0.2.1\n",
	} {
		if got := c.Output(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	resolver := c.Output("cat /etc/resolv.conf")
	for _, want := range []string{"nameserver 192.0.2.53\n", "search e2e.svc.cluster.local cluster.local\n", "options ndots:5\n"} {
		if !strings.Contains(resolver, want) {
			t.Errorf("resolv.conf has no %q:\n%s", want, resolver)
		}
	}
	if got := c.Output("ip -o -4 addr show eth0"); !strings.Contains(got, pod.IP()+"/") {
		t.Errorf("eth0 has no %s: %s", pod.IP(), got)
	}
}

func TestAPodsFilesForEtc(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "files")
	run := func(name string) *harness.Container { return pod.Run(name, n.Registry.Ref(harness.Busybox), forever) }
	c := run("filler")
	// Nothing counts what is written there, and it lies in the node's memory.
	for _, file := range []string{"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"} {
		if got := c.Output("dd if=/dev/zero of=" + file + " bs=64k count=64 2>&1; true"); !strings.Contains(got, "No space left on device") {
			t.Errorf("4 MiB went into %s: %s", file, got)
		}
	}
	run("beside")
	if harness.Native() {
		return // its monitor's files are in the run folder, too
	}
	for _, folder := range []string{"pods", "podfiles"} { // somebody empties it
		folder = filepath.Join(n.Shim.RunDir, "docker", folder, pod.ID)
		if err := errors.Join(mounttree.Unmount(folder), os.RemoveAll(folder)); err != nil {
			t.Fatal(err)
		}
	}
	if got := run("after").Output("cat /etc/resolv.conf"); !strings.Contains(got, "nameserver 192.0.2.53\n") {
		t.Errorf("resolv.conf after it was made anew: %q", got)
	}
}

func TestContainersOfAPodShareNetworkAndIPCAndCanShareProcesses(t *testing.T) {
	n := node(t)
	shared := func(c *runtimeapi.NamespaceOption) { c.Pid = runtimeapi.NamespaceMode_POD }
	pod := n.RunPod(t, "shared", func(c *runtimeapi.PodSandboxConfig) { shared(c.Linux.SecurityContext.NamespaceOptions) })
	pod.Run("web", n.Registry.Ref(harness.Web), nil, func(c *runtimeapi.ContainerConfig) { shared(c.Linux.SecurityContext.NamespaceOptions) })
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) { shared(c.Linux.SecurityContext.NamespaceOptions) })
	harness.Eventually(t, 10*time.Second, "the web server on the pod's loopback", func() error {
		if reply := c.Exec("wget", "-qO-", "http://127.0.0.1/"); reply.ExitCode != 0 {
			return fmt.Errorf("%s", reply.Stderr)
		}
		return nil
	})
	if got := c.Output("ps"); strings.Count(got, "testserver") < 2 {
		t.Errorf("with one PID namespace the other container's process is to be seen:\n%s", got)
	}
	if got := c.Output("tr '\\0' ' ' < /proc/1/cmdline"); strings.Contains(got, "on-term") || strings.Contains(got, "http") {
		t.Errorf("process 1 of a shared PID namespace is a container's: %s", got)
	}
	c.Output("echo x > /dev/shm/file")
	other := pod.Run("other", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) { shared(c.Linux.SecurityContext.NamespaceOptions) })
	if got := other.Output("cat /dev/shm/file"); got != "x\n" {
		t.Errorf("/dev/shm is not shared: %q", got)
	}
}

// Where a pod has one PID namespace its containers reach the root of the process that holds it by /proc/1/root. The kernel's
// settings, which are the host's, must be no more writable there than in a container: root who can write core_pattern is the host's.
func TestPauseProcessOfASharedPIDNamespaceHasNoWritableSysctls(t *testing.T) {
	n := node(t)
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig, *runtimeapi.LinuxContainerSecurityContext){
		"default": func(*runtimeapi.PodSandboxConfig, *runtimeapi.LinuxContainerSecurityContext) {},
		"pod of root": func(p *runtimeapi.PodSandboxConfig, _ *runtimeapi.LinuxContainerSecurityContext) {
			p.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{}
		},
		"debugger": func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.LinuxContainerSecurityContext) {
			c.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_PTRACE"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := n.RunPod(t, "shared-pids", func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
				change(c, &runtimeapi.LinuxContainerSecurityContext{})
			})
			c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
				change(pod.Config, c.Linux.SecurityContext)
			})
			// What is written is what it says already.
			const write = `file=/proc/1/root/proc/sys/kernel/core_pattern; read -r old <$file && echo "$old" >$file`
			if reply := c.Exec("sh", "-c", write); reply.ExitCode == 0 {
				t.Error("the host's core_pattern can be written to")
			}
		})
	}
}

func TestTargetNamespaceShowsOneContainersProcesses(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "target")
	web := pod.Run("web", n.Registry.Ref(harness.Web), nil)
	debug := pod.Run("debug", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: web.ID}
	})
	if got := debug.Output("tr '\\0' ' ' < /proc/1/cmdline"); got != "/bin/testserver http :80 " {
		t.Errorf("process 1 is %q, want the web server", got)
	}
}

func TestHostNamespacesAreTheHosts(t *testing.T) {
	n := node(t)
	host := func(o *runtimeapi.NamespaceOption) {
		o.Network, o.Pid, o.Ipc = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
	}
	pod := n.RunPod(t, "host", func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		host(c.Linux.SecurityContext.NamespaceOptions)
	})
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) { host(c.Linux.SecurityContext.NamespaceOptions) })
	for _, namespace := range []string{"net", "pid", "ipc"} {
		own, err := os.Readlink("/proc/self/ns/" + namespace)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(c.Output("readlink /proc/self/ns/" + namespace)); got != own {
			t.Errorf("namespace %s is %s, the host's is %s", namespace, got, own)
		}
	}
	if addresses := n.CNI.Addresses(); len(addresses) != 0 {
		t.Errorf("a pod on the host's network took addresses: %v", addresses)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Output("hostname"); got != hostname+"\n" {
		t.Errorf("hostname %q, want the host's %q", got, hostname)
	}
}

func TestExitCodesAndReasons(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "exits")
	for _, row := range []struct {
		name    string
		command []string
		code    int32
		reason  string
	}{
		{"zero", []string{"true"}, 0, "Completed"},
		{"seven", []string{"sh", "-c", "exit 7"}, 7, "Error"},
		{"killed", []string{"sh", "-c", "kill -KILL $$; sleep 5"}, 137, "Error"},
		{"no-command", []string{"sh", "-c", "no-such-command"}, 127, "Error"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.name == "killed" { // process 1 of a PID namespace cannot kill itself
				row.command = []string{"sh", "-c", "sh -c 'kill -KILL $$'; exit $?"}
			}
			status := pod.Run(row.name, n.Registry.Ref(harness.Busybox), row.command).WaitExit()
			if status.ExitCode != row.code || status.Reason != row.reason {
				t.Errorf("exit code %d, reason %q; want %d, %q", status.ExitCode, status.Reason, row.code, row.reason)
			}
			if age := time.Since(time.Unix(0, status.FinishedAt)); age < 0 || age > 30*time.Second {
				t.Errorf("finished %v ago", age)
			}
		})
	}
}

// Rows: R48 (part)
func TestContainerOverItsMemoryLimitIsOOMKilled(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "oom")
	for i := range rowsize.Of(1, 500) {
		c := pod.Run(fmt.Sprintf("c%d", i), n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "alloc", "200"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources.MemoryLimitInBytes = 32 << 20
			c.Linux.Resources.MemorySwapLimitInBytes = 32 << 20
		})
		if status := c.WaitExit(); status.ExitCode != 137 || status.Reason != "OOMKilled" {
			t.Errorf("exit code %d, reason %q; want 137, OOMKilled", status.ExitCode, status.Reason)
		}
		c.Remove()
	}
}

// Rows: R18
func TestStartOfAMissingProgramFailsAndIsRecorded(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "missing")
	rows := []struct {
		program string
		codes   []int32
	}{
		{"/no/such/program", []int32{127, 128}},
		{"no-such-program", []int32{127, 128}},
		{"/etc/hosts", []int32{126}},
		{"/etc", []int32{126}},
	}
	start := func(i int) {
		row := rows[i%len(rows)]
		config := pod.ContainerConfig("c"+harness.ID(), n.Registry.Ref(harness.Busybox), row.program)
		config.Tty = i/len(rows)%2 == 1
		c := pod.Create(config)
		_, err := n.Shim.Runtime.StartContainer(ctx(t), &runtimeapi.StartContainerRequest{ContainerId: c.ID})
		if err == nil {
			t.Fatalf("starting %s succeeded", row.program)
		}
		if !strings.Contains(err.Error(), row.program) {
			t.Errorf("the error does not name %s: %v", row.program, err)
		}
		status := c.Status()
		if status.State != runtimeapi.ContainerState_CONTAINER_EXITED || !slices.Contains(row.codes, status.ExitCode) || status.Reason != "StartError" {
			t.Errorf("%s: state %v, exit code %d, reason %q; want exited, one of %v, StartError", row.program, status.State, status.ExitCode, status.Reason, row.codes)
		}
		c.Remove()
	}
	for i := range 2 * len(rows) {
		start(i)
	}
	before := n.Use()
	for i := range rowsize.Of(4, 1000) {
		start(i)
	}
	heldAsBefore(t, n, before)
}

// A file that may be run and is no program, and one that may not be run: the container ends with the shell's code or the runtime's, what is
// wrong is in the error of its start or in its log, and nothing of it is left.
//
// Rows: R18
func TestAProgramThatCannotRunEndsItsContainer(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "noformat")
	dir := t.TempDir()
	for name, row := range map[string]struct {
		mode  os.FileMode
		codes []int32
		text  string
	}{
		"odd":  {0o755, []int32{1, 126, 127, 128, 255}, "exec format error"}, // 1 is of older runc
		"data": {0o644, []int32{126, 127, 128}, "permission denied"},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("\x7fODD"), row.mode); err != nil {
			t.Fatal(err)
		}
		for _, tty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, terminal %t", name, tty), func(t *testing.T) {
				config := pod.ContainerConfig("c"+harness.ID(), n.Registry.Ref(harness.Busybox), "/mnt/"+name)
				config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/mnt"}}
				config.Tty, config.Stdin = tty, tty
				c := pod.Create(config)
				_, err := n.Shim.Runtime.StartContainer(ctx(t), &runtimeapi.StartContainerRequest{ContainerId: c.ID})
				status := c.WaitExit()
				if !slices.Contains(row.codes, status.ExitCode) || (err != nil) != (status.Reason == "StartError") {
					t.Errorf("exit code %d, reason %s, start %v", status.ExitCode, status.Reason, err)
				}
				said, lerr := os.ReadFile(c.Log)
				if lerr != nil && !os.IsNotExist(lerr) {
					t.Error(lerr)
				}
				if !strings.Contains(fmt.Sprint(err, string(said)), row.text) {
					t.Errorf("neither the start's error (%v) nor the log says %q: %s", err, row.text, said)
				}
				if err != nil {
					wantCode(t, "its start", err, codes.FailedPrecondition)
				}
				c.Remove()
			})
		}
	}
	pod.Remove()
}

// Rows: R13
func TestStopGivesGraceThenKills(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "stop")
	for _, row := range []struct {
		name     string
		command  []string
		grace    int64
		code     int32
		min, max time.Duration
	}{
		{"a process that ends at SIGTERM", []string{"/bin/testserver", "on-term", "5"}, 30, 5, 0, 25 * time.Second},
		{"a process that ignores SIGTERM", []string{"/bin/testserver", "ignore-term"}, 2, 137, 2 * time.Second, rowsize.Of(25*time.Second, 2500*time.Millisecond)},
		{"grace 0 kills at once", []string{"/bin/testserver", "ignore-term"}, 0, 137, 0, 25 * time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := pod.Run("c"+harness.ID(), n.Registry.Ref(harness.Busybox), row.command)
			c.WaitLog("ready")
			began := time.Now()
			c.Stop(row.grace)
			if took := time.Since(began); took < row.min || took > row.max {
				t.Errorf("it took %v, want %v to %v", took, row.min, row.max)
			}
			if status := c.Status(); status.State != runtimeapi.ContainerState_CONTAINER_EXITED || status.ExitCode != row.code {
				t.Errorf("state %v, exit code %d; want exited, %d", status.State, status.ExitCode, row.code)
			}
		})
	}
}

// Every Docker Engine takes note of a process that the daemon signalled without it, also of one that runs since before the daemon's start.
func TestStopsSignalWithoutDocker(t *testing.T) {
	harness.AboutDocker(t)
	n, proxy := behindProxy(t)
	var kills atomic.Int32
	proxy.Hold(func(r *http.Request) bool {
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/kill") {
			kills.Add(1)
		}
		return false
	})
	pod := n.RunPod(t, "signals")
	command := []string{"/bin/testserver", "on-term", "5"}
	gently, atOnce := pod.Run("gently", n.Registry.Ref(harness.Busybox), command), pod.Run("at-once", n.Registry.Ref(harness.Busybox), command)
	gently.WaitLog("ready")
	n.Shim.Restart()
	began := time.Now()
	gently.Stop(30)
	atOnce.Stop(0)
	if code := gently.Status().ExitCode; code != 5 {
		t.Errorf("the one that was to end gently has exit code %d, want 5", code)
	}
	if code := atOnce.Status().ExitCode; code != 137 {
		t.Errorf("the one that was to be killed has exit code %d, want 137", code)
	}
	pod.Stop()
	// What has not ended a second after it was killed is left to Docker, which knows of ways that the daemon does not.
	if n, took := kills.Load(), time.Since(began); n != 0 && took < time.Second {
		t.Errorf("Docker was asked %d times to signal something", n)
	} else if n != 0 {
		t.Logf("the stops took %v on a busy machine, and Docker was asked %d times to kill something", took, n)
	}
}

func TestStopSignalOfTheImageAndOfTheContainer(t *testing.T) {
	n := node(t)
	image := n.Pull(t, harness.SignalUSR1)
	pod := n.RunPod(t, "signal")
	trap := []string{"sh", "-c", "trap 'exit 10' USR1; trap 'exit 12' INT; trap 'exit 15' TERM; echo ready; while :; do sleep 0.1; done"}
	for _, row := range []struct {
		name   string
		signal runtimeapi.Signal
		code   int32
		said   runtimeapi.Signal
	}{
		{"image", runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, 10, runtimeapi.Signal_SIGNAL_SIGUSR1},
		{"container", runtimeapi.Signal_SIGNAL_SIGINT, 12, runtimeapi.Signal_SIGNAL_SIGINT},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := pod.Run(row.name, image, trap, func(c *runtimeapi.ContainerConfig) { c.StopSignal = row.signal })
			c.WaitLog("ready")
			if got := c.Status().StopSignal; got != row.said {
				t.Errorf("status says %v, want %v", got, row.said)
			}
			c.Stop(10)
			if got := c.Status().ExitCode; got != row.code {
				t.Errorf("exit code %d, want %d", got, row.code)
			}
		})
	}
}

func TestEntrypointAndCommandRules(t *testing.T) {
	n := node(t)
	image := n.Pull(t, harness.Entrypoint)
	pod := n.RunPod(t, "entry")
	for _, row := range []struct {
		name          string
		command, args []string
		want          string
	}{
		{"neither: the image's both", nil, nil, "from-entrypoint from-cmd\n"},
		{"args alone replace the image's cmd", nil, []string{"x", "y"}, "from-entrypoint x y\n"},
		{"command alone drops the image's cmd", []string{"echo", "only"}, nil, "only\n"},
		{"both", []string{"echo", "a"}, []string{"b"}, "a b\n"},
		{"image's folder and environment", []string{"sh", "-c", "echo $PWD $IMAGE"}, nil, "/opt yes\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := pod.Run("c"+harness.ID(), image, row.command, func(c *runtimeapi.ContainerConfig) { c.Args = row.args })
			c.WaitExit()
			if got := harness.JoinLog(c.WaitLines(1), "stdout"); got != row.want {
				t.Errorf("it says %q, want %q", got, row.want)
			}
		})
	}
}

// Rows: S09
func TestMountsAreWhatTheConfigurationSays(t *testing.T) {
	n := node(t)
	dir, outside := harness.WorkDir(t, "m"), harness.WorkDir(t, "o")
	if err := errors.Join(os.WriteFile(dir+"/file", []byte("from the host\n"), 0o644), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	pod := n.RunPod(t, "mounts")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: dir, ContainerPath: "/rw"},
			{HostPath: dir, ContainerPath: "/ro", Readonly: true},
			{HostPath: dir + "/file", ContainerPath: "/etc/one"},
			{HostPath: dir + "/made", ContainerPath: "/made"},
		}
	})
	if got := c.Output("cat /ro/file /etc/one"); got != "from the host\nfrom the host\n" {
		t.Errorf("the files say %q", got)
	}
	c.Output("echo written > /rw/new")
	if data, err := os.ReadFile(dir + "/new"); err != nil || string(data) != "written\n" {
		t.Errorf("on the host: %q, %v", data, err)
	}
	if reply := c.Exec("touch", "/ro/new"); reply.ExitCode == 0 {
		t.Error("a read-only mount can be written")
	}
	if info, err := os.Stat(dir + "/made"); err != nil || !info.IsDir() {
		t.Errorf("an absent host path becomes a directory: %v", err)
	}
	// Nothing is made where a link leads that the pod made in its volume, or below what is no folder.
	c.Output("ln -s " + outside + " /rw/link && ln -s " + outside + "/new /rw/dangling")
	for _, bad := range []string{"link/new", "dangling", "dangling/new", "file/new"} {
		config := pod.ContainerConfig("c"+harness.ID(), n.Registry.Ref(harness.Busybox), forever...)
		config.Mounts = []*runtimeapi.Mount{{HostPath: dir + "/" + bad, ContainerPath: "/m"}}
		_, err := n.Shim.Runtime.CreateContainer(ctx(t), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
		wantCode(t, "a mount of "+bad, err, codes.InvalidArgument)
	}
	if made, err := os.ReadDir(outside); err != nil || len(made) > 0 {
		t.Errorf("made where a link of the pod leads: %v, %v", made, err)
	}
}

func TestAttemptsOfAContainerAreApart(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "attempts")
	seen := map[string]bool{}
	for attempt := range uint32(3) {
		c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", fmt.Sprintf("echo attempt %d; exit %d", attempt, attempt)}, func(c *runtimeapi.ContainerConfig) {
			c.Metadata.Attempt = attempt
			c.LogPath = fmt.Sprintf("c%d.log", attempt)
		})
		status := c.WaitExit()
		if status.ExitCode != int32(attempt) || status.Metadata.Attempt != attempt || seen[c.ID] {
			t.Errorf("attempt %d: %v", attempt, status)
		}
		seen[c.ID] = true
		c.WaitLog(fmt.Sprintf("attempt %d", attempt))
	}
}
