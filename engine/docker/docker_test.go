package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/enginetest"
	"crishim/internal/mounttree"
	"crishim/internal/process"
	"crishim/internal/rowsize"
)

// bench is a real engine with a pod's worth of helpers.
type bench struct {
	*dockerd
	e     *Engine
	sink  *record
	image engine.ImageID
	logs  string
	n     atomic.Int64
}

const passwd = "root:x:0:0:root:/:/bin/sh\napp:x:1234:5678:app:/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n"
const groups = "root:x:0:\nstaff:x:50:root,app\napp:x:5678:\nextra:x:60:app\n"

// TestDockerContract holds the engine to the promises of package engine.
func TestDockerContract(t *testing.T) {
	d := startDockerd(t)
	d.load(testImageOf{ref: testBusybox, cmd: []string{"/bin/sleep", "1000000"}, files: map[string]string{"etc/passwd": passwd, "etc/group": groups}})
	dir := t.TempDir()
	enginetest.Run(t, func(t *testing.T) enginetest.Fixture {
		d.t = t
		e, err := New(Options{Socket: "unix://" + d.socket, RunDir: filepath.Join(dir, "run"), RootDir: filepath.Join(dir, "root"), PauseImage: testBusybox})
		if err != nil {
			t.Fatal(err)
		}
		d.load(testImageOf{ref: "carried:1", cmd: []string{"/bin/true"}})
		return enginetest.Fixture{
			Engine: e, Image: testBusybox, Removable: "carried:1", PauseImage: testBusybox, Commands: enginetest.ShellCommands(),
			CgroupParent: testCgroup, RealProcesses: true,
			Forget: func(t *testing.T, id engine.ContainerID) { d.docker("rm", "-f", string(id)) },
			Resources: func(t *testing.T, id engine.ContainerID) engine.Resources {
				status, err := e.ContainerStatus(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				return status.Spec.Resources
			},
		}
	})
	d.t = t
}

// TestDocker proves the engine on a real Docker Engine.
//
// Rows: S01 (part), S09, S11 (part), S14 (part), S16 (part), S17, S59 (part), S43, S44, S51, S67 (part), R06 (part), R08, R13, R18, R48
func TestDocker(t *testing.T) {
	d := startDockerd(t)
	b := &bench{dockerd: d, logs: t.TempDir()}
	b.image = d.load(testImageOf{ref: testBusybox, cmd: []string{"/bin/sleep", "1000000"}, files: map[string]string{"etc/passwd": passwd, "etc/group": groups}})
	b.e, b.sink = watched(t, d.socket, nil)
	b.sink.waitReady(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"a pod lives and leaves nothing", lifeOfPod},
		{"a container lives, and its log is complete before its exit is seen", lifeOfContainer},
		{"the pod's namespaces are shared", sharedNamespaces},
		{"a pod whose files are gone gets them anew", restoredPodFiles},
		{"an exec gives output and exit code", execOutput},
		{"labels say nothing of how an exec ended", execOfLabelled},
		{"an exec that is cancelled leaves no process", execCancelled},
		{"a child that keeps an exec's output open is not waited for", execWithLoudChild},
		{"an exec that cannot start leaks nothing", execFails},
		{"attach reads and writes", attachStream},
		{"a stop ends within its grace, and a cancelled one kills nothing", stopping},
		{"a process that cannot start is a StartError", startErrors},
		{"users and groups follow the policy", usersAndGroups},
		{"hostile users never become root", hostileUsers},
		{"limits go both ways", limits},
		{"out of memory is told from other ends", outOfMemory},
		{"a left-over of the same key is replaced, a foreign one is not", leftovers},
		{"Docker's bridge gives a pod its address", bridgeNetwork},
		{"missing host paths are made, not behind links", hostPaths},
		{"removal behind our back is seen", behindOurBack},
		{"recursive read-only holds in mounts inside, until the end", recursiveReadonly},
		{"noexec, nodev and nosuid are obeyed with every propagation", mountOptions},
		{"a volume is not kept busy by a container that has ended", volumeIsFree},
		{"images are mounted read-only, twice and by folder", imageVolumes},
		{"links in an image lead nowhere else", imageVolumeEscapes},
		{"a failing create leaves no mount", failingCreate},
		{"a crash's mounts are swept, those in use stay", sweptMounts},
		{"a killed dockerd is noticed and everything is seen again", killedEngine},
		{"a stopped dockerd is noticed and holds no call", stoppedEngine},
	} {
		t.Run(test.name, func(t *testing.T) {
			d.t = t
			b.run(t, test.run)
		})
	}
	d.t = t
}

