package logpump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crishim/crilog"

	"golang.org/x/sys/unix"
)

// The disk is full while a bounded log grows over its bound; then comes a crash right after the log was set aside.
//
// Rows: S54 (part), R29 (part)
func TestAFullDiskAndACrashOfABoundedLog(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	var left atomic.Int64
	left.Store(1 << 30)
	var setAsides, dieAt atomic.Int64
	dieAt.Store(1 << 30)
	h := hooks{
		step: func(name string) error {
			if name == "logpump/begun anew" && setAsides.Add(1) == dieAt.Load() {
				runtime.Goexit()
			}
			return nil
		},
		write: func(f *os.File, b []byte) (int, error) {
			n := int(min(int64(len(b)), left.Load()))
			if n < len(b) { // to the end of an entry
				n = bytes.LastIndexByte(b[:n], '\n') + 1
			}
			left.Add(-int64(n))
			m, err := f.Write(b[:n])
			if err == nil && m < len(b) {
				err = unix.ENOSPC
			}
			return m, err
		},
	}
	o := Options{Dir: t.TempDir(), MaxSize: 4000}
	ps, err := newPumps(t.Context(), o, h)
	must(t, err)
	must(t, ps.Start(k.container(d)))
	lines := 0
	write := func(n int) {
		for range n {
			d.log(crilog.Stdout, fmt.Sprintf("line %d %s\n", lines, strings.Repeat("x", 50)))
			lines++
		}
	}
	until := func(done func() bool) { t.Helper(); poll(t, done) }
	at := func() string { return fmt.Sprintf("line %d ", lines-1) }
	seen := func() bool { return bytes.Contains(k.log(), []byte(at())) }
	// First log A fills over the bound, is set aside: the position tells of A.
	write(40)
	until(seen)
	write(1)
	until(seen)
	for setAsides.Load() == 0 {
		write(1)
		until(seen)
	}
	// B, young, is nearly full; no position is saved in it yet.
	for {
		info, err := os.Stat(k.path)
		must(t, err)
		if info.Size() > 3700 {
			left.Store(4000 - info.Size() + 300)
			break
		}
		write(1)
		until(seen)
	}
	write(30) // one batch, most likely; fails at an entry's end with B over its bound
	until(func() bool { return ps.Stats().WriteErrors > 0 })
	dieAt.Store(setAsides.Load() + 1)
	left.Store(1 << 30)
	until(func() bool { write(1); return ps.running("c0ffee") == nil })
	var c crasher
	c.kill(ps)
	ps = (&crasher{}).startBounded(t, Options{Dir: o.Dir, MaxSize: 1 << 30}, k.container(d))
	finish(t, ps, "c0ffee")
	ps.Close()
	there, err := os.ReadFile(k.path + crilog.OverflowSuffix)
	must(t, err)
	if there = append(there, k.log()...); !bytes.HasSuffix(d.expected(), there) {
		t.Errorf("doubled or lost: %d bytes in overflow and log, expected %d in all", len(there), len(d.expected()))
	}
}

// After a crash the log holds more than the position says; the kubelet rotates while that is compared.
//
// Rows: R29 (part)
func TestAReopenWhileTheLogIsCompared(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	dir := t.TempDir()
	ps := newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "first\n")
	waitLog(t, k, d.expected())
	ps.Close()
	old, err := os.ReadFile(filepath.Join(dir, "c0ffee.json"))
	must(t, err)
	ps = newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	for i := range 8000 {
		d.log(crilog.Stdout, fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", 50)))
	}
	waitLog(t, k, d.expected())
	ps.Close()
	must(t, os.WriteFile(filepath.Join(dir, "c0ffee.json"), old, 0o600)) // as kill -9 within the second leaves it
	ps = newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	if err := k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }); err != nil {
		t.Log("refused:", err)
	}
	d.log(crilog.Stdout, "last\n")
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
}

// The answer to ReopenContainerLog does not reach the kubelet, which takes its rename back.
//
// Rows: R29 (part)
func TestAReopenThatTheKubeletTakesBack(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	waitLog(t, k, d.expected())
	_ = k.rotate(func() error {
		must(t, ps.Reopen(t.Context(), "c0ffee"))
		return context.DeadlineExceeded
	})
	d.log(crilog.Stdout, "two\n")
	time.Sleep(300 * time.Millisecond)
	must(t, k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }))
	d.log(crilog.Stdout, "three\n")
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
}

// endless is one line of a terminal that has no end before max bytes.
type endless struct {
	n, max int64
	began  bool
}

func (e *endless) Read(p []byte) (int, error) {
	if !e.began {
		e.began = true
		return copy(p, "2024-02-29T12:00:00Z "), nil
	}
	if e.n >= e.max {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = 'x'
	}
	e.n += int64(len(p))
	return len(p), nil
}

// A terminal's line without an end, through the API.
//
// Rows: S54 (part)
func TestALineWithoutEndThroughTheAPI(t *testing.T) {
	k := newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	var opens atomic.Int64
	source := func(context.Context, time.Time) (io.ReadCloser, error) {
		if opens.Add(1) > 1 {
			return nil, errors.New("once")
		}
		return io.NopCloser(&endless{max: 128 << 20}), nil
	}
	must(t, ps.Start(Container{ID: "c0ffee", Source: source, LogPath: k.path, LogRoot: k.root, TTY: true}))
	var most uint64
	poll(t, func() bool {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc)
		return opens.Load() > 1 // the first was read to its end
	})
	if most > 64<<20 {
		t.Errorf("%d MiB for 128 MiB of one line", most>>20)
	}
}

