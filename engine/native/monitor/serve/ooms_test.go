package serve

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
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
