package logpump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"crishim/crilog"
	"crishim/internal/rowsize"
)

// crasher ends the goroutine of a pump, as kill -9 would: in the middle of a write after so many bytes, or at a step.
type crasher struct {
	mu      sync.Mutex
	armed   bool
	bytes   int // until the crash, counting each step as one byte
	crashed bool
}

func (c *crasher) arm(bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed, c.bytes, c.crashed = true, bytes, false
}

func (c *crasher) spend(n int) (left int, crash bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.armed {
		return n, false
	}
	if c.crashed || c.bytes < n {
		c.crashed = true
		left, c.bytes = c.bytes, 0
		return left, true
	}
	c.bytes -= n
	return n, false
}

func (c *crasher) hooks() hooks {
	return hooks{
		write: func(f *os.File, b []byte) (int, error) {
			n, crash := c.spend(len(b))
			m, err := f.Write(b[:n])
			if crash {
				runtime.Goexit()
			}
			return m, err
		},
		step: func(string) error {
			if _, crash := c.spend(1); crash {
				runtime.Goexit()
			}
			return nil
		},
	}
}

func (c *crasher) start(t testing.TB, dir string, container Container) *Pumps {
	t.Helper()
	return c.startBounded(t, Options{Dir: dir}, container)
}

func (c *crasher) startBounded(t testing.TB, options Options, container Container) *Pumps {
	t.Helper()
	ps, err := newPumps(t.Context(), options, c.hooks())
	must(t, err)
	ps.saveBytes = 200
	must(t, ps.Start(container))
	return ps
}

// kill ends a Pumps without anything that Close does for the logs.
func (c *crasher) kill(ps *Pumps) {
	c.arm(0)
	ps.mu.Lock()
	pumps := ps.pumps
	ps.pumps = nil
	ps.closed = true
	ps.mu.Unlock()
	for _, p := range pumps {
		p.halt() // its save meets the crash
	}
	ps.cancel()
	ps.notify.close()
}

// TestACrashAtEachByteLosesAndDoublesNothing runs one story, with a rotation of each kind in it, once for each byte that is
// written and each step between (in `make counts`; else for each third).
//
// Rows: R29
func TestACrashAtEachByteLosesAndDoublesNothing(t *testing.T) {
	story := func(t *testing.T, budget int) (crashed bool) {
		d, k := newDockerLog(t, 300, 10), newKubelet(t)
		dir := t.TempDir()
		var c crasher
		c.arm(budget)
		ps := c.start(t, dir, k.container(d))
		revive := func() {
			crashed = true
			c.kill(ps)
			c.armed = false
			ps = c.start(t, dir, k.container(d))
		}
		for round := range 2 {
			d.log(crilog.Stdout, "one\n")
			d.log(crilog.Stderr, "two")
			d.log(crilog.Stderr, "two\n")
			want := len(d.expected())
			for len(k.log()) < want {
				if ps.running("c0ffee") == nil {
					revive()
				}
				time.Sleep(50 * time.Microsecond)
			}
			if round == 0 {
				if err := k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }); err != nil {
					revive()
				}
			}
		}
		finish(t, ps, "c0ffee")
		if ps.running("c0ffee") == nil && c.crashed {
			revive()
			finish(t, ps, "c0ffee")
		}
		ps.Close()
		checkLog(t, k, d.expected())
		return crashed
	}
	budget, step := 0, rowsize.Of(3, 1)
	for ; story(t, budget); budget += step {
	}
	if budget < 240 {
		t.Fatalf("only %d bytes and steps", budget)
	}
	t.Logf("%d crashes", budget/step)
}

// A log that is set aside again and again, with a crash at each byte and step: what is there is the end of the output, whole.
//
// Rows: S54 (part), R29 (part)
func TestACrashOfABoundedLogLosesAndDoublesNothing(t *testing.T) {
	const lines = 12
	story := func(t *testing.T, budget int) (crashed bool) {
		d, k := newDockerLog(t, 0, 1), newKubelet(t)
		var c crasher
		c.arm(budget)
		options := Options{Dir: t.TempDir(), MaxSize: 120} // two lines and a half
		ps := c.startBounded(t, options, k.container(d))
		revive := func() {
			crashed = true
			c.kill(ps)
			c.armed = false
			ps = c.startBounded(t, options, k.container(d))
		}
		overflow := k.path + crilog.OverflowSuffix
		for i := range lines {
			d.log(crilog.Stdout, fmt.Sprintf("line %d\n", i))
			last := d.expected()[strings.LastIndexByte(strings.TrimSuffix(string(d.expected()), "\n"), '\n')+1:]
			poll(t, func() bool {
				if ps.running("c0ffee") == nil {
					revive()
				}
				return bytes.HasSuffix(k.log(), last)
			})
			if i == lines/2 { // the kubelet and the bound use the same name
				old := k.path + ".1"
				must(t, os.Rename(k.path, old))
				if ps.Reopen(t.Context(), "c0ffee") != nil {
					revive()
					must(t, ps.Reopen(t.Context(), "c0ffee"))
				}
				data, err := os.ReadFile(old)
				must(t, err)
				if before, _ := os.ReadFile(overflow); !bytes.Equal(append(before, data...), d.expected()[len(d.expected())-len(before)-len(data):]) {
					t.Fatalf("crash after %d: the overflow is %q, the rotated log %q", budget, before, data)
				}
				must(t, os.Remove(overflow))
				must(t, os.WriteFile(overflow, data, 0o640))
			}
		}
		ps.Close()
		there, err := os.ReadFile(overflow)
		must(t, err)
		if data := k.log(); len(data) > 3*50 || len(there) > 4*50 {
			t.Errorf("crash after %d: %d and %d bytes", budget, len(there), len(data))
		}
		if there = append(there, k.log()...); len(there) < 3*47 || !bytes.HasSuffix(d.expected(), there) {
			t.Errorf("crash after %d: there is %q", budget, there)
		}
		return crashed
	}
	budget, step := 0, rowsize.Of(7, 1)
	for ; story(t, budget); budget += step {
	}
	if budget < lines*40 {
		t.Fatalf("only %d bytes and steps", budget)
	}
	t.Logf("%d crashes", budget/step)
}