// The connection breaks in the middle of a terminal's line.
func TestABrokenStreamOfATerminal(t *testing.T) {
	k := newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	var opens atomic.Int64
	source := func(ctx context.Context, _ time.Time) (io.ReadCloser, error) {
		const whole = "2024-02-29T12:00:00Z one whole line\r\n"
		if opens.Add(1) == 1 {
			return io.NopCloser(io.MultiReader(strings.NewReader(whole[:len(whole)-10]), brokenReader{})), nil
		}
		return io.NopCloser(strings.NewReader(whole)), nil
	}
	must(t, ps.Start(Container{ID: "c0ffee", Source: source, LogPath: k.path, LogRoot: k.root, TTY: true}))
	poll(t, func() bool { return opens.Load() > 1 })
	finish(t, ps, "c0ffee")
	if got := string(k.log()); got != "2024-02-29T12:00:00Z stdout F one whole line\n" {
		t.Errorf("the log is %q", got)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Without a position the last line is compared from its beginning, however long it is.
func TestALongLastLineWithoutAPosition(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	dir := t.TempDir()
	ps := newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	for range 20 {
		d.log(crilog.Stdout, strings.Repeat("x", 16<<10))
	}
	d.log(crilog.Stdout, "end\n")
	waitLog(t, k, d.expected())
	ps.Close()
	must(t, os.Remove(filepath.Join(dir, "c0ffee.json")))
	ps = newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "two\n")
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
}

// The kubelet takes a reopen back after something was written, and rotates again before the pump looks.
//
// Rows: R29 (part)
func TestAReopenThatIsTakenBackFromAQuietContainer(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	waitLog(t, k, d.expected())
	_ = k.rotate(func() error {
		must(t, ps.Reopen(t.Context(), "c0ffee"))
		d.log(crilog.Stdout, "two\n")
		poll(t, func() bool { info, err := os.Stat(k.path); return err == nil && info.Size() > 0 })
		return context.DeadlineExceeded
	})
	must(t, os.Rename(k.path, k.path+".000007"))
	k.rotated = append(k.rotated, k.path+".000007")
	must(t, ps.Reopen(t.Context(), "c0ffee"))
	d.log(crilog.Stdout, "three\n")
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
}

// As before, but of the next reopen, too, the kubelet has no answer: what was carried into that one's new file is nowhere else.
//
// Rows: R29 (part)
func TestAReopenThatIsTakenBackTwice(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	waitLog(t, k, d.expected())
	_ = k.rotate(func() error {
		must(t, ps.Reopen(t.Context(), "c0ffee"))
		d.log(crilog.Stdout, "two\n")
		poll(t, func() bool { info, err := os.Stat(k.path); return err == nil && info.Size() > 0 })
		return context.DeadlineExceeded
	})
	must(t, os.Rename(k.path, k.path+".000007"))
	must(t, ps.Reopen(t.Context(), "c0ffee"))
	must(t, os.Rename(k.path+".000007", k.path))
	must(t, os.Rename(k.path, k.path+".000008"))
	k.rotated = append(k.rotated, k.path+".000008")
	must(t, ps.Reopen(t.Context(), "c0ffee"))
	d.log(crilog.Stdout, "three\n")
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
}

// The disk of the positions is full while the kubelet rotates twice, and then comes a crash: the position tells of a log between
// which and the newest there is one more.
//
// Rows: R29 (part)
func TestACrashAfterRotationsWithoutASavedPosition(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	var full atomic.Bool
	h := hooks{write: (*os.File).Write, step: func(name string) error {
		if name == "logpump/save" && full.Load() {
			return unix.ENOSPC
		}
		return nil
	}}
	dir := t.TempDir()
	ps, err := newPumps(t.Context(), Options{Dir: dir}, h)
	must(t, err)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	waitLog(t, k, d.expected())
	must(t, k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }))
	full.Store(true)
	for _, line := range []string{"two\n", "three\n", "four\n"} {
		d.log(crilog.Stdout, line)
		waitLog(t, k, d.expected())
		if err := k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }); err != nil {
			t.Log("refused:", err)
		}
	}
	var c crasher
	c.kill(ps)
	ps = (&crasher{}).start(t, dir, k.container(d))
	d.log(crilog.Stdout, "five\n")
	finish(t, ps, "c0ffee")
	ps.Close()
	checkLog(t, k, d.expected())
}

// What somebody has emptied has room again: it is not set aside in place of what was full.
func TestABoundedLogThatWasEmptiedIsNotSetAside(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps, err := New(t.Context(), Options{Dir: t.TempDir(), MaxSize: 4000})
	must(t, err)
	t.Cleanup(ps.Close)
	must(t, ps.Start(k.container(d)))
	must(t, os.WriteFile(k.path+crilog.OverflowSuffix, []byte("older"), 0o600))
	written := 0
	for i := range 3 {
		must(t, os.Truncate(k.path, 0))
		d.log(crilog.Stdout, fmt.Sprintf("%d %s\n", i, strings.Repeat("x", 3000)))
		want := d.expected()[written:]
		written += len(want)
		waitLog(t, k, want)
	}
	if data, err := os.ReadFile(k.path + crilog.OverflowSuffix); err != nil || string(data) != "older" {
		t.Errorf("the overflow has %q, %v", data, err)
	}
}