func (b *bench) run(t *testing.T, f func(*testing.T, *bench)) {
	// Registered first, so run after the cleanups of f.
	t.Cleanup(func() {
		if left := b.docker("ps", "-aq"); left != "" && !t.Failed() {
			t.Errorf("containers left behind: %s", left)
		}
		if pins, _ := os.ReadDir(b.e.pins.dir); len(pins) > 0 && !t.Failed() {
			t.Errorf("pins left behind: %v", pins)
		}
		if mounts, _ := os.ReadDir(b.e.mounts.dir); len(mounts) > 0 && !t.Failed() {
			t.Errorf("prepared mounts left behind: %v", mounts)
		}
	})
	f(t, b)
}

func (b *bench) podSpec() *engine.PodSpec {
	n := strconv.FormatInt(b.n.Add(1), 10)
	return &engine.PodSpec{
		Key: engine.PodKey{Name: "pod" + n, Namespace: "ns", UID: "uid" + n}, Hostname: "host" + n,
		Namespaces: engine.Namespaces{Network: engine.NamespacePod, IPC: engine.NamespacePod, PID: engine.NamespaceContainer},
		PauseImage: testBusybox, CgroupParent: testCgroup,
		DNS: &engine.DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}},
	}
}

// pod runs a pod until the test ends.
func (b *bench) pod(t *testing.T, change func(*engine.PodSpec)) (engine.PodStatus, *engine.PodSpec) {
	t.Helper()
	spec := b.podSpec()
	if change != nil {
		change(spec)
	}
	id, err := b.e.CreatePod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		if err := errors.Join(b.e.StopPod(ctx, id), b.e.ReleaseNetNS(ctx, id), b.e.RemovePod(ctx, id)); err != nil {
			t.Error(err)
		}
		for _, path := range []string{b.e.podFiles.of(id), b.e.podFiles.mount(id)} {
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("the files of the pod are left: %v", err)
			}
		}
	})
	status, err := b.e.StartPod(t.Context(), id, spec)
	if err != nil {
		t.Fatal(err)
	}
	return status, spec
}

func (b *bench) containerSpec(pod engine.PodStatus, command ...string) *engine.ContainerSpec {
	n := strconv.FormatInt(b.n.Add(1), 10)
	return &engine.ContainerSpec{
		Pod: pod.ID, PodKey: pod.Key, Key: engine.ContainerKey{Name: "c" + n}, Image: engine.ImageRef{Ref: testBusybox, ID: b.image},
		Command: command, Env: []engine.EnvVar{{Name: "PATH", Value: []byte("/bin")}},
		Namespaces: pod.Spec.Namespaces, CgroupParent: pod.Spec.CgroupParent,
		LogPath: filepath.Join(b.logs, pod.Key.Name, n+".log"), LogDirectory: b.logs,
	}
}

// container runs one until the test ends.
func (b *bench) container(t *testing.T, spec *engine.ContainerSpec) engine.ContainerStatus {
	t.Helper()
	made := b.created(t, spec)
	status, err := b.e.StartContainer(t.Context(), made.ID, spec)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func (b *bench) created(t *testing.T, spec *engine.ContainerSpec) engine.ContainerStatus {
	t.Helper()
	made, err := b.e.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.e.RemoveContainer(context.Background(), made.ID); err != nil {
			t.Error(err)
		}
	})
	return made
}

