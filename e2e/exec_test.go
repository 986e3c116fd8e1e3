package e2e

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

func TestExecSyncReturnsOutputAndExitCode(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "exec").Run("c", n.Registry.Ref(harness.Busybox), forever)
	reply := c.Exec("sh", "-c", "echo out; echo err >&2; exit 3")
	if string(reply.Stdout) != "out\n" || string(reply.Stderr) != "err\n" || reply.ExitCode != 3 {
		t.Errorf("stdout %q, stderr %q, exit code %d", reply.Stdout, reply.Stderr, reply.ExitCode)
	}
	if reply := c.Exec("seq", "1", "100000"); len(bytes.Split(reply.Stdout, []byte("\n"))) != 100001 {
		t.Errorf("%d bytes of output, want all of 100000 lines", len(reply.Stdout))
	}
}

// Rows: S51
func TestExecSyncTimeoutEndsTheWholeProcessTree(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "timeout").Run("c", n.Registry.Ref(harness.Busybox), forever)
	timesOut := func(int) {
		began := time.Now()
		_, err := n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Timeout: 1, Cmd: []string{"sh", "-c", "sleep 4321 & sleep 1234; true"}})
		if harness.Code(err) != codes.DeadlineExceeded {
			t.Errorf("an exec that runs too long: %v", err)
		}
		if took := time.Since(began); took < time.Second || took > 20*time.Second {
			t.Errorf("it took %v, want 1 s and a little", took)
		}
	}
	timesOut(0)
	before := n.Use()
	eightAtOnce(rowsize.Of(1, 1000), timesOut)
	harness.Eventually(t, 30*time.Second, "the end of the exec's processes", func() error {
		if ps := c.Output("ps"); strings.Contains(ps, "sleep 1234") || strings.Contains(ps, "sleep 4321") {
			return fmt.Errorf("still there:\n%s", ps)
		}
		return nil
	})
	heldAsBefore(t, n, before)
}

// Rows: S50 (part)
func TestExecSyncOutlivesNoCaller(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "caller").Run("c", n.Registry.Ref(harness.Busybox), forever)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := n.Shim.Runtime.ExecSync(short, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "2345"}})
	wantCode(t, "an exec whose caller left", err, codes.DeadlineExceeded)
	harness.Eventually(t, 30*time.Second, "the end of the exec's process", func() error {
		if ps := c.Output("ps"); strings.Contains(ps, "sleep 2345") {
			return fmt.Errorf("still there:\n%s", ps)
		}
		return nil
	})
}

// Rows: S43
func TestExecSyncDoesNotWaitForChildrenThatHoldTheOutput(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "drain").Run("c", n.Registry.Ref(harness.Busybox), forever)
	probe := func(child string, most time.Duration) {
		began := time.Now()
		reply, err := n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "echo started; " + child + " &"}})
		if err != nil || !bytes.HasPrefix(reply.Stdout, []byte("started\n")) || reply.ExitCode != 0 {
			t.Errorf("%s: stdout %.100q, exit code %d, %v", child, reply.GetStdout(), reply.GetExitCode(), err)
		}
		if took := time.Since(began); took > most {
			t.Errorf("%s: it took %v", child, took)
		}
	}
	// One that writes on is waited for by Docker's engine as long as dockerd has something of it.
	probe("while sleep 0.1; do echo more; done", 30*time.Second)
	probe("sleep 1000", 30*time.Second)
	before := n.Use()
	eightAtOnce(rowsize.Of(1, 1000), func(int) { probe("sleep 31536000", rowsize.Of(30*time.Second, 3*time.Second)) })
	heldAsBefore(t, n, before)
}

// Rows: S42 (part)
func TestExecSyncCapsItsOutput(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "cap").Run("c", n.Registry.Ref(harness.Busybox), forever)
	reply, err := n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Timeout: 50, Cmd: []string{"sh", "-c", "dd if=/dev/zero bs=1M count=40 2>/dev/null; exit 4"}})
	if err != nil {
		t.Fatal(err)
	}
	if size := proto.Size(reply); size > 16<<20 || size < 15<<20 || reply.ExitCode != 4 || !strings.Contains(string(reply.Stderr), "output was cut") {
		t.Errorf("a reply of %d bytes, exit code %d, stderr %q: more than a client of 16 MiB can take, or another exit code, or cut in secret", size, reply.ExitCode, reply.Stderr)
	}
}

