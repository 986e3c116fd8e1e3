//go:build cgo

package main

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

func TestContainerRunsAndItsExitIsRecordedBeforeItIsTold(t *testing.T) {
	p := newPod(t)
	args := p.args(p.spec(nil, "/bin/sh", "-c", "echo out; echo err >&2; exit 7"), "a")
	created, err := p.Create(within(t), "a", args)
	if err != nil {
		t.Fatal(err)
	}
	if created.Status != monitor.StatusCreated || !alive(created.PID) || created.StartTicks == 0 {
		t.Fatalf("created: %+v", created)
	}
	if _, err := p.Create(within(t), "a", args); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("created twice: %v", err)
	}
	if _, err := p.Start(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(within(t), "a")
	if err != nil || exit.Code != 7 || exit.Signal != 0 || exit.OOMKilled {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	var recorded monitor.Exit
	data, err := os.ReadFile(args.ExitFile)
	if err == nil {
		err = json.Unmarshal(data, &recorded)
	}
	if err != nil || recorded.Code != 7 || !recorded.FinishedAt.Equal(exit.FinishedAt) {
		t.Fatalf("recorded %+v, %v; told %+v", recorded, err, exit)
	}
	if log := p.log("a"); !strings.Contains(log, " stdout F out\n") || !strings.Contains(log, " stderr F err\n") {
		t.Fatalf("log %q", log)
	}
	if _, err := p.Start(within(t), "a"); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("started after the exit: %v", err)
	}
	if err := p.Delete(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.State(within(t), "a"); !errdefs.IsNotFound(err) {
		t.Fatalf("after delete: %v", err)
	}
	if err := p.Delete(within(t), "a"); err != nil {
		t.Fatalf("second delete: %v", err)
	}
	for _, path := range created.CgroupPaths {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("cgroup %s is left", path)
		}
	}
}

