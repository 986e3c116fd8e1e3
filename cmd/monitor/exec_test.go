//go:build cgo

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

func TestExec(t *testing.T) {
	defer unix.Umask(unix.Umask(0o027)) // as the daemon's is
	p := newPod(t)
	if _, err := p.Create(within(t), "a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.exec(within(t), "a", p.process("/bin/true")); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("exec before the start: %v", err)
	}
	if _, err := p.Start(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	out, exited, err := p.exec(within(t), "a", p.process("/bin/sh", "-c", "echo out; echo err >&2; exit 9"))
	if err != nil || exited.Code != 9 || out != "out\nerr\n" {
		t.Fatalf("%q, %+v, %v", out, exited, err)
	}
	if out, _, err = p.exec(within(t), "a", p.process("/bin/sh", "-c", "umask")); err != nil || out != "0022\n" {
		t.Fatalf("umask %q, %v", out, err)
	}
	if _, exited, err = p.exec(within(t), "a", p.process("/bin/sh", "-c", "kill -9 $$")); err != nil || exited.Code != 137 || exited.Signal != 9 {
		t.Fatalf("%+v, %v", exited, err)
	}
	var start *monitor.StartError
	if _, _, err = p.exec(within(t), "a", p.process("nope")); !errors.As(err, &start) || start.ExitCode != 127 {
		t.Fatalf("no such command: %v", err)
	}
	if err := p.Pause(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	if _, _, err = p.exec(within(t), "a", p.process("/bin/true")); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("exec into a paused container: %v", err)
	}
	if err := errors.Join(p.Pause(within(t), "a"), p.Resume(within(t), "a"), p.Resume(within(t), "a")); err != nil {
		t.Fatal(err)
	}
	if _, exited, err = p.exec(within(t), "a", p.process("/bin/true")); err != nil || exited.Code != 0 {
		t.Fatalf("%+v, %v", exited, err)
	}
	if state := must(p.State(within(t), "a")); state.Execs != 0 {
		t.Fatalf("execs are left: %+v", state)
	}
}

func TestExecReadsWhatTheClientWritesAndKeepsItsBlockingStdio(t *testing.T) {
	p := newPod(t)
	p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	process, _ := json.Marshal(p.process("/bin/cat"))
	run, err := p.Exec(within(t), "a", process, monitor.Stdio{Stdin: inR, Stdout: outW})
	_, _ = inR.Close(), outW.Close()
	if err != nil {
		t.Fatal(err)
	}
	sent := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB, past any pipe
	go func() {
		_, _ = inW.WriteString(sent)
		_ = inW.Close()
	}()
	time.Sleep(50 * time.Millisecond) // a writer that meets a full pipe that does not block would fail now
	got, _ := readAll(outR)
	if got != sent {
		t.Fatalf("%d bytes came back of %d", len(got), len(sent))
	}
	if exited, err := run.Wait(within(t)); err != nil || exited.Code != 0 {
		t.Fatalf("%+v, %v", exited, err)
	}
}

// Rows: S51 (part)
func TestExecTimeoutKillsTheTree(t *testing.T) {
	p := newPod(t)
	state := p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	procs := func() int {
		path := state.CgroupPaths["pids"]
		if path == "" {
			path = state.CgroupPaths[""]
		}
		data, err := os.ReadFile(path + "/cgroup.procs")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "\n")
	}
	for _, script := range []string{
		"sleep 1000",
		"sleep 1000 & sleep 1000",
		"(sleep 1000 &); sh -c 'sleep 1000 & sleep 1000' & sleep 1000",
		"setsid sh -c 'sleep 1000; true' & sleep 1000",
		"trap '' TERM INT HUP; while :; do sleep 1000; done",
	} {
		process, _ := json.Marshal(p.process("/bin/sh", "-c", script))
		run, err := p.Exec(within(t), "a", process, monitor.Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		// The time is the process's alone: one that is killed while it is started may be there a moment longer.
		ctx, cancel := context.WithTimeout(within(t), 200*time.Millisecond)
		_, err = run.Wait(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%s: %v", script, err)
		}
		if n := procs(); n != 1 {
			t.Fatalf("%s: %d processes are left in the container", script, n-1)
		}
	}
	// A client that is gone is a timeout.
	process, _ := json.Marshal(p.process("/bin/sh", "-c", "sleep 1000 & sleep 1000"))
	ctx, cancel := context.WithCancel(within(t))
	run, err := p.Exec(ctx, "a", process, monitor.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := run.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	eventually(t, "the exec of a client that is gone is killed", func() bool { return procs() == 1 })
}

func TestExecTerminal(t *testing.T) {
	p := newPod(t)
	p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	spec := p.process("/bin/sh", "-c", "stty size; read line; stty size; echo got $line; exit 5")
	spec.Terminal = true
	spec.ConsoleSize = &specs.Box{Width: 100, Height: 30}
	process, _ := json.Marshal(spec)
	run, err := p.Exec(within(t), "a", process, monitor.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if run.TTY == nil {
		t.Fatal("no terminal")
	}
	defer func() { _ = run.TTY.Close() }()
	out := collect(run.TTY)
	out.waitFor(t, "30 100")
	if err := run.Resize(77, 22); err != nil {
		t.Fatal(err)
	}
	if _, err := run.TTY.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	out.waitFor(t, "22 77")
	out.waitFor(t, "got hello\r\n")
	if exited, err := run.Wait(within(t)); err != nil || exited.Code != 5 {
		t.Fatalf("%+v, %v", exited, err)
	}
}

func TestExecTerminalHangsUpWhenClosed(t *testing.T) {
	p := newPod(t)
	p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	spec := p.process("/bin/cat")
	spec.Terminal = true
	process, _ := json.Marshal(spec)
	run, err := p.Exec(within(t), "a", process, monitor.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	_ = run.TTY.Close()
	if exited, err := run.Wait(within(t)); err != nil || exited.Signal != int(unix.SIGHUP) {
		t.Fatalf("%+v, %v", exited, err)
	}
}

// Rows: S19 (part)
func TestExecHasTheRightsOfItsProcessAndNoMore(t *testing.T) {
	p := newPod(t)
	restrict := func(process *specs.Process) {
		process.User = specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{2000, 3000}}
		process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}
		process.NoNewPrivileges = true
		process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
	}
	p.run("a", p.args(p.spec(func(s *specs.Spec) { restrict(s.Process) }, "/bin/sleep", "1000"), "a"))
	process := p.process("/bin/busybox", "sh", "-c", "for pid in 1 self; do busybox grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig(Ign|Blk))' /proc/$pid/status; busybox grep 'open files' /proc/$pid/limits; cat /proc/$pid/cgroup; echo; done")
	restrict(process)
	out, exited, err := p.exec(within(t), "a", process)
	if err != nil || exited.Code != 0 {
		t.Fatalf("%+v, %v: %s", exited, err, out)
	}
	halves := strings.Split(out, "\n\n")
	if len(halves) < 2 || halves[0] != halves[1] {
		t.Fatalf("the container's and the exec's differ:\n%s", out)
	}
	for _, want := range []string{"Uid:\t1000", "Gid:\t2000", "CapEff:\t0000000000000000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000",
		"CapBnd:\t0000000000000001", "NoNewPrivs:\t1", "SigBlk:\t0000000000000000"} {
		if !strings.Contains(halves[1], want) {
			t.Errorf("no %q in\n%s", want, halves[1])
		}
	}
	// What make starts ignores the two signals that are the C library's own (glibc's posix_spawn), and so does all below.
	const libraryOwn = 1<<31 | 1<<32
	var ignored uint64
	if _, rest, ok := strings.Cut(halves[1], "SigIgn:\t"); !ok {
		t.Error("no SigIgn")
	} else if _, err := fmt.Sscanf(rest, "%x", &ignored); err != nil || ignored&^libraryOwn != 0 {
		t.Errorf("signals %x are ignored, %v", ignored, err)
	}
}

func TestEightExecsAtOnce(t *testing.T) {
	p := newPod(t)
	p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 5 {
				out, exited, err := p.exec(within(t), "a", p.process("/bin/sh", "-c", "echo "+strconv.Itoa(i)+"; exit "+strconv.Itoa(i)))
				if err != nil || exited.Code != i || out != strconv.Itoa(i)+"\n" {
					t.Errorf("%d: %q, %+v, %v", i, out, exited, err)
				}
			}
		})
	}
	all.Wait()
}

// collected is output as it comes.
type collected struct {
	mu   sync.Mutex
	text strings.Builder
	done chan struct{}
}

func collect(r *os.File) *collected {
	c := &collected{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			c.mu.Lock()
			c.text.Write(buf[:n])
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return c
}

func (c *collected) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

func (c *collected) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(c.String(), text); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q within a minute in %q", text, c.String())
		}
	}
}
