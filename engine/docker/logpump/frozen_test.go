package logpump

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"crishim/crilog"
)

// frozenDisk is the disk of one log, on which a write does not return before thaw.
type frozenDisk struct {
	of     atomic.Pointer[kubelet]
	thawed chan struct{}
	stuck  atomic.Int32
}

func newFrozenDisk() *frozenDisk { return &frozenDisk{thawed: make(chan struct{})} }

func (d *frozenDisk) thaw() { close(d.thawed) }

// pumps save their position at each line.
func (d *frozenDisk) pumps(t *testing.T, dir string) *Pumps {
	t.Helper()
	ps, err := newPumps(t.Context(), Options{Dir: dir}, hooks{
		step: func(string) error { return nil },
		write: func(f *os.File, b []byte) (int, error) {
			if k := d.of.Load(); k != nil && f.Name() == k.path {
				d.stuck.Add(1)
				<-d.thawed
				d.stuck.Add(-1)
			}
			return f.Write(b)
		},
	})
	must(t, err)
	ps.saveBytes, ps.closeLimit = 1, 10*time.Millisecond
	return ps
}

// briefly is a context that ends soon.
func briefly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func wantLate(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s while the disk hangs: %v", what, err)
	}
}

// A write that hangs (a frozen disk, an NFS server that is away) holds up its own pump: its container can be forgotten, others'
// logs go on, and when the write returns nothing is left.
//
// Rows: R28 (part)
func TestAWriteThatHangsHoldsUpItsOwnPumpOnly(t *testing.T) {
	before := runtime.NumGoroutine()
	dir, disk := t.TempDir(), newFrozenDisk()
	ps := disk.pumps(t, dir)
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "saved\n")
	poll(t, func() bool { return ps.Knows("c0ffee") })
	disk.of.Store(k)
	d.log(crilog.Stdout, "stuck\n")
	poll(t, func() bool { return disk.stuck.Load() > 0 })

	wantLate(t, "Finish", ps.Finish(briefly(t), "c0ffee"))
	wantLate(t, "Reopen", ps.Reopen(briefly(t), "c0ffee"))
	wantLate(t, "Forget", ps.Forget(briefly(t), "c0ffee"))
	wantLate(t, "Forget again", ps.Forget(briefly(t), "c0ffee"))
	besideLog, beside := newDockerLog(t, 0, 1), newKubelet(t)
	other := beside.container(besideLog)
	other.ID = "beside"
	must(t, ps.Start(other))
	besideLog.log(crilog.Stdout, "goes on\n")
	waitLog(t, beside, besideLog.expected())
	must(t, ps.Forget(t.Context(), "beside"))

	disk.thaw()
	waitLog(t, k, d.expected())
	must(t, ps.Forget(t.Context(), "c0ffee"))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	ps.Close()
	poll(t, func() bool { return runtime.NumGoroutine() <= before })
}

// While a write of a container that is gone hangs, no other goroutine writes to its log.
//
// Rows: R28 (part)
func TestANewPumpWaitsForOneThatHangsInItsLog(t *testing.T) {
	for _, id := range []string{"c0ffee", "next"} {
		t.Run(id, func(t *testing.T) {
			disk := newFrozenDisk()
			ps := disk.pumps(t, t.TempDir())
			t.Cleanup(ps.Close)
			d, k := newDockerLog(t, 0, 1), newKubelet(t)
			must(t, ps.Start(k.container(d)))
			disk.of.Store(k)
			d.log(crilog.Stdout, "stuck\n")
			poll(t, func() bool { return disk.stuck.Load() > 0 })
			wantLate(t, "Forget", ps.Forget(briefly(t), "c0ffee"))
			next := newDockerLog(t, 0, 1)
			next.clock = d.clock.Add(time.Second)
			next.log(crilog.Stdout, "of the next\n")
			c := k.container(next)
			c.ID = id
			begun := make(chan error, 1)
			go func() { begun <- ps.Start(c) }()
			select {
			case err := <-begun:
				t.Errorf("it does not wait: %v", err)
				begun <- err
			case <-time.After(20 * time.Millisecond):
			}
			disk.thaw()
			must(t, <-begun)
			waitLog(t, k, append(d.expected(), next.expected()...))
			if id != "c0ffee" && ps.Knows("c0ffee") {
				t.Error("the position of the one that is gone is left")
			}
		})
	}
}

// What is forgotten while its write hangs is gone when that returns, without anybody who asks once more.
//
// Rows: R28 (part)
func TestAForgottenPumpEndsWhenItsWriteReturns(t *testing.T) {
	dir, disk := t.TempDir(), newFrozenDisk()
	ps := disk.pumps(t, dir)
	t.Cleanup(ps.Close)
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "saved\n")
	poll(t, func() bool { return ps.Knows("c0ffee") })
	disk.of.Store(k)
	d.log(crilog.Stdout, "stuck\n")
	poll(t, func() bool { return disk.stuck.Load() > 0 })
	wantLate(t, "Forget", ps.Forget(briefly(t), "c0ffee"))
	disk.thaw()
	poll(t, func() bool {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0 && len(ps.ending) == 0
	})
	checkLog(t, k, d.expected())
}

// A daemon that is stopped does not wait for a disk that hangs. What the write was of is in the log once.
//
// Rows: R28 (part)
func TestClosingDoesNotWaitForAWriteThatHangs(t *testing.T) {
	dir, disk := t.TempDir(), newFrozenDisk()
	ps := disk.pumps(t, dir)
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "saved\n")
	waitLog(t, k, d.expected())
	disk.of.Store(k)
	d.log(crilog.Stdout, "stuck\n")
	poll(t, func() bool { return disk.stuck.Load() > 0 })
	p := ps.running("c0ffee")
	ps.Close()
	disk.thaw()
	<-p.done
	d.log(crilog.Stdout, "while nobody was there\n")
	ps = newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
}

// NFS writes what it was given when the file is closed.
//
// Rows: R28 (part)
func TestFinishDoesNotWaitForAnEndThatHangs(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	thawed := make(chan struct{})
	p := ps.running("c0ffee")
	unwatch := p.unwatch
	p.unwatch = func() { unwatch(); <-thawed }
	wantLate(t, "Finish", ps.Finish(briefly(t), "c0ffee"))
	close(thawed)
	<-p.done
}