// sh runs a shell command by exec and returns its output.
func (b *bench) sh(t *testing.T, id engine.ContainerID, script string) string {
	t.Helper()
	var out bytes.Buffer
	code, err := b.e.Exec(t.Context(), id, &engine.ExecSpec{Command: []string{"/bin/sh", "-c", script}, Streams: engine.Streams{Stdout: &out, Stderr: &out}})
	if err != nil || code != 0 {
		t.Fatalf("%s: %d, %v: %s", script, code, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func lifeOfPod(t *testing.T, b *bench) {
	status, spec := b.pod(t, func(s *engine.PodSpec) {
		s.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"}
		s.Labels, s.Annotations = map[string]string{"app": "x"}, map[string]string{"note": "y"}
	})
	if status.State != engine.PodReady || status.PID == 0 || status.StartTicks == 0 || status.Key != spec.Key || status.CreatedAt.IsZero() {
		t.Errorf("status %+v", status)
	}
	if !isNamespace(status.NetNSPath) {
		t.Errorf("%q is no pinned namespace", status.NetNSPath)
	}
	if !strings.HasPrefix(status.CgroupPath, testCgroup+"/") {
		t.Errorf("cgroup %q", status.CgroupPath)
	}
	eventually(t, 30*time.Second, "the sink has the pod ready", func() bool {
		p, ok := b.sink.pod(status.ID)
		return ok && p.State == engine.PodReady && p.Spec.Labels["app"] == "x" && p.Spec.Annotations["note"] == "y"
	})
	if err := b.e.StopPod(t.Context(), status.ID); err != nil {
		t.Fatal(err)
	}
	stopped, err := b.e.PodStatus(t.Context(), status.ID)
	if err != nil || stopped.State != engine.PodNotReady || stopped.NetNSPath != status.NetNSPath {
		t.Errorf("stopped: %+v, %v", stopped, err)
	}
	for range 2 {
		if err := errors.Join(b.e.StopPod(t.Context(), status.ID), b.e.ReleaseNetNS(t.Context(), status.ID), b.e.RemovePod(t.Context(), status.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.e.PodStatus(t.Context(), status.ID); !errdefs.IsNotFound(err) {
		t.Errorf("status of a removed pod: %v", err)
	}
	eventually(t, 30*time.Second, "the sink has lost the pod", func() bool { _, ok := b.sink.pod(status.ID); return !ok })
}

func lifeOfContainer(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	spec := b.containerSpec(pod, "/bin/sh", "-c", "echo to stdout; echo to stderr >&2; exit 3")
	made := b.created(t, spec)
	if made.State != engine.ContainerCreated || made.Key != spec.Key || made.Pod != pod.ID || made.ImageID != b.image {
		t.Errorf("created: %+v", made)
	}
	if _, err := b.e.StartContainer(t.Context(), made.ID, spec); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the sink sees the exit", func() bool { return b.sink.container(made.ID).State == engine.ContainerExited })
	log, err := os.ReadFile(spec.LogPath)
	if err != nil || !strings.Contains(string(log), " stdout F to stdout\n") || !strings.Contains(string(log), " stderr F to stderr\n") {
		t.Errorf("log when the exit was seen: %q, %v", log, err)
	}
	got := b.sink.container(made.ID)
	if got.ExitCode != 3 || got.Reason != engine.ReasonError || got.StartedAt.IsZero() || got.FinishedAt.Before(got.StartedAt) || got.PID != 0 {
		t.Errorf("exited: %+v", got)
	}
	if err := b.e.ReopenLog(t.Context(), made.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopening the log of an exited container: %v", err)
	}

	spec = b.containerSpec(pod, "/bin/sh", "-c", "while :; do echo tick; sleep 0.05; done")
	running := b.container(t, spec)
	if running.State != engine.ContainerRunning || running.User == nil || running.User.UID != 0 || running.UpperDir == "" || running.StopSignal != "SIGTERM" {
		t.Errorf("running: %+v", running)
	}
	if err := os.Rename(spec.LogPath, spec.LogPath+".1"); err != nil {
		t.Fatal(err)
	}
	if err := b.e.ReopenLog(t.Context(), running.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the new log has lines", func() bool {
		st, err := os.Stat(spec.LogPath)
		return err == nil && st.Size() > 0
	})
}

func restoredPodFiles(t *testing.T, b *bench) {
	pod, spec := b.pod(t, nil)
	b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	if err := errors.Join(mounttree.Unmount(b.e.podFiles.mount(pod.ID)), os.Remove(b.e.podFiles.of(pod.ID))); err != nil {
		t.Fatal(err)
	}
	second := b.containerSpec(pod, "/bin/sleep", "1000")
	if _, err := b.e.CreateContainer(t.Context(), second); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("nobody knows what was in them: %v", err)
	}
	defer func() { b.e.opts.PodSpec = nil }()
	b.e.opts.PodSpec = func(id engine.PodID) *engine.PodSpec {
		if id != pod.ID {
			return nil
		}
		return spec
	}
	c := b.container(t, second)
	if got := b.sh(t, c.ID, "cat /etc/resolv.conf /etc/hostname"); got != "search a.b c\nnameserver 10.0.0.10\noptions ndots:5\n"+spec.Hostname {
		t.Errorf("they are %q", got)
	}
}

func sharedNamespaces(t *testing.T, b *bench) {
	pod, spec := b.pod(t, func(s *engine.PodSpec) { s.Namespaces.PID = engine.NamespacePod })
	sharing := b.containerSpec(pod, "/bin/sleep", "1000")
	sharing.Namespaces.PID = engine.NamespacePod
	c := b.container(t, sharing)
	for _, ns := range []string{"net", "ipc", "pid"} {
		ours, _ := os.Readlink(procPath(c.PID, "ns/"+ns))
		pods, _ := os.Readlink(procPath(pod.PID, "ns/"+ns))
		if ours == "" || ours != pods {
			t.Errorf("%s namespaces: %q and the pod's %q", ns, ours, pods)
		}
	}
	if got := b.sh(t, c.ID, "cat /etc/resolv.conf"); got != "search a.b c\nnameserver 10.0.0.10\noptions ndots:5" {
		t.Errorf("resolv.conf %q", got)
	}
	if got := b.sh(t, c.ID, "cat /etc/hostname"); got != spec.Hostname {
		t.Errorf("hostname %q", got)
	}
	if got := b.sh(t, c.ID, "echo >>/etc/hosts && cat /etc/hosts"); !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n") {
		t.Errorf("hosts %q", got)
	}
	target := b.containerSpec(pod, "/bin/sleep", "1000")
	target.Namespaces.PID = engine.NamespaceContainer
	first := b.container(t, target)
	debugger := b.containerSpec(pod, "/bin/sleep", "1000")
	debugger.Namespaces.PID, debugger.Namespaces.PIDTarget = engine.NamespaceTarget, first.ID
	second := b.container(t, debugger)
	a, _ := os.Readlink(procPath(first.PID, "ns/pid"))
	if z, _ := os.Readlink(procPath(second.PID, "ns/pid")); a == "" || a != z {
		t.Errorf("target's pid namespace %q, the debugger's %q", a, z)
	}
}

// Docker writes a container's labels, which may be its image's, over what its events tell.
func execOfLabelled(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	for _, labels := range []map[string]string{{"exitCode": "0"}, {"execID": "other"}, {"execID": "other", "exitCode": "7"}} {
		spec := b.containerSpec(pod, "/bin/sleep", "1000")
		spec.Labels = labels
		c := b.container(t, spec)
		for range 3 {
			code, err := b.e.Exec(t.Context(), c.ID, &engine.ExecSpec{Command: []string{"/bin/sh", "-c", "exit 42"}, Streams: engine.Streams{Stdout: io.Discard}})
			if err != nil || code != 42 {
				t.Errorf("%v: %d, %v", labels, code, err)
			}
		}
	}
}

func execOutput(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	c := b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	var stdout, stderr bytes.Buffer
	code, err := b.e.Exec(t.Context(), c.ID, &engine.ExecSpec{
		Command: []string{"/bin/sh", "-c", "cat; echo err >&2; exit 42"},
		Streams: engine.Streams{Stdin: strings.NewReader("through stdin"), Stdout: &stdout, Stderr: &stderr},
	})
	if err != nil || code != 42 || stdout.String() != "through stdin" || stderr.String() != "err\n" {
		t.Errorf("%d, %v, %q, %q", code, err, stdout.String(), stderr.String())
	}
	sizes := make(chan engine.TerminalSize, 1)
	sizes <- engine.TerminalSize{Width: 123, Height: 45}
	var terminal bytes.Buffer
	code, err = b.e.Exec(t.Context(), c.ID, &engine.ExecSpec{
		Command: []string{"/bin/sh", "-c", `for i in $(seq 50); do [ "$(stty size 2>/dev/null)" = "45 123" ] && echo sized && exit 0; sleep 0.1; done; stty size; exit 1`},
		Streams: engine.Streams{Stdout: &terminal, TTY: true, Resize: sizes},
	})
	if err != nil || code != 0 || terminal.String() != "sized\r\n" {
		t.Errorf("terminal: %d, %v, %q", code, err, terminal.String())
	}
	start := time.Now()
	for range 10 {
		b.sh(t, c.ID, "true")
	}
	t.Logf("an exec takes %s", time.Since(start)/10)
}

// sleepers counts the processes that sleep for so many seconds.
func sleepers(seconds string) int {
	n := 0
	all, _ := processes()
	for _, p := range all {
		if strings.Contains(commandLine(p.pid), "sleep\x00"+seconds) {
			n++
		}
	}
	return n
}

func execCancelled(t *testing.T, b *bench) {
	seconds := strconv.Itoa(7_000_000 + os.Getpid()) // of another run of this test none count
	pod, _ := b.pod(t, nil)
	c := b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	for name, script := range map[string]string{
		"a child":                       "sleep SECONDS",
		"an orphan":                     "(sleep SECONDS &) ; sleep SECONDS",
		"one that ignores every signal": "trap '' TERM INT HUP; sleep SECONDS & wait",
		"one in a session of its own":   "setsid sleep SECONDS & sleep SECONDS",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		start := time.Now()
		_, err := b.e.Exec(ctx, c.ID, &engine.ExecSpec{Command: []string{"/bin/sh", "-c", strings.ReplaceAll(script, "SECONDS", seconds)}, Streams: engine.Streams{Stdout: &bytes.Buffer{}}})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 30*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(start))
		}
		if n := sleepers(seconds); n != 0 {
			t.Errorf("%s: %d processes left", name, n)
		}
	}
	if status, err := b.e.ContainerStatus(t.Context(), c.ID); err != nil || status.State != engine.ContainerRunning {
		t.Errorf("the container: %v, %v", status.State, err)
	}
}

func execWithLoudChild(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	c := b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	var out bytes.Buffer
	start := time.Now()
	code, err := b.e.Exec(t.Context(), c.ID, &engine.ExecSpec{Command: []string{"/bin/sh", "-c", "sleep 600 & echo done; exit 5"}, Streams: engine.Streams{Stdout: &out}})
	if took := time.Since(start); err != nil || code != 5 || out.String() != "done\n" || took > 10*engine.DrainTimeout {
		t.Errorf("%d, %v, %q after %s", code, err, out.String(), took)
	}
}

func execFails(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	c := b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	fail := func() {
		code, err := b.e.Exec(t.Context(), c.ID, &engine.ExecSpec{Command: []string{"/no/such/file"}, Streams: engine.Streams{Stdout: &bytes.Buffer{}, TTY: true, Resize: make(chan engine.TerminalSize)}})
		if err == nil && code != exitCannotInvoke && code != exitNotFound {
			t.Errorf("a missing file exits with %d", code)
		}
	}
	fail()
	before := runtime.NumGoroutine()
	for range rowsize.Of(10, 5000) {
		fail()
	}
	eventually(t, 10*time.Second, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+5 })
	if _, err := b.e.Exec(t.Context(), engine.ContainerID(testContainer), &engine.ExecSpec{Command: []string{"x"}}); !errdefs.IsNotFound(err) {
		t.Errorf("exec in no container: %v", err)
	}
}