// Fifty execs that write more than is kept do not grow the daemon by it, and take nothing from a probe beside them.
//
// Rows: S42
func TestManyExecSyncsOfMuchOutput(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "much").Run("c", n.Registry.Ref(harness.Busybox), forever)
	staysSmall(t, n, memoryOverall) // of many pods, as each has its probes one after the other
	mib := rowsize.Of(4, 200)
	command := []string{"sh", "-c", fmt.Sprintf("dd if=/dev/zero bs=1M count=%d 2>/dev/null; exit 4", mib)}
	execSync := func(command ...string) *runtimeapi.ExecSyncResponse {
		reply, err := n.Shim.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Timeout: 500, Cmd: command})
		if err != nil {
			t.Error(err)
		}
		return reply
	}
	var calls sync.WaitGroup
	for range 50 {
		calls.Go(func() {
			reply := execSync(command...)
			cut := strings.Contains(string(reply.GetStderr()), "output was cut")
			if size := len(reply.GetStdout()); reply.GetExitCode() != 4 || cut != (size < mib<<20) || size < 10<<10 {
				t.Errorf("%d bytes of stdout, exit code %d, stderr %q", size, reply.GetExitCode(), reply.GetStderr())
			}
		})
	}
	for range 3 {
		if got := execSync("head", "-c", "10240", "/dev/zero").GetStdout(); len(got) != 10240 {
			t.Errorf("of a probe's output there are %d bytes", len(got))
		}
	}
	calls.Wait()
}

// Probes by the hundred, eight at a time, leave nothing: not in the daemon, its monitor or the container.
//
// Rows: R44 (part)
func TestExecSyncsByTheHundredLeaveNothing(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "probes").Run("c", n.Registry.Ref(harness.Busybox), forever)
	probe := func(int) {
		reply, err := n.Shim.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Timeout: 60, Cmd: []string{"echo", "ok"}})
		if err != nil || string(reply.Stdout) != "ok\n" || reply.ExitCode != 0 {
			t.Errorf("%v, %v", reply, err)
		}
	}
	eightAtOnce(80, probe)
	processes := func() string { return c.Output("ps -o pid,comm | wc -l") }
	inside, before := processes(), n.Use()
	began, count := time.Now(), rowsize.Of(300, 6000)
	eightAtOnce(count, probe)
	t.Logf("%d in %v", count, time.Since(began))
	heldAsBefore(t, n, before)
	harness.Eventually(t, time.Minute, "the container's processes to be those of before", func() error {
		if now := processes(); now != inside {
			return fmt.Errorf("the container had %s processes and has %s", strings.TrimSpace(inside), strings.TrimSpace(now))
		}
		return nil
	})
	t.Logf("held before %+v, after %+v", before, n.Use())
}

// eightAtOnce does something so many times, up to eight times at once; it is told which time that is.
func eightAtOnce(count int, do func(i int)) {
	var all sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		all.Go(func() {
			for i := next.Add(1); i <= int64(count); i = next.Add(1) {
				do(int(i) - 1)
			}
		})
	}
	all.Wait()
}

// heldAsBefore waits until the daemon and its monitors hold what they did.
func heldAsBefore(t *testing.T, n *harness.Node, before map[string]harness.Use) {
	t.Helper()
	harness.Eventually(t, time.Minute, "all to be held as before", func() error {
		for who, now := range n.Use() {
			was, known := before[who]
			if !known || now.Descriptors > was.Descriptors+15 || now.Threads > was.Threads+3 || now.Bytes > was.Bytes+32<<20 || len(now.Children) > len(was.Children) {
				return fmt.Errorf("%s held %+v and holds %+v", who, was, now)
			}
		}
		return nil
	})
}

func TestExecIsRefusedWhereNothingRuns(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "refused")
	exited := pod.Run("exited", n.Registry.Ref(harness.Busybox), []string{"true"})
	exited.WaitExit()
	created := pod.Create(pod.ContainerConfig("created", n.Registry.Ref(harness.Busybox), "true"))
	for name, row := range map[string]struct {
		id   string
		code codes.Code
	}{
		"an exited container":  {exited.ID, codes.FailedPrecondition},
		"a created container":  {created.ID, codes.FailedPrecondition},
		"an unknown container": {strings.Repeat("0", 64), codes.NotFound},
	} {
		_, err := n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: row.id, Cmd: []string{"true"}, Timeout: 5})
		wantCode(t, "ExecSync in "+name, err, row.code)
		_, err = n.Shim.Runtime.Exec(ctx(t), &runtimeapi.ExecRequest{ContainerId: row.id, Cmd: []string{"true"}, Stdout: true})
		wantCode(t, "Exec in "+name, err, row.code)
	}
}

