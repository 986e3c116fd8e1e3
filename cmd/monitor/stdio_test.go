//go:build cgo

package main

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine/native/monitor"
)

// client is an attached client with pipes.
type client struct {
	*monitor.Attachment
	stdin          *os.File
	stdout, stderr *collected
	out, err       *os.File
}

func (p *pod) attach(ctx context.Context, id string, stderr bool) *client {
	p.t.Helper()
	c := &client{}
	inR, inW := must2(os.Pipe())
	outR, outW := must2(os.Pipe())
	stdio := monitor.Stdio{Stdin: inR, Stdout: outW}
	c.stdin, c.out = inW, outR
	if stderr {
		c.err, stdio.Stderr = must2(os.Pipe())
	}
	var err error
	c.Attachment, err = p.Attach(ctx, id, stdio)
	for _, file := range []*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr} {
		_ = file.Close()
	}
	p.t.Cleanup(func() { monitor.CloseFiles([]*os.File{c.stdin, c.out, c.err}) })
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

func (c *client) collect() {
	c.stdout = collect(c.out)
	if c.err != nil {
		c.stderr = collect(c.err)
	}
}

func must2[A, B any](a A, b B, err error) (A, B) {
	if err != nil {
		panic(err)
	}
	return a, b
}

func TestAttach(t *testing.T) {
	p := newPod(t)
	args := p.args(p.spec(nil, "/bin/sh", "-c", "while read line; do echo out $line; echo err $line >&2; done; echo end"), "a")
	args.Stdin = true
	p.run("a", args)
	one, two := p.attach(within(t), "a", true), p.attach(within(t), "a", true)
	one.collect()
	two.collect()
	for i, c := range []*client{one, two} {
		if _, err := c.stdin.WriteString(strconv.Itoa(i) + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*client{one, two} {
		for _, want := range []string{"out 0\n", "out 1\n"} {
			c.stdout.waitFor(t, want)
		}
		for _, want := range []string{"err 0\n", "err 1\n"} {
			c.stderr.waitFor(t, want)
		}
	}
	// One client's end is neither the input's nor the other's.
	_ = one.stdin.Close()
	if done, err := one.Wait(within(t)); err != nil || done.Dropped != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, err := two.stdin.WriteString("again\n"); err != nil {
		t.Fatal(err)
	}
	two.stdout.waitFor(t, "out again\n")
	if err := p.CloseStdin(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	if done, err := two.Wait(within(t)); err != nil || done.Dropped != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	<-two.stdout.done
	if !strings.HasSuffix(two.stdout.String(), "end\n") {
		t.Fatalf("got %q", two.stdout)
	}
	if exit := must(p.Wait(within(t), "a")); exit.Code != 0 {
		t.Fatalf("exit %+v", exit)
	}
	if _, err := p.Attach(within(t), "a", monitor.Stdio{}); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("attach after the exit: %v", err)
	}
}

func TestStdinOnceEndsWithItsFirstClient(t *testing.T) {
	p := newPod(t)
	args := p.args(p.spec(nil, "/bin/cat"), "a")
	args.Stdin, args.StdinOnce = true, true
	p.run("a", args)
	c := p.attach(within(t), "a", false)
	c.collect()
	if _, err := c.stdin.WriteString("once\n"); err != nil {
		t.Fatal(err)
	}
	c.stdout.waitFor(t, "once\n")
	if state := must(p.State(within(t), "a")); !state.StdinOpen || state.Attached != 1 {
		t.Fatalf("state %+v", state)
	}
	_ = c.stdin.Close()
	if exit := must(p.Wait(within(t), "a")); exit.Code != 0 {
		t.Fatalf("exit %+v", exit)
	}
	if p.output("a") != "once\n" {
		t.Fatalf("log %q", p.output("a"))
	}
}

func TestTerminal(t *testing.T) {
	p := newPod(t)
	args := p.args(p.spec(func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.ConsoleSize = &specs.Box{Width: 90, Height: 20}
	}, "/bin/sh", "-c", "stty size; read line; stty size; echo got $line; exit 6"), "a")
	args.Stdin = true
	p.run("a", args)
	c := p.attach(within(t), "a", false)
	c.collect()
	eventually(t, "the first size is logged", func() bool { return strings.Contains(p.log("a"), "20 90") })
	if err := p.Resize(within(t), "a", 80, 25); err != nil {
		t.Fatal(err)
	}
	if _, err := c.stdin.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	c.stdout.waitFor(t, "25 80\r\ngot hello\r\n")
	if exit := must(p.Wait(within(t), "a")); exit.Code != 6 {
		t.Fatalf("exit %+v", exit)
	}
	// The echo of what was typed is the terminal's.
	if out := p.output("a"); out != "20 90\nhello\n25 80\ngot hello\n" {
		t.Fatalf("log %q", out)
	}
	if err := p.Resize(within(t), "a", 1, 1); err == nil {
		t.Fatal("resized after the exit")
	}
}

// A container that was made without standard input has none by way of its terminal either.
func TestNobodyTypesIntoATerminalWithoutStdin(t *testing.T) {
	p := newPod(t)
	p.run("a", p.args(p.spec(func(s *specs.Spec) { s.Process.Terminal = true }, "/bin/sh", "-c", "while ! ls /tmp/end >/dev/null 2>&1; do sleep 0.1; done; echo end"), "a"))
	c := p.attach(within(t), "a", false)
	c.collect()
	if _, err := c.stdin.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	if state := must(p.State(within(t), "a")); state.StdinOpen || !state.TTY {
		t.Errorf("state %+v", state)
	}
	if _, exited, err := p.exec(within(t), "a", p.process("/bin/sh", "-c", "echo >/tmp/end")); err != nil || exited.Code != 0 {
		t.Fatal(exited, err)
	}
	if exit := must(p.Wait(within(t), "a")); exit.Code != 0 {
		t.Fatalf("exit %+v", exit)
	}
	<-c.stdout.done
	if out := c.stdout.String(); out != "end\r\n" {
		t.Errorf("the client read %q", out)
	}
	if out := p.output("a"); out != "end\n" {
		t.Errorf("log %q", out)
	}
}

// Rows: S45 (part)
func TestClientThatDoesNotReadHoldsNothingUp(t *testing.T) {
	p := newPod(t)
	for try := 1; !besideOneThatDoesNotRead(t, p, "a"+strconv.Itoa(try)); try++ {
		if try == 5 {
			t.Fatal("a client that reads loses some each time")
		}
		t.Log("the client that reads did not get to it, on a busy machine; once more")
	}
}

// besideOneThatDoesNotRead says whether a client that reads got all.
func besideOneThatDoesNotRead(t *testing.T, p *pod, id string) bool {
	t.Helper()
	const lines = 60_000
	args := p.args(p.spec(nil, "/bin/sh", "-c", "read go; yes 0123456789012345678901234567890123456789 | head -n "+strconv.Itoa(lines)), id)
	args.Stdin = true
	p.run(id, args)
	stuck := p.attach(within(t), id, false)
	reader := p.attach(within(t), id, false)
	reader.collect()
	if _, err := reader.stdin.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	if exit := must(p.Wait(within(t), id)); exit.Code != 0 {
		t.Fatalf("exit %+v", exit)
	}
	if n := strings.Count(p.log(id), "\n"); n != lines {
		t.Fatalf("%d lines are logged of %d", n, lines)
	}
	done, err := reader.Wait(within(t))
	if err != nil {
		t.Fatalf("the reader: %+v, %v", done, err)
	}
	<-reader.stdout.done
	if got := len(reader.stdout.String()) + int(done.Dropped); got != lines*len("0123456789012345678901234567890123456789\n") {
		t.Fatalf("the reader got and lost %d bytes in all", got)
	}
	if done, err := stuck.Wait(within(t)); err != nil || done.Dropped == 0 {
		t.Fatalf("the stuck client lost nothing: %+v, %v", done, err)
	}
	return done.Dropped == 0
}

func TestReopenedLogGetsAllFromThenOn(t *testing.T) {
	p := newPod(t)
	args := p.args(p.spec(nil, "/bin/sh", "-c", "i=0; while read line; do i=$((i+1)); echo $i; done"), "a")
	args.Stdin = true
	p.run("a", args)
	c := p.attach(within(t), "a", false)
	c.collect()
	say := func(want string) {
		t.Helper()
		if _, err := c.stdin.WriteString("x\n"); err != nil {
			t.Fatal(err)
		}
		c.stdout.waitFor(t, want+"\n")
	}
	say("1")
	old := p.logPath("a") + ".1"
	eventually(t, "the first line is logged", func() bool { return strings.Contains(p.log("a"), " F 1\n") })
	if err := os.Rename(p.logPath("a"), old); err != nil {
		t.Fatal(err)
	}
	say("2")
	eventually(t, "the second line is logged", func() bool { data, _ := os.ReadFile(old); return strings.Contains(string(data), " F 2\n") })
	if err := p.ReopenLog(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	before := must(os.ReadFile(old))
	say("3")
	eventually(t, "the third line is logged", func() bool { return strings.Contains(p.log("a"), " F 3\n") })
	if after := must(os.ReadFile(old)); string(after) != string(before) {
		t.Fatalf("the old file got %q", after[len(before):])
	}
	if log := p.log("a"); strings.Count(log, "\n") != 1 {
		t.Fatalf("the new file has %q", log)
	}
	if err := p.Kill(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	_ = must(p.Wait(within(t), "a"))
	if err := p.ReopenLog(within(t), "a"); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("reopened after the exit: %v", err)
	}
}

// Rows: R19 (part)
func TestFullDiskOfTheLogStopsNothing(t *testing.T) {
	p := newPod(t)
	args := p.args(p.spec(nil, "/bin/sh", "-c", "yes 0123456789 | head -n 100000; exit 3"), "a")
	// A file system of a few pages.
	dir := p.base + "/small"
	mountSmall(t, dir)
	args.LogRoot, args.LogPath, args.ExitFile = dir, dir+"/log", dir+"/exit"
	p.run("a", args)
	exit, err := p.Wait(within(t), "a")
	if err != nil || exit.Code != 3 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	state := must(p.State(within(t), "a"))
	if state.Log.WriteErrors == 0 || state.Log.DroppedBytes == 0 {
		t.Fatalf("no loss is counted: %+v", state.Log)
	}
	if _, err := os.Stat(dir + "/exit"); err == nil {
		t.Fatal("the disk was not full")
	}
	if _, err := os.Stat(p.config.Dir + "/" + monitor.FallbackExitName("a")); err != nil {
		t.Fatalf("the exit is nowhere: %v", err)
	}
	if err := p.Delete(within(t), "a"); err != nil {
		t.Fatal(err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	p := newPod(t)
	p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Wait(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}
