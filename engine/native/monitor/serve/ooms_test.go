package serve

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/internal/process"
)

// podOOMs are those of a pod whose cgroup counts what counts is told.
func podOOMs(t *testing.T) (o *ooms, counts func(kills int)) {
	dir := t.TempDir()
	counts = func(kills int) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "memory.events"), fmt.Appendf(nil, "low 0\nmax 7\noom %d\noom_kill %[1]d\noom_group_kill 0\n", kills), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &ooms{pod: dir, killed: func(*container) bool { return true }, live: map[*container]struct{}{}}, counts
}

func oomContainer(o *ooms) (*container, *fakeRuntime) {
	r := &fakeRuntime{}
	c := &container{runtime: &fakeContainer{runtime: r}}
	o.enter(c)
	return c, r
}

// Rows: R48 (part)
func TestAnOOMKillIsKnownAlthoughTheCgroupIsGone(t *testing.T) {
	o, counts := podOOMs(t)
	counts(2) // before there was a container
	killed, killedCgroup := oomContainer(o)
	other, otherCgroup := oomContainer(o)
	stopped, stoppedCgroup := oomContainer(o)
	// A process of the other, then the one container.
	otherCgroup.kills = 1
	counts(4)
	killedCgroup.gone = os.ErrNotExist
	if kills := o.leave(killed); kills != 1 {
		t.Errorf("%d kills of the one that was killed", kills)
	}
	stoppedCgroup.gone = os.ErrNotExist
	if kills := o.leave(stopped); kills != 0 {
		t.Errorf("%d kills of one whose cgroup was only removed", kills)
	}
	if kills := o.leave(other); kills != 1 {
		t.Errorf("%d kills of the one that can be asked", kills)
	}
	// What was of a container that could not be made is nobody's.
	last, lastCgroup := oomContainer(o)
	counts(5)
	o.settle()
	lastCgroup.gone = os.ErrNotExist
	last.oomKills.Add(1) // was told, and the count of the pod's cgroup has it
	counts(6)
	if kills := o.leave(last); kills != 1 {
		t.Errorf("%d kills of the one that was told of", kills)
	}
}

// Two containers of a pod that are killed in one moment get one kill each, whichever is asked for first; one that ended otherwise in that
// moment gets none of theirs.
//
// Rows: R48 (part)
func TestOOMKillsOfOneMomentAreToldApart(t *testing.T) {
	o, counts := podOOMs(t)
	first, firstCgroup := oomContainer(o)
	second, secondCgroup := oomContainer(o)
	asked, askedCgroup := oomContainer(o)
	done, doneCgroup := oomContainer(o)
	o.killed = func(c *container) bool { return c != done }
	asked.asked.Store(true)
	counts(2)
	for _, r := range []*fakeRuntime{firstCgroup, secondCgroup, askedCgroup, doneCgroup} {
		r.gone = os.ErrNotExist
	}
	for _, tt := range []struct {
		name string
		c    *container
		want uint64
	}{{"one that was asked to end", asked, 0}, {"one that ended by itself", done, 0}, {"the first", first, 1}, {"the second", second, 1}} {
		if kills := o.leave(tt.c); kills != tt.want {
			t.Errorf("%d kills of %s", kills, tt.name)
		}
	}
	// Somebody outside killed one of two.
	one, oneCgroup := oomContainer(o)
	two, twoCgroup := oomContainer(o)
	counts(3)
	oneCgroup.gone, twoCgroup.gone = os.ErrNotExist, os.ErrNotExist
	if kills := o.leave(one) + o.leave(two); kills != 1 {
		t.Errorf("%d kills of two containers", kills)
	}
}

func TestHowAContainerEndedIsSeenBeforeItIsReaped(t *testing.T) {
	for script, want := range map[string]bool{"kill -9 $$": true, "kill -15 $$": false, "exit 137": false, "exit 9": false} {
		p := &fakeContainer{}
		process, err := p.run([]string{"/bin/sh", "-c", script}, Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		p.fakeProcess = process
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, process.PID(), &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			t.Fatal(err)
		}
		if got := (&container{runtime: p}).killed(); got != want {
			t.Errorf("%s: %v", script, got)
		}
		if _, err := process.Wait(); err != nil {
			t.Errorf("%s: %v", script, err)
		}
	}
}