// Rows: S44
func TestExecOfAMissingProgram(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "noexec").Run("c", n.Registry.Ref(harness.Busybox), forever)
	reply, err := n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"/no/such"}, Timeout: 50})
	if err == nil && reply.ExitCode != 127 && reply.ExitCode != 126 || harness.Code(err) == codes.DeadlineExceeded {
		t.Errorf("exit code %d, %v", reply.GetExitCode(), err)
	}
	onTerminal := func(i int) {
		stream := harness.StreamSPDY
		if i%2 == 0 {
			stream = harness.StreamWebSocket
		}
		s := harness.Streams{Stdout: &harness.Buffer{}, TTY: true, Resize: harness.TerminalSize{Width: 123, Height: 45}}
		if err := stream(ctx(t), c.ExecURL(s, "/no/such"), s); err == nil {
			t.Error("on a terminal it starts")
		}
	}
	for i := range 4 {
		onTerminal(i)
	}
	before := n.Use()
	for i := range rowsize.Of(10, 5000) {
		onTerminal(i)
	}
	heldAsBefore(t, n, before)
}

func TestExecStreams(t *testing.T) {
	n := node(t)
	c := n.RunPod(t, "streams").Run("c", n.Registry.Ref(harness.Busybox), forever)
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	for protocol, stream := range map[string]func(context.Context, string, harness.Streams) error{
		"SPDY v4":      harness.StreamSPDY,
		"WebSocket v5": harness.StreamWebSocket,
	} {
		t.Run(protocol, func(t *testing.T) {
			var stdout, stderr harness.Buffer
			s := harness.Streams{Stdin: strings.NewReader("typed\n"), Stdout: &stdout, Stderr: &stderr}
			url := c.ExecURL(s, "sh", "-c", "read x; echo got $x; echo err >&2; exit 9")
			if !strings.HasPrefix(url, "http://127.0.0.1:") {
				t.Errorf("URL %s: it needs a scheme (the kubelet's WebSocket translation) and is to be loopback", url)
			}
			if err := stream(ctx(t), url, s); err != harness.ExitError(9) {
				t.Errorf("error %v, want exit status 9", err)
			}
			if stdout.String() != "got typed\n" || stderr.String() != "err\n" {
				t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
			}
			if err := stream(ctx(t), url, s); err == nil {
				t.Error("the token can be used twice")
			}

			var echoed harness.Buffer
			s = harness.Streams{Stdin: bytes.NewReader(big), Stdout: &echoed}
			if err := stream(ctx(t), c.ExecURL(s, "cat"), s); err != nil {
				t.Errorf("cat: %v", err)
			}
			if echoed.String() != string(big) {
				t.Errorf("cat returned %d bytes of %d, or others", len(echoed.String()), len(big))
			}

			var terminal harness.Buffer
			s = harness.Streams{Stdout: &terminal, TTY: true, Resize: harness.TerminalSize{Width: 123, Height: 45}}
			if err := stream(ctx(t), c.ExecURL(s, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do [ \"$(stty size)\" = '45 123' ] && break; sleep 0.2; done; stty size"), s); err != nil {
				t.Errorf("stty: %v", err)
			}
			if !strings.Contains(terminal.String(), "45 123\r\n") {
				t.Errorf("the terminal is %q, want 45 123", terminal.String())
			}
		})
	}
}

func TestAttachJoinsTheMainProcess(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "attach")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "while read x; do echo got $x; done; echo end of input"}, func(c *runtimeapi.ContainerConfig) {
		c.Stdin, c.StdinOnce = true, true
	})
	var stdout harness.Buffer
	s := harness.Streams{Stdin: strings.NewReader("one\ntwo\n"), Stdout: &stdout}
	if err := harness.StreamSPDY(ctx(t), c.AttachURL(s), s); err != nil {
		t.Errorf("attach: %v", err)
	}
	if got := stdout.String(); got != "got one\ngot two\nend of input\n" {
		t.Errorf("attach says %q", got)
	}
	if status := c.WaitExit(); status.ExitCode != 0 {
		t.Errorf("exit code %d: stdin_once closes the process's input", status.ExitCode)
	}
	c.WaitLog("end of input")
}

func TestPortForwardReachesThePod(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "forward")
	pod.Run("echo", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "tcp", "127.0.0.1:7"})
	var forward *harness.Forward
	harness.Eventually(t, 30*time.Second, "an echo through the port-forward", func() (err error) {
		if forward, err = harness.ForwardSPDY(pod.PortForwardURL(7), 7); err != nil {
			return err
		}
		if err = echo(forward, "hello"); err != nil {
			forward.End()
		}
		return err
	})
	defer forward.End()
	another, err := forward.Another(7, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := echo(another, "again"); err != nil {
		t.Error(err)
	}
	nobody, err := harness.ForwardSPDY(pod.PortForwardURL(81), 81)
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.End()
	if err := nobody.Err(); err == nil {
		t.Error("a port where nobody listens is no error")
	}
}

// echo sends a word, ends our direction, and expects the word back.
func echo(f *harness.Forward, word string) error {
	if _, err := f.Write([]byte(word)); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	var back bytes.Buffer
	if _, err := back.ReadFrom(f); err != nil {
		return err
	}
	if back.String() != word {
		return fmt.Errorf("%q came back for %q", back.String(), word)
	}
	return f.Err()
}