func TestKillAndSignals(t *testing.T) {
	p := newPod(t)
	p.run("a", p.args(p.spec(nil, "/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"), "a"))
	p.run("b", p.args(p.spec(nil, "/bin/sleep", "1000"), "b"))
	eventually(t, "the trap is set", func() bool {
		// A first process without handler takes no signal from its own namespace, and ours only when it has one.
		data, err := os.ReadFile("/proc/" + itoa(must(p.State(within(t), "a")).PID) + "/status")
		return err == nil && strings.Contains(string(data), "SigCgt:\t0000000000004000") || strings.Contains(string(data), "SigCgt:\t0000000000014")
	})
	if err := p.Signal(within(t), "a", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := must(p.Wait(within(t), "a")); exit.Code != 3 {
		t.Fatalf("exit %+v", exit)
	}
	if err := p.Kill(within(t), "b"); err != nil {
		t.Fatal(err)
	}
	if exit := must(p.Wait(within(t), "b")); exit.Code != 137 || exit.Signal != 9 || exit.OOMKilled {
		t.Fatalf("exit %+v", exit)
	}
	for range 2 {
		if err := errors.Join(p.Kill(within(t), "b"), p.Signal(within(t), "b", unix.SIGTERM)); err != nil {
			t.Fatalf("a signal after the exit: %v", err)
		}
	}
}

// Rows: S60 (part)
func TestSharedPIDNamespaceIsEmptiedAtTheExit(t *testing.T) {
	p := newPod(t)
	exit := p.sh("a", "sleep 1000 & (setsid sleep 1000 &) ; exit 0", func(s *specs.Spec) {
		s.Linux.Namespaces = s.Linux.Namespaces[1:] // the host's PIDs
	})
	if exit.Code != 0 {
		t.Fatalf("exit %+v", exit)
	}
	state := must(p.State(within(t), "a"))
	eventually(t, "the container's cgroup is empty", func() bool {
		data, err := os.ReadFile(state.CgroupPaths["pids"] + "/cgroup.procs")
		if state.CgroupPaths["pids"] == "" {
			data, err = os.ReadFile(state.CgroupPaths[""] + "/cgroup.procs")
		}
		return err == nil && len(data) == 0
	})
}

func TestStartErrors(t *testing.T) {
	p := newPod(t)
	p.spec(nil)
	if err := os.WriteFile(p.base+"/root/bin/plain", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		command string
		code    int
		text    string
	}{
		{"/bin/nope", 127, "no such file"},
		{"nope", 127, "executable file not found in $PATH"},
		{"/bin/plain", 126, "permission denied"},
		{"/tmp", 126, "is a directory"},
	} {
		_, err := p.Create(within(t), "a", p.args(p.spec(nil, test.command), "a"))
		var start *monitor.StartError
		if !errors.As(err, &start) || start.ExitCode != test.code || !strings.Contains(start.Message, test.text) {
			t.Errorf("%s: %v, want code %d and %q", test.command, err, test.code, test.text)
		}
	}
	if states := must(p.List(within(t))); len(states) != 0 {
		t.Fatalf("left: %+v", states)
	}
	_, err := p.Create(within(t), "a", p.args(p.spec(func(s *specs.Spec) { s.Process.Cwd = "relative" }, "/bin/true"), "a"))
	if !errdefs.IsInvalidArgument(err) {
		t.Fatalf("relative cwd: %v", err)
	}
	// A start after all of that.
	if exit := p.sh("a", "exit 4", nil); exit.Code != 4 {
		t.Fatalf("exit %+v", exit)
	}
}

// Rows: S06 (part), S56 (part)
func TestOnlyStdioIsOpenInside(t *testing.T) {
	p := newPod(t)
	// ls has the folder itself open as 3.
	p.sh("a", "ls /proc/self/fd; readlink /proc/self/cwd; ls /proc/1/fd; grep -c . /proc/self/environ 2>/dev/null; sleep 0", nil)
	if out := p.output("a"); !strings.HasPrefix(out, "0\n1\n2\n3\n/\n0\n1\n2\n") {
		t.Fatalf("in the container: %q", out)
	}
	p.run("b", p.args(p.spec(nil, "/bin/sleep", "1000"), "b"))
	out, exited, err := p.exec(within(t), "b", p.process("/bin/sh", "-c", "ls /proc/self/fd; readlink /proc/self/cwd; ls /proc/1/fd"))
	if err != nil || exited.Code != 0 || out != "0\n1\n2\n3\n/\n0\n1\n2\n" {
		t.Fatalf("in an exec: %q, %+v, %v", out, exited, err)
	}
	for fd := 3; fd < 20; fd++ {
		cwd := "/proc/self/fd/" + itoa(fd)
		if _, err := p.Create(within(t), "c", p.args(p.spec(func(s *specs.Spec) { s.Process.Cwd = cwd }, "/bin/true"), "c")); err == nil {
			t.Fatalf("a container with the working directory %s", cwd)
		}
		process := p.process("/bin/true")
		process.Cwd = cwd
		if _, _, err := p.exec(within(t), "b", process); err == nil {
			t.Fatalf("an exec with the working directory %s", cwd)
		}
	}
}

func TestOOMKilledIsTold(t *testing.T) {
	p := newPod(t)
	limit := int64(16 << 20)
	events := make(chan monitor.Event, 64)
	go func() { _ = p.Subscribe(within(t), func(e monitor.Event) { events <- e }) }()
	exit := p.sh("a", "x=$(yes | head -c 100000000); echo survived", func(s *specs.Spec) {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	})
	if !exit.OOMKilled || exit.OOMKills == 0 || exit.Code != 137 {
		t.Fatalf("exit %+v", exit)
	}
	for event := range events {
		if event.Type == monitor.EventExit {
			if !event.State.Exit.OOMKilled {
				t.Fatalf("event %+v", event)
			}
			break
		}
	}
}

// Of a container that goes on, whoever made it.
func TestOOMOfAChildIsAnEvent(t *testing.T) {
	for name, program := range map[string]string{"libcontainer": "", "runc": "/usr/sbin/runc"} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat(program); program != "" && err != nil {
				t.Skip("no runc (apt-get install runc)")
			}
			p := newPod(t)
			limit := int64(16 << 20)
			events := make(chan monitor.Event, 64)
			go func() { _ = p.Subscribe(within(t), func(e monitor.Event) { events <- e }) }()
			args := p.args(p.spec(func(s *specs.Spec) {
				s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
			}, "/bin/sh", "-c", "(tail /dev/zero); sleep 1000"), "a")
			args.OCIRuntime = program
			p.run("a", args)
			for event := range events {
				if event.Type == monitor.EventExit {
					t.Fatalf("it has ended: %+v", event.State)
				}
				if event.Type == monitor.EventOOM && event.State.ID == "a" {
					return
				}
			}
		})
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// Rows: R18 (part)
func TestProgramOfNoFormatIsAnExitWithItsReasonInTheLog(t *testing.T) {
	p := newPod(t)
	p.spec(nil)
	if err := os.WriteFile(p.base+"/root/bin/odd", []byte("\x7fODD"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.run("a", p.args(p.spec(nil, "/bin/odd"), "a"))
	exit := must(p.Wait(within(t), "a"))
	if exit.Code != 255 || !strings.Contains(p.output("a"), "exec format error") {
		t.Fatalf("exit %+v: %s", exit, p.output("a"))
	}
}
