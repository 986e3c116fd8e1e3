package serve

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
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
	return &ooms{pod: dir, live: map[*container]struct{}{}}, counts
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

func TestWithoutACgroupOfThePodOnlyToldOOMKillsCount(t *testing.T) {
	for name, o := range map[string]*ooms{
		"version 1": {live: map[*container]struct{}{}},
		"removed":   {pod: t.TempDir() + "/gone", live: map[*container]struct{}{}},
	} {
		c, r := oomContainer(o)
		r.gone = os.ErrNotExist
		c.oomKills.Add(1)
		if kills := o.leave(c); kills != 1 {
			t.Errorf("%s: %d kills", name, kills)
		}
	}
}