// TestRandomStories lets everything happen in any order: lines of all kinds, Docker's rotation, the kubelet's, crashes, orderly
// restarts and lost positions. The log must be what Docker was given, byte for byte.
//
// Rows: R29 (part)
func TestRandomStories(t *testing.T) {
	for seed := range rowsize.Of(4, 200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomStory(t, uint64(seed)) })
	}
}

func randomStory(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	d, k := newDockerLog(t, 2000+int64(random.IntN(20_000)), 1000), newKubelet(t)
	d.tty = seed%4 == 0
	dir := t.TempDir()
	var c crasher
	ps := c.start(t, dir, k.container(d))
	revive := func() {
		c.kill(ps)
		c.mu.Lock()
		c.armed = false
		c.mu.Unlock()
		ps = c.start(t, dir, k.container(d))
	}
	for range 100 {
		switch random.IntN(12) {
		case 0:
			c.arm(random.IntN(3000))
		case 1:
			revive()
		case 2:
			ps.Close()
			ps = c.start(t, dir, k.container(d))
		case 3, 4:
			if err := k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }); err != nil {
				revive()
			}
		case 5:
			finishOrRevive(t, ps, revive)
			must(t, ps.Start(k.container(d)))
		case 6:
			time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
		default:
			for range random.IntN(30) {
				d.log([]crilog.Stream{crilog.Stdout, crilog.Stderr}[random.IntN(2)], randomText(random))
			}
		}
		if ps.running("c0ffee") == nil {
			revive()
		}
	}
	revive()
	finish(t, ps, "c0ffee")
	ps.Close()
	checkLog(t, k, d.expected())
	if s := ps.Stats(); s.Gaps > 0 || s.BadLines > 0 {
		t.Fatalf("%+v", s)
	}
}

func finishOrRevive(t *testing.T, ps *Pumps, revive func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := ps.Finish(ctx, "c0ffee")
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err != nil {
		revive()
	}
}

func randomText(random *rand.Rand) string {
	text := strings.Repeat(string(rune('a'+random.IntN(26))), random.IntN(300))
	switch random.IntN(20) {
	case 0:
		return strings.Repeat("long ", 4000) + "\n"
	case 1, 2:
		return strings.Repeat("p", 16<<10) // a part of a line
	case 3:
		return text + "\r\n"
	case 4:
		return "\n"
	}
	return text + "\n"
}

// TestACrashRightAfterAReopenDoublesNothing: the log is rotated before its position was ever saved, and the kubelet dies with
// us, so that it does not take its rename back.
//
// Rows: R29 (part)
func TestACrashRightAfterAReopenDoublesNothing(t *testing.T) {
	d, k := newDockerLog(t, 300, 10), newKubelet(t)
	dir := t.TempDir()
	dies := hooks{write: (*os.File).Write, step: func(name string) error {
		if name == "logpump/reopened" {
			runtime.Goexit()
		}
		return nil
	}}
	ps, err := newPumps(t.Context(), Options{Dir: dir}, dies)
	must(t, err)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	for len(k.log()) < len(d.expected()) {
		time.Sleep(50 * time.Microsecond)
	}
	k.rotated = append(k.rotated, k.path+".000000")
	must(t, os.Rename(k.path, k.rotated[0]))
	if err := ps.Reopen(t.Context(), "c0ffee"); err == nil {
		t.Fatal("the reopen did not die")
	}
	var c crasher
	c.kill(ps)
	ps = (&crasher{}).start(t, dir, k.container(d))
	d.log(crilog.Stdout, "two\n")
	finish(t, ps, "c0ffee")
	ps.Close()
	checkLog(t, k, d.expected())
}