func TestWithoutACgroupOfThePodOnlyToldOOMKillsCount(t *testing.T) {
	for name, o := range map[string]*ooms{
		"version 1": {live: map[*container]struct{}{}, killed: func(*container) bool { return true }},
		"removed":   {pod: t.TempDir() + "/gone", live: map[*container]struct{}{}, killed: func(*container) bool { return true }},
	} {
		c, r := oomContainer(o)
		r.gone = os.ErrNotExist
		c.oomKills.Add(1)
		if kills := o.leave(c); kills != 1 {
			t.Errorf("%s: %d kills", name, kills)
		}
	}
}

// oomKill has the cgroup of the last container count one more kill; told says that the monitor hears of it.
func (r *fakeRuntime) oomKill(told bool) {
	r.mu.Lock()
	r.kills++
	kills, notify := r.kills, r.notify
	r.mu.Unlock()
	if told {
		notify(kills)
	}
}

// The end of a container is of the OOM kills that its first process did not live on after, whoever killed it.
//
// Rows: R48 (part)
func TestAnOOMKillThatWasOutlivedIsNoReasonOfTheEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		outlived bool // the kill of a child, by the first process
		first    bool // the first process is killed for want of memory
		want     bool
	}{
		"killed by somebody later":                 {true, false, false},
		"killed for want of memory, later":         {true, true, true},
		"killed for want of memory, after a child": {false, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, nil)
			f.run("a", f.args("a", "/bin/sleep", "1000"))
			f.server.mu.Lock()
			c := f.server.containers["a"]
			f.server.mu.Unlock()
			f.runtime.oomKill(true)
			for deadline := time.Now().Add(30 * time.Second); tt.outlived && c.outlivedOOMKills.Load() == 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the kill of a child is never outlived")
				}
			}
			kills := uint64(1)
			if tt.first {
				f.runtime.oomKill(false)
				kills++
			}
			if err := unix.Kill(c.runtime.PID(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if exit := must(f.Wait(f.ctx(), "a")); exit.Code != 137 || exit.OOMKills != kills || exit.OOMKilled != tt.want {
				t.Errorf("%+v", exit)
			}
		})
	}
}

// One with much memory is there for a while after it was killed.
//
// Rows: R48 (part)
func TestWhoEndsOfAKillDoesNotLive(t *testing.T) {
	runtime.LockOSThread() // only the thread that traces a process may ask for more
	defer runtime.UnlockOSThread()
	p := &fakeContainer{}
	child, err := p.run([]string{"/bin/sleep", "1000"}, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	p.fakeProcess = child
	watch, err := process.WatchExit(child.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	c := &container{runtime: p, watch: watch}
	if !c.lives() {
		t.Error("one that was not killed")
	}
	var status unix.WaitStatus
	stopped := func() {
		t.Helper()
		if _, err := unix.Wait4(child.PID(), &status, 0, nil); err != nil || !status.Stopped() {
			t.Fatalf("%v, %v", status, err)
		}
	}
	if err := unix.PtraceAttach(child.PID()); err != nil {
		t.Skipf("no tracing here: %v", err)
	}
	stopped()
	// It stops once more on the way out.
	if err := errors.Join(unix.PtraceSetOptions(child.PID(), unix.PTRACE_O_TRACEEXIT), unix.PtraceCont(child.PID(), 0), unix.Kill(child.PID(), unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	stopped()
	if !watch.Alive() || c.lives() {
		t.Errorf("it is there still: %v, and lives: %v", watch.Alive(), c.lives())
	}
	if err := unix.PtraceDetach(child.PID()); err != nil {
		t.Fatal(err)
	}
	if _, err := child.Wait(); err != nil || c.lives() {
		t.Errorf("%v, and lives: %v", err, c.lives())
	}
}
