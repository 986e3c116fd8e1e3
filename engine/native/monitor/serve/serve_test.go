package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/crilog"
	"crishim/engine/native/monitor"
)

func itoa(i int) string { return strconv.Itoa(i) }

func TestLifeOfAContainer(t *testing.T) {
	f := newFixture(t, nil)
	events := make(chan monitor.Event, 64)
	ctx, cancel := context.WithCancel(f.ctx())
	subscribed := make(chan error, 1)
	go func() { subscribed <- f.Subscribe(ctx, func(e monitor.Event) { events <- e }) }()
	next := func(want monitor.EventType) monitor.Event {
		t.Helper()
		select {
		case event := <-events:
			if event.Type != want {
				t.Fatalf("event %+v, want %s", event, want)
			}
			return event
		case <-time.After(time.Minute):
			t.Fatalf("no event %s", want)
			return monitor.Event{}
		}
	}
	next(monitor.EventSynced)
	args := f.args("a", "/bin/sh", "-c", "echo hello; exit 3")
	earlier := []string{args.ExitFile, filepath.Join(f.dir, monitor.FallbackExitName("a"))}
	for _, file := range earlier {
		if err := os.WriteFile(file, []byte(`{"id":"a","code":7}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Create(f.ctx(), "a", args); err != nil {
		t.Fatal(err)
	}
	for _, file := range earlier {
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			t.Errorf("how an earlier container ended stays in %s: %v", file, err)
		}
	}
	if event := next(monitor.EventState); event.State.Status != monitor.StatusCreated || event.State.PID == 0 {
		t.Fatalf("event %+v", event)
	}
	if f.runtime.removed[0] != "a" {
		t.Fatal("what an earlier monitor left was not removed")
	}
	if _, err := f.Start(f.ctx(), "a"); err != nil {
		t.Fatal(err)
	}
	next(monitor.EventState)
	exit, err := f.Wait(f.ctx(), "a")
	if err != nil || exit.Code != 3 || exit.ID != "a" {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	event := next(monitor.EventExit)
	if event.State.Status != monitor.StatusExited || event.State.Exit.Code != 3 || event.State.PID != 0 {
		t.Fatalf("event %+v", event)
	}
	if data, err := os.ReadFile(args.LogPath); err != nil || !strings.HasSuffix(string(data), " stdout F hello\n") {
		t.Fatalf("log %q, %v", data, err)
	}
	if err := f.Delete(f.ctx(), "a"); err != nil {
		t.Fatal(err)
	}
	if event := next(monitor.EventDeleted); event.State.ID != "a" {
		t.Fatalf("event %+v", event)
	}
	if _, err := os.Stat(args.ExitFile); err != nil {
		t.Fatalf("the exit's record went with the container: %v", err)
	}
	// Of one that this monitor does not know an earlier one may have left something.
	if err := f.Delete(f.ctx(), "b"); err != nil || len(f.runtime.removed) != 2 || f.runtime.removed[1] != "b" {
		t.Fatalf("removed are %q, %v", f.runtime.removed, err)
	}
	cancel()
	if err := <-subscribed; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// What ends before anybody has asked for its start has not run, and is no end of the container.
func TestAnEndBeforeTheStartIsKnownAsSuch(t *testing.T) {
	f := newFixture(t, nil)
	waiting := f.args("a", "/bin/true")
	must(f.Create(f.ctx(), "a", waiting))
	if err := f.Kill(f.ctx(), "a"); err != nil {
		t.Fatal(err)
	}
	f.run("b", f.args("b", "/bin/true"))
	for id, unstarted := range map[string]bool{"a": true, "b": false} {
		told := must(f.Wait(f.ctx(), id))
		var recorded monitor.Exit
		err := json.Unmarshal(must(os.ReadFile(f.args(id).ExitFile)), &recorded)
		if err != nil || told.Unstarted != unstarted || recorded.Unstarted != unstarted {
			t.Errorf("%s: told %+v, recorded %+v, %v", id, told, recorded, err)
		}
	}
}

// A log whose disk hangs (here each open of it waits for a lease) keeps no container from being deleted; one whose log cannot be opened is
// not made, which is said with its reason, and its id is free. What was opened later is closed again.
//
// Rows: R28 (part)
func TestALogThatHangsKeepsNoContainerFromBeingDeleted(t *testing.T) {
	defer func(was time.Duration) { openTimeout = was }(openTimeout)
	openTimeout = 100 * time.Millisecond
	f := newFixture(t, nil)
	frozen := func(path string) (thaw func()) {
		t.Helper()
		file := must(os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640))
		thaw = sync.OnceFunc(func() { _ = file.Close() })
		t.Cleanup(thaw)
		if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
			t.Fatal(err)
		}
		return thaw
	}
	args := f.args("a", "/bin/sleep", "1000")
	f.run("a", args)
	if err := os.Rename(args.LogPath, args.LogPath+".1"); err != nil {
		t.Fatal(err)
	}
	thaw := frozen(args.LogPath)
	brief, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := f.ReopenLog(brief, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the log does not hang: %v", err)
	}
	if err := f.Delete(f.ctx(), "a"); err != nil {
		t.Errorf("deleting a container whose log hangs: %v", err)
	}
	thaw()

	args = f.args("b", "/bin/sleep", "1000")
	thaw = frozen(args.LogPath)
	if _, err := f.Create(f.ctx(), "b", args); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), args.LogPath) {
		t.Errorf("one whose log cannot be opened: %v", err)
	}
	if err := f.Delete(f.ctx(), "b"); err != nil {
		t.Errorf("deleting it: %v", err)
	}
	thaw()
	f.run("b", args)
	for id, want := range map[string]int{"a": 0, "b": 1} {
		path := f.args(id).LogPath
		for end := time.Now().Add(20 * time.Second); opens(path) != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s is open %d times, want %d", path, opens(path), want)
			}
		}
	}
}

// opens is how many descriptors this process has of a file.
func opens(path string) (n int) {
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == path {
			n++
		}
	}
	return n
}

// Who comes as the output ends, and whose pipe breaks, is told that there is no more: nothing else would end its attach.
func TestClientsOfAnOutputThatIsNoMoreAreTold(t *testing.T) {
	ended := func(a *attached) bool {
		select {
		case <-a.done:
			return true
		default:
			return false
		}
	}
	var h hub
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = write.Close() }()
	broken := h.join(map[crilog.Stream]*os.File{crilog.Stdout: write})
	other := h.join(nil)
	_ = read.Close()
	if n, err := h.writer(crilog.Stdout).Write([]byte("x")); n != 1 || err != nil {
		t.Errorf("written %d, %v", n, err)
	}
	if !ended(broken) || ended(other) || h.len() != 1 {
		t.Errorf("the one with the broken pipe: %t, the other: %t, left are %d", ended(broken), ended(other), h.len())
	}
	h.close()
	if late := h.join(nil); !ended(other) || !ended(late) || h.len() != 0 {
		t.Errorf("at the end: %t, after it: %t, left are %d", ended(other), ended(late), h.len())
	}
}

// Of clients that read nothing each is waited for once, and again when it has caught up: many of them would have the container wait all
// the time.
func TestWhoHasLostOutputIsNotWaitedFor(t *testing.T) {
	var h hub
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = read.Close() }()
	defer func() { _ = write.Close() }()
	client := h.join(map[crilog.Stream]*os.File{crilog.Stdout: write})
	put := func(n int) (dropped uint64) {
		before := client.dropped
		_, _ = h.writer(crilog.Stdout).Write(make([]byte, n))
		return client.dropped - before
	}
	client.patience = 0
	if put(1<<20) == 0 {
		t.Fatal("a pipe took all")
	}
	client.patience = time.Hour
	if n := put(1000); n != 1000 || client.patience != time.Hour {
		t.Errorf("%d bytes were dropped, and the patience is %v", n, client.patience)
	}
	if _, err := io.CopyN(io.Discard, read, 8<<10); err != nil {
		t.Fatal(err)
	}
	if n := put(1000); n != 0 {
		t.Errorf("of one that has caught up %d bytes were dropped", n)
	}
	if put(1<<20) == 0 || client.patience == time.Hour {
		t.Error("one that has caught up is not waited for")
	}
}

// An attach ends with its container, although a process outside of it (of a pod that shares its processes, or of the node) holds the
// container's output open.
func TestAnAttachEndsWithItsContainer(t *testing.T) {
	defer func(was time.Duration) { attachDrain = was }(attachDrain)
	attachDrain = time.Second
	f := newFixture(t, nil)
	made, err := f.Create(f.ctx(), "a", f.args("a", "/bin/sh", "-c", "sleep 1000 & echo last words"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(-made.PID, unix.SIGKILL) }() // which is in the same group
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = read.Close() }()
	attached, err := f.Attach(f.ctx(), "a", monitor.Stdio{Stdout: write})
	_ = write.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(f.ctx(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := attached.Wait(f.ctx()); err != nil {
		t.Fatalf("the container has ended, and its attach not: %v", err)
	}
	if said, err := io.ReadAll(read); err != nil || string(said) != "last words\n" {
		t.Errorf("it said %q, %v", said, err)
	}
}

// A container whose terminal does not come is none: its process ends, and its id is free.
func TestAContainerThatCannotBeConnectedToEnds(t *testing.T) {
	f := newFixture(t, nil)
	f.runtime.terminal = true
	if _, err := f.Create(f.ctx(), "a", f.args("a", "/bin/sleep", "1000")); err == nil {
		t.Fatal("it was made")
	}
	if f.runtime.made.cmd.ProcessState == nil {
		t.Errorf("process %d was not waited for", f.runtime.made.PID())
	}
	f.reaper.mu.Lock()
	if len(f.reaper.own) != 0 {
		t.Errorf("processes %v are still taken for containers'", f.reaper.own)
	}
	f.reaper.mu.Unlock()
	f.runtime.terminal = false
	f.run("a", f.args("a", "/bin/true"))
}

// Rows: R05 (part)
func TestPeersOfOtherVersionsAreUnderstood(t *testing.T) {
	f := newFixture(t, nil)
	ask := func(request string) monitor.Response {
		t.Helper()
		handle := must(os.Open(f.dir))
		defer func() { _ = handle.Close() }()
		raw, err := net.Dial("unix", "/proc/self/fd/"+itoa(int(handle.Fd()))+"/"+monitor.SocketName)
		if err != nil {
			t.Fatal(err)
		}
		conn := monitor.Conn{UnixConn: raw.(*net.UnixConn)}
		defer func() { _ = conn.Close() }()
		if err := conn.Send(json.RawMessage(request)); err != nil {
			t.Fatal(err)
		}
		var response monitor.Response
		if _, err := conn.Receive(&response); err != nil {
			t.Fatal(err)
		}
		return response
	}
	if r := ask(`{"version":2,"op":"hello","flavour":"new","args":{"x":[1]}}`); r.Error != nil {
		t.Fatalf("a newer daemon's hello: %+v", r.Error)
	}
	if r := ask(`{"op":"list"}`); r.Error != nil || string(r.Result) != "[]" {
		t.Fatalf("an older daemon's list: %+v", r)
	}
	if r := ask(`{"version":2,"op":"teleport","id":"a"}`); r.Error == nil || !errdefs.IsNotImplemented(r.Error.Err()) {
		t.Fatalf("an unknown operation: %+v", r)
	}
	spec, _ := json.Marshal(f.args("a", "/bin/true"))
	withMore := strings.TrimSuffix(string(spec), "}") + `,"later":{"deep":true}}`
	if r := ask(`{"version":2,"op":"create","id":"a","args":` + withMore + `}`); r.Error != nil {
		t.Fatalf("a newer daemon's create: %+v", r.Error)
	}
	if r := ask(`{"version":1,"op":"kill","id":"a","args":7}`); r.Error == nil || !errdefs.IsInvalidArgument(r.Error.Err()) {
		t.Fatalf("an argument of another form: %+v", r)
	}
	// An error of a class that this side does not know.
	if err := (&monitor.Error{Class: "Later", Message: "m"}).Err(); !errdefs.IsUnknown(err) {
		t.Fatal(err)
	}
}

// A creation that is served only after its caller has given it up, and has had it deleted, makes nothing.
func TestACreationThatWasGivenUpMakesNothing(t *testing.T) {
	f := newFixture(t, nil)
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	create := func(id string, giveUp bool) error {
		t.Helper()
		caller, err := net.Dial("unix", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = caller.Close() }()
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if giveUp {
			_ = caller.Close()
		}
		args, _ := json.Marshal(f.args(id, "/bin/sleep", "100"))
		c := &call{server: f.server, conn: monitor.Conn{UnixConn: conn.(*net.UnixConn)}, request: monitor.Request{Op: monitor.OpCreate, ID: id, Args: args}}
		_, err = c.create()
		return err
	}
	if err := f.Delete(f.ctx(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := create("a", true); !errdefs.IsAborted(err) {
		t.Errorf("given up: %v", err)
	}
	if states := must(f.List(f.ctx())); len(states) != 0 {
		t.Errorf("there is %+v", states)
	}
	if err := create("a", false); err != nil {
		t.Errorf("asked for again: %v", err)
	}
}

// A container whose maker leaves while it is made, as a daemon does that is killed, is taken back: the next daemon's list did not have it,
// and nobody would end it.
func TestAContainerWhoseMakerLeavesIsTakenBack(t *testing.T) {
	for name, ask := range map[string]func(*fixture, context.Context) error{
		"made": func(f *fixture, ctx context.Context) error {
			_, err := f.Create(ctx, "a", f.args("a", "/bin/sleep", "1000"))
			return err
		},
		"restored": func(f *fixture, ctx context.Context) error {
			_, err := f.Restore(ctx, "a", &monitor.RestoreArgs{CreateArgs: *f.args("a", "/bin/sleep", "1000")})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil)
			making, goOn := make(chan struct{}), make(chan struct{})
			f.runtime.plan = func() error { close(making); <-goOn; return nil }
			ctx, leave := context.WithCancel(f.ctx())
			asked := make(chan error, 1)
			go func() { asked <- ask(f, ctx) }()
			<-making
			leave()
			if err := <-asked; !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
			if states := must(f.List(f.ctx())); len(states) != 0 {
				t.Errorf("while it is made there is %+v", states)
			}
			close(goOn)
			pid := 0
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				f.runtime.mu.Lock()
				if f.runtime.made != nil {
					pid = f.runtime.made.PID()
				}
				f.runtime.mu.Unlock()
				if pid != 0 && errors.Is(unix.Kill(pid, 0), unix.ESRCH) && len(must(f.List(f.ctx()))) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("process %d is there still: %+v", pid, must(f.List(f.ctx())))
				}
			}
		})
	}
}

// A container that is deleted once more has a successor of the same id, cgroup and state by then.
func TestALateDeletionSparesTheSuccessor(t *testing.T) {
	f := newFixture(t, nil)
	f.run("a", f.args("a", "/bin/sleep", "1000"))
	f.server.mu.Lock()
	first := f.server.containers["a"]
	f.server.mu.Unlock()
	if err := f.Delete(f.ctx(), "a"); err != nil {
		t.Fatal(err)
	}
	f.run("a", f.args("a", "/bin/sleep", "1000"))
	before := must(f.State(f.ctx(), "a"))
	if err := first.delete(); err != nil {
		t.Error(err)
	}
	if st := must(f.State(f.ctx(), "a")); st.Status != monitor.StatusRunning || st.PID != before.PID {
		t.Errorf("%+v, before %+v", st, before)
	}
}

func TestErrorsKeepTheirClass(t *testing.T) {
	f := newFixture(t, nil)
	check := func(what string, err error, is func(error) bool) {
		t.Helper()
		if !is(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := f.Create(f.ctx(), "a", f.args("a"))
	check("bad spec", err, errdefs.IsInvalidArgument)
	_, err = f.Create(f.ctx(), "a", &monitor.CreateArgs{})
	check("no exit file", err, errdefs.IsInvalidArgument)
	args := f.args("a", "/bin/true")
	args.LogPath = "/elsewhere"
	_, err = f.Create(f.ctx(), "a", args)
	check("log outside", err, errdefs.IsInvalidArgument)
	_, err = f.Create(f.ctx(), "a", f.args("a", "/nowhere"))
	var start *monitor.StartError
	check("no command", err, func(err error) bool { return errors.As(err, &start) && start.ExitCode == 127 })
	_, err = f.Start(f.ctx(), "a")
	check("absent", err, errdefs.IsNotFound)
	f.run("a", f.args("a", "/bin/sleep", "100"))
	_, err = f.Start(f.ctx(), "a")
	check("started twice", err, errdefs.IsFailedPrecondition)
	_, err = f.Create(f.ctx(), "a", f.args("a", "/bin/true"))
	check("created twice", err, errdefs.IsAlreadyExists)
	check("a signal that is none", f.Signal(f.ctx(), "a", 99), errdefs.IsInvalidArgument)
	check("no terminal", f.Resize(f.ctx(), "a", 1, 1), errdefs.IsFailedPrecondition)
	check("not paused", f.Resume(f.ctx(), "a"), func(err error) bool { return err == nil })
	check("no criu", f.Checkpoint(f.ctx(), "a", &monitor.CheckpointArgs{}), errdefs.IsNotImplemented)
	check("busy", f.Shutdown(f.ctx()), errdefs.IsFailedPrecondition)
	if states := must(f.List(f.ctx())); len(states) != 1 || states[0].Status != monitor.StatusRunning {
		t.Fatalf("refusals changed something: %+v", states)
	}
}

// What makes a checkpoint may hang: it hears that nobody waits for it any more.
func TestACheckpointHearsThatItsCallerHasLeft(t *testing.T) {
	f := newFixture(t, nil)
	began, left := make(chan struct{}), make(chan struct{})
	f.runtime.checkpoint = func(ctx context.Context) error {
		close(began)
		<-ctx.Done()
		close(left)
		return ctx.Err()
	}
	f.run("a", f.args("a", "/bin/sleep", "1000"))
	ctx, leave := context.WithCancel(f.ctx())
	done := make(chan error, 1)
	go func() { done <- f.Checkpoint(ctx, "a", &monitor.CheckpointArgs{}) }()
	<-began
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller: %v", err)
	}
	select {
	case <-left:
	case <-f.ctx().Done():
		t.Error("it goes on for nobody")
	}
}

func TestShutdownAndTheEndOfAnUncommittedMonitor(t *testing.T) {
	f := newFixture(t, nil)
	if err := f.Commit(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := f.Shutdown(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := <-f.served; err != nil {
		t.Fatal(err)
	}
	t.Run("uncommitted", func(t *testing.T) {
		u := serving(t, func(c *monitor.Config) { c.CommitTimeout = 50 * time.Millisecond })
		select {
		case err := <-u.served:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("it serves on")
		}
	})
	t.Run("with a container", func(t *testing.T) {
		u := newFixture(t, nil)
		u.run("a", u.args("a", "/bin/sleep", "100"))
		if u.server.commitExpired() {
			t.Fatal("it takes its pod for recorded")
		}
		if states, err := u.List(u.ctx()); err != nil || len(states) != 1 {
			t.Fatalf("it left its container: %v, %v", states, err)
		}
		if err := u.Delete(u.ctx(), "a"); err != nil {
			t.Fatal(err)
		}
		u.server.commitExpired()
		if err := <-u.served; err != nil {
			t.Fatal(err)
		}
	})
}

// Rows: R12 (part)
func TestEverythingAtOnce(t *testing.T) {
	f := newFixture(t, nil)
	ctx := f.ctx()
	go func() { _ = f.Subscribe(ctx, func(monitor.Event) {}) }()
	var all sync.WaitGroup
	for i := range 6 {
		id := "c" + itoa(i%3)
		all.Go(func() {
			for range 8 {
				// Two goroutines share an id: every outcome but a hang, a panic or a data race is right.
				_, _ = f.Create(ctx, id, f.args(id, "/bin/sh", "-c", "echo x; sleep 0.01"))
				_, _ = f.Start(ctx, id)
				_ = f.ReopenLog(ctx, id)
				_, _ = f.List(ctx)
				if run, err := f.Exec(ctx, id, []byte(`{"args":["/bin/true"]}`), monitor.Stdio{}); err == nil {
					_, _ = run.Wait(ctx)
				}
				if a, err := f.Attach(ctx, id, monitor.Stdio{}); err == nil {
					_ = f.Signal(ctx, id, unix.SIGTERM)
					_, _ = a.Wait(ctx)
				}
				_, _ = f.Wait(ctx, id)
				_ = f.Delete(ctx, id)
			}
		})
	}
	all.Wait()
	if err := ctx.Err(); err != nil {
		t.Fatal(err)
	}
	if states := must(f.List(ctx)); len(states) != 0 {
		t.Fatalf("left: %+v", states)
	}
}

func TestSlowSubscriberIsCutOffAndNobodyWaitsForIt(t *testing.T) {
	var e events
	e.states = func() []monitor.State { return nil }
	sub := e.subscribe()
	for range eventQueue + 1 {
		e.publish(monitor.EventOOM, func() monitor.State { return monitor.State{ID: "a"} })
	}
	n := 0
	for range sub {
		n++
	}
	if n != eventQueue {
		t.Fatalf("%d events came before the cut", n)
	}
}

func TestOOMKilledIsAnExitByTheKill(t *testing.T) {
	for _, test := range []struct {
		status   unix.WaitStatus
		kills    uint64
		outlived uint64
		code     int
		oom      bool
	}{
		{0, 0, 0, 0, false},
		{0, 2, 0, 0, false},
		{unix.WaitStatus(unix.SIGKILL), 0, 0, 137, false},
		{unix.WaitStatus(unix.SIGKILL), 1, 0, 137, true},
		{unix.WaitStatus(unix.SIGKILL), 1, 1, 137, false}, // an exec's process was killed, and later it was stopped
		{unix.WaitStatus(unix.SIGKILL), 2, 1, 137, true},
		{137 << 8, 1, 0, 137, true}, // a shell's, whose child it was
		{1 << 8, 1, 0, 1, false},
	} {
		exit := exitOf("a", test.status, nil, test.kills, test.outlived, time.Now())
		if exit.Code != test.code || exit.OOMKilled != test.oom {
			t.Errorf("%v with %d kills: %+v", test.status, test.kills, exit)
		}
	}
	if exit := exitOf("a", 0, unix.ECHILD, 0, 0, time.Now()); exit.Code == 0 {
		t.Errorf("of one whose status nobody knows: %+v", exit)
	}
}

// starvedContainer has no descriptor for the list of its processes, a few times.
type starvedContainer struct {
	Container
	times int
	pids  []int
}

func (c *starvedContainer) PIDs() ([]int, error) {
	if c.times--; c.times >= 0 {
		return nil, unix.EMFILE
	}
	return c.pids, nil
}

func TestATreeIsKilledThatCouldNotBeSeenAtFirst(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo $!; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	var child int
	if _, err := fmt.Fscan(out, &child); err != nil {
		t.Fatal(err)
	}
	killTree(&starvedContainer{times: 3, pids: []int{cmd.Process.Pid, child}}, cmd.Process.Pid)
	_ = cmd.Wait() // by the signal
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child)); err == nil {
		if m, ok := parseStat(child, data); ok && m.session == cmd.Process.Pid {
			t.Error("the child lives")
		}
	}
}

func TestTreeFindsOrphansByTheirSession(t *testing.T) {
	all := []member{
		{pid: 10, parent: 1, session: 10},
		{pid: 11, parent: 10, session: 10},
		{pid: 12, parent: 1, session: 10},  // its parent is gone
		{pid: 13, parent: 12, session: 13}, // a session of its own
		{pid: 14, parent: 1, session: 13},  // whose other process lost its parent
		{pid: 20, parent: 1, session: 20},  // somebody else's
		{pid: 21, parent: 20, session: 20},
	}
	seen := map[int]struct{}{10: {}}
	if found := tree(all, seen); len(found) != 5 {
		t.Fatalf("found %+v", found)
	}
	// The next round finds by a session whose leader is gone.
	if found := tree([]member{{pid: 15, parent: 1, session: 13}, all[5]}, seen); len(found) != 1 || found[0].pid != 15 {
		t.Fatalf("found %+v", found)
	}
}

func TestExitFallsBackToTheRunDirectory(t *testing.T) {
	f := newFixture(t, nil)
	args := f.args("a", "/bin/sh", "-c", "exit 5")
	args.ExitFile = filepath.Join(f.dir, "absent", "exit")
	f.run("a", args)
	if exit := must(f.Wait(f.ctx(), "a")); exit.Code != 5 {
		t.Fatalf("exit %+v", exit)
	}
	var exit monitor.Exit
	data := must(os.ReadFile(filepath.Join(f.dir, monitor.FallbackExitName("a"))))
	if err := json.Unmarshal(data, &exit); err != nil || exit.Code != 5 {
		t.Fatalf("%s, %v", data, err)
	}
}

// An old exit that stays would be told of a container that runs.
func TestAnOldExitThatCannotBeRemovedFailsTheCreation(t *testing.T) {
	f := newFixture(t, nil)
	args := f.args("a", "/bin/sh", "-c", "exit 5")
	args.ExitFile = filepath.Join(f.dir, "folder")
	if err := os.MkdirAll(filepath.Join(args.ExitFile, "full"), 0o700); err != nil { // which os.Remove does not remove
		t.Fatal(err)
	}
	if _, err := f.Create(f.ctx(), "a", args); err == nil {
		t.Error("it was made")
	}
}

// The second lock, for who got past the mode of the folder: what another user sends is not even read.
//
// Rows: S57 (part)
func TestOnlyItsOwnUserIsAnswered(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("another user is root's to become")
	}
	f := serving(t, nil)
	for uid, want := range map[int]bool{0: true, 1000: false} {
		pair := make(chan [2]int, 1)
		go func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			// Of this thread alone; whose a pair of sockets is, is noted when it is made.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				t.Error(errno)
			}
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
			}
			pair <- fds
		}()
		var ends [2]monitor.Conn
		for i, fd := range <-pair {
			file := os.NewFile(uintptr(fd), "")
			conn, err := net.FileConn(file)
			if err != nil {
				t.Fatal(err)
			}
			_ = file.Close()
			ends[i] = monitor.Conn{UnixConn: conn.(*net.UnixConn)}
		}
		defer func() { _ = ends[0].Close() }()
		if err := ends[0].Send(monitor.Request{Version: monitor.Version, Op: monitor.OpHello}); err != nil {
			t.Fatal(err)
		}
		f.server.answer(ends[1])
		var response monitor.Response
		_, err := ends[0].Receive(&response)
		if got := err == nil && response.Error == nil && len(response.Result) > 0; got != want {
			t.Errorf("user %d is answered %+v, %v", uid, response, err)
		}
	}
	// A thread's other user made this process one that its own files in /proc are not of.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
}