func attachStream(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	spec := b.containerSpec(pod, "/bin/cat")
	spec.Stdin, spec.StdinOnce = true, true
	c := b.container(t, spec)
	var out bytes.Buffer
	if err := b.e.Attach(t.Context(), c.ID, &engine.Streams{Stdin: strings.NewReader("hello"), Stdout: &out}); err != nil || out.String() != "hello" {
		t.Errorf("%v, %q", err, out.String())
	}
	eventually(t, 30*time.Second, "stdin once ends the container", func() bool { return b.sink.container(c.ID).State == engine.ContainerExited })
}

func stopping(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	stubborn := b.containerSpec(pod, "/bin/sh", "-c", "trap 'echo got it' TERM; echo up; while :; do sleep 0.1; done")
	c := b.container(t, stubborn)
	eventually(t, 30*time.Second, "the trap is set", func() bool { log, _ := os.ReadFile(stubborn.LogPath); return strings.Contains(string(log), "up") })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := b.e.StopContainer(ctx, c.ID, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cancelled stop: %v", err)
	}
	if !process.Alive(c.PID, c.StartTicks) {
		t.Fatal("a cancelled stop killed")
	}
	start := time.Now()
	if err := b.e.StopContainer(t.Context(), c.ID, time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < time.Second || took > time.Minute {
		t.Errorf("a stop with 1 s grace took %s", took)
	}
	status, err := b.e.ContainerStatus(t.Context(), c.ID)
	if err != nil || status.State != engine.ContainerExited || status.ExitCode != exitKilled {
		t.Errorf("%+v, %v", status, err)
	}
	traps := b.containerSpec(pod, "/bin/sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
	polite := b.container(t, traps)
	eventually(t, 30*time.Second, "the trap is set", func() bool { log, _ := os.ReadFile(traps.LogPath); return strings.Contains(string(log), "up") })
	if err := b.e.StopContainer(t.Context(), polite.ID, time.Minute); err != nil {
		t.Fatal(err)
	}
	if status, err := b.e.ContainerStatus(t.Context(), polite.ID); err != nil || status.ExitCode != 9 {
		t.Errorf("%+v, %v", status, err)
	}
	never := b.created(t, b.containerSpec(pod, "/bin/true"))
	for _, id := range []engine.ContainerID{c.ID, never.ID, testContainer, "no id"} {
		for _, grace := range []time.Duration{0, time.Minute} {
			if err := b.e.StopContainer(t.Context(), id, grace); err != nil {
				t.Errorf("stop %s: %v", id, err)
			}
		}
	}
}

func startErrors(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	for command, codes := range map[string]string{"/no/such/file": "127 128", "/etc/passwd": "126"} {
		spec := b.containerSpec(pod, command)
		c := b.created(t, spec)
		status, err := b.e.StartContainer(t.Context(), c.ID, spec)
		if err == nil || errdefs.IsNotFound(err) {
			t.Errorf("%s: error %v", command, err)
		}
		asked, aerr := b.e.ContainerStatus(t.Context(), c.ID)
		for _, got := range []engine.ContainerStatus{status, asked} {
			if got.State != engine.ContainerExited || got.Reason != engine.ReasonStartError || !strings.Contains(codes, strconv.Itoa(int(got.ExitCode))) {
				t.Errorf("%s: %s %s %d, %v", command, got.State, got.Reason, got.ExitCode, aerr)
			}
		}
	}
}

func usersAndGroups(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	image := b.load(testImageOf{ref: "crishim.test/user:1", user: "app", files: map[string]string{"etc/passwd": passwd, "data/group": groups}, links: map[string]string{"etc/group": "../data/group"}})
	for name, test := range map[string]struct {
		image    engine.ImageID
		security engine.Security
		want     engine.User
	}{
		"nothing asked: the image's root":       {b.image, engine.Security{}, engine.User{UID: 0, GID: 0, Groups: []int64{0, 50}}},
		"nothing asked: the image's user":       {image, engine.Security{}, engine.User{UID: 1234, GID: 5678, Groups: []int64{50, 60, 5678}}},
		"a name":                                {b.image, engine.Security{Username: "app"}, engine.User{UID: 1234, GID: 5678, Groups: []int64{50, 60, 5678}}},
		"Merge with a group adds the image's":   {b.image, engine.Security{UID: ptr(int64(1234)), GID: ptr(int64(7)), SupplementalGroups: []int64{8}}, engine.User{UID: 1234, GID: 7, Groups: []int64{7, 8, 50, 60}}},
		"Strict adds nothing":                   {b.image, engine.Security{UID: ptr(int64(1234)), SupplementalGroups: []int64{8}, GroupsPolicy: engine.GroupsStrict}, engine.User{UID: 1234, GID: 5678, Groups: []int64{8, 5678}}},
		"a number that the image does not have": {b.image, engine.Security{UID: ptr(int64(99)), GroupsPolicy: engine.GroupsStrict}, engine.User{UID: 99, GID: 0, Groups: []int64{0}}},
	} {
		spec := b.containerSpec(pod, "/bin/sleep", "1000")
		spec.Image.ID, spec.Security = test.image, test.security
		c := b.container(t, spec)
		if c.User == nil || fmt.Sprint(*c.User) != fmt.Sprint(test.want) {
			t.Errorf("%s: %+v, want %+v", name, c.User, test.want)
		}
	}
}

func hostileUsers(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	for _, user := range []string{"4294967296", "-1", "4294967295", "2147483648", "0x0", "+0", " 0", "１", "nobody-here", "a:b", ""} {
		spec := b.containerSpec(pod, "/bin/sleep", "1000")
		spec.Security.Username = user
		if user == "" {
			spec.Security.GID = ptr(int64(1))
		}
		if c, err := b.e.CreateContainer(t.Context(), spec); !errdefs.IsInvalidArgument(err) {
			t.Errorf("user %q: %v %v", user, c.ID, err)
		}
	}
	for name, image := range map[string]testImageOf{
		"a huge passwd":      {files: map[string]string{"etc/passwd": strings.Repeat("x:x:1:1:::\n", 1<<20)}},
		"a device as passwd": {links: map[string]string{"etc/passwd": "/dev/../../../../dev/null"}},
		"a loop":             {links: map[string]string{"etc/passwd": "/etc/group", "etc/group": "/etc/passwd"}},
		"no passwd":          {},
	} {
		image.ref, image.user = "crishim.test/hostile:1", "app"
		spec := b.containerSpec(pod, "/bin/sleep", "1000")
		spec.Image.ID = b.load(image)
		start := time.Now()
		if _, err := b.e.CreateContainer(t.Context(), spec); err == nil || time.Since(start) > time.Minute {
			t.Errorf("%s: %v after %s", name, err, time.Since(start))
		}
	}
}

func limits(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	spec := b.containerSpec(pod, "/bin/sleep", "1000")
	spec.Resources = engine.Resources{MemoryLimit: 64 << 20, CPUQuota: 20000, CPUPeriod: 50000, CPUShares: 100, CpusetCPUs: "0"}
	c := b.container(t, spec)
	read := func(controller, file string) string {
		data, err := os.ReadFile(filepath.Join((&facts{cgroupV2: b.e.Info().CgroupV2, cgroupRoot: cgroupRoot}).cgroupDir(c.CgroupPath, controller), file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	check := func(what string, want map[string]string) {
		t.Helper()
		for file, value := range want {
			controller, _, _ := strings.Cut(file, ".")
			if got := read(controller, file); got != value {
				t.Errorf("%s: %s is %s, want %s", what, file, got, value)
			}
		}
	}
	if b.e.Info().CgroupV2 {
		t.Skip("the files below are cgroup v1's")
	}
	check("created", map[string]string{"memory.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "20000", "cpu.shares": "100", "cpuset.cpus": "0"})
	more := engine.Resources{MemoryLimit: 128 << 20, CPUQuota: 40000, CPUPeriod: 100000, CPUShares: 200}
	if err := b.e.UpdateContainer(t.Context(), c.ID, &more); err != nil {
		t.Fatal(err)
	}
	check("more", map[string]string{"memory.limit_in_bytes": "134217728", "cpu.cfs_quota_us": "40000", "cpu.cfs_period_us": "100000", "cpu.shares": "200"})
	if err := b.e.UpdateContainer(t.Context(), c.ID, &spec.Resources); err != nil {
		t.Fatal(err)
	}
	check("less", map[string]string{"memory.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "20000"})
	if err := b.e.UpdateContainer(t.Context(), c.ID, &engine.Resources{MemoryLimit: 1 << 20}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("1 MiB: %v", err)
	}
	check("refused", map[string]string{"memory.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "20000"})
	if err := b.e.UpdateContainer(t.Context(), c.ID, &engine.Resources{OOMScoreAdj: 500}); err != nil {
		t.Fatal(err)
	}
	check("none", map[string]string{"memory.limit_in_bytes": strconv.FormatInt(noMemoryLimit, 10), "cpu.cfs_quota_us": "-1"})
	if score, _ := os.ReadFile(procPath(c.PID, "oom_score_adj")); strings.TrimSpace(string(score)) != "500" {
		t.Errorf("oom_score_adj %s", score)
	}
	status, err := b.e.ContainerStatus(t.Context(), c.ID)
	if err != nil || status.Spec.Resources.MemoryLimit != 0 || status.Spec.Resources.CPUQuota != 0 {
		t.Errorf("read back %+v, %v", status.Spec.Resources, err)
	}
}

func outOfMemory(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	for range rowsize.Of(5, 500) {
		spec := b.containerSpec(pod, "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=60M")
		spec.Resources.MemoryLimit = 15 << 20
		victim := b.container(t, spec)
		eventually(t, 20*time.Second, "it is killed", func() bool { return b.sink.container(victim.ID).State == engine.ContainerExited })
		time.Sleep(300 * time.Millisecond)
		if got := b.sink.container(victim.ID); got.Reason != engine.ReasonOOMKilled || got.ExitCode != exitKilled {
			t.Errorf("%s %d; Docker says %s", got.Reason, got.ExitCode, b.docker("inspect", "-f", "{{json .State}}", string(victim.ID)))
		}
	}
	spec := b.containerSpec(pod, "/bin/sleep", "1000")
	spec.Resources.MemoryLimit = 15 << 20
	outlives := b.container(t, spec)
	code, err := b.e.Exec(t.Context(), outlives.ID, &engine.ExecSpec{Command: []string{"/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=60M"}})
	if err != nil || code != exitKilled {
		t.Fatalf("the exec ends with %d, %v", code, err)
	}
	if err := b.e.StopContainer(t.Context(), outlives.ID, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := b.e.ContainerStatus(t.Context(), outlives.ID); err != nil || got.Reason != engine.ReasonError || got.ExitCode != exitKilled {
		t.Errorf("after the OOM kill of an exec: %s %d, %v; Docker says %s", got.Reason, got.ExitCode, err, b.docker("inspect", "-f", "{{json .State}}", string(outlives.ID)))
	}
}

func leftovers(t *testing.T, b *bench) {
	spec := b.podSpec()
	first, err := b.e.CreatePod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if started, err := b.e.StartPod(t.Context(), first, spec); err != nil || started.NetNSPath == "" {
		t.Fatal(started, err)
	}
	second, err := b.e.CreatePod(t.Context(), spec)
	if err != nil || first == second {
		t.Fatalf("%s and %s, %v", first, second, err)
	}
	if _, err := b.e.PodStatus(t.Context(), first); !errdefs.IsNotFound(err) {
		t.Errorf("the left-over: %v", err)
	}
	if err := b.e.RemovePod(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	name, _ := podName(spec.Key)
	foreign := b.docker("create", "--name", name, testBusybox)
	defer b.docker("rm", "-f", foreign)
	if _, err := b.e.CreatePod(t.Context(), spec); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a foreign container of the name: %v", err)
	}
	if b.docker("inspect", "-f", "{{.Id}}", foreign) != foreign {
		t.Error("the foreign container is gone")
	}
}

func bridgeNetwork(t *testing.T, b *bench) {
	e, sink := watched(t, b.socket, func(o *Options) { o.Network = NetworkBridge })
	sink.waitReady(t)
	spec := b.podSpec()
	spec.DNS = nil
	id, err := e.CreatePod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		// The other engine on this Docker Engine has pinned it too.
		if err := errors.Join(e.StopPod(ctx, id), e.RemovePod(ctx, id), b.e.ReleaseNetNS(ctx, id)); err != nil {
			t.Error(err)
		}
	})
	status, err := e.StartPod(t.Context(), id, spec)
	if err != nil || len(status.IPs) != 1 || !strings.HasPrefix(status.IPs[0], "172.31.251.") || status.NetNSPath == "" {
		t.Errorf("%+v, %v", status, err)
	}
}

func hostPaths(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	dir := t.TempDir()
	outside := t.TempDir()
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "link")), os.Chmod(dir, 0o777), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	spec := b.containerSpec(pod, "/bin/sleep", "1000")
	spec.Mounts = []engine.Mount{{ContainerPath: "/m", HostPath: filepath.Join(dir, "a", "b")}, {ContainerPath: "/ro", HostPath: outside, Readonly: true}}
	c := b.container(t, spec)
	b.sh(t, c.ID, "echo x > /m/x; ! echo x > /ro/x")
	if _, err := os.Stat(filepath.Join(dir, "a", "b", "x")); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{filepath.Join(dir, "link", "new"), filepath.Join(dir, "file", "new")} {
		spec := b.containerSpec(pod, "/bin/sleep", "1000")
		spec.Mounts = []engine.Mount{{ContainerPath: "/m", HostPath: bad}}
		if _, err := b.e.CreateContainer(t.Context(), spec); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if made, _ := os.ReadDir(outside); len(made) > 0 {
		t.Errorf("made behind a link: %v", made)
	}
}

func behindOurBack(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	c := b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	b.docker("kill", string(c.ID))
	eventually(t, 30*time.Second, "the kill is seen", func() bool { return b.sink.container(c.ID).State == engine.ContainerExited })
	b.docker("rm", "-f", string(c.ID), string(pod.ID))
	eventually(t, 30*time.Second, "the removal is seen", func() bool {
		_, ok := b.sink.pod(pod.ID)
		return !ok && b.sink.container(c.ID).ID == ""
	})
	before := b.sink.resynced()
	stranger := b.docker("run", "-d", "--net", "none", "--label", labelType+"="+typeContainer, testBusybox)
	defer b.docker("rm", "-f", stranger)
	if b.sink.container(engine.ContainerID(stranger)).ID != "" || b.sink.resynced() != before {
		t.Error("a foreign container was told")
	}
}

func killedEngine(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	lives := b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	dies := b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	resyncs := b.sink.resynced()
	b.kill()
	start := time.Now()
	eventually(t, time.Second, "the loss is told", func() bool { h := b.sink.last(); return !h.Ready && h.Reason != "" })
	t.Logf("the loss was told after %s", time.Since(start))
	if _, err := b.e.ContainerStatus(t.Context(), lives.ID); !errdefs.IsUnavailable(err) || time.Since(start) > 20*time.Second {
		t.Errorf("a call without an engine: %v", err)
	}
	if err := syscall.Kill(dies.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.start()
	eventually(t, 20*time.Second, "a resync", func() bool { return b.sink.resynced() > resyncs && b.sink.last().Ready })
	if got := b.sink.container(lives.ID); got.State != engine.ContainerRunning || got.PID != lives.PID {
		t.Errorf("the living: %+v", got)
	}
	eventually(t, 10*time.Second, "the dead is exited", func() bool { return b.sink.container(dies.ID).State == engine.ContainerExited })
}

func stoppedEngine(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	c := b.container(t, b.containerSpec(pod, "/bin/sleep", "1000"))
	b.signal(syscall.SIGSTOP)
	resumed := false
	defer func() {
		if !resumed {
			b.signal(syscall.SIGCONT)
		}
	}()
	eventually(t, 30*time.Second, "every thread of dockerd stops", func() bool {
		threads, _ := filepath.Glob(procPath(b.cmd.Process.Pid, "task/*/stat"))
		return len(threads) > 0 && !slices.ContainsFunc(threads, func(stat string) bool {
			data, err := os.ReadFile(stat)
			return err == nil && !bytes.Contains(data, []byte(") T "))
		})
	})
	start := time.Now()
	_, err := b.e.ContainerStatus(t.Context(), c.ID)
	if took := time.Since(start); !errdefs.IsUnavailable(err) || took > 30*time.Second {
		t.Errorf("a call in flight: %v after %s", err, took)
	}
	eventually(t, 30*time.Second, "the hang is told", func() bool { return b.sink.last().Reason == reasonNotResponding })
	start = time.Now()
	if _, err := b.e.ContainerStatus(t.Context(), c.ID); !errdefs.IsUnavailable(err) || time.Since(start) > 10*time.Second {
		t.Errorf("the next call: %v after %s", err, time.Since(start))
	}
	b.signal(syscall.SIGCONT)
	resumed = true
	b.sink.waitReady(t)
	if got := b.sink.container(c.ID); got.State != engine.ContainerRunning {
		t.Errorf("%+v", got)
	}
}
