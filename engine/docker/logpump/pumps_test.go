package logpump

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crishim/crilog"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestLinesReachTheLogAsTheyAreWritten(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	d.log(crilog.Stdout, "before the start\n")
	must(t, ps.Start(k.container(d)))
	must(t, ps.Start(k.container(d))) // again
	d.log(crilog.Stderr, "a line\n")
	d.log(crilog.Stdout, "\n")
	d.log(crilog.Stdout, strings.Repeat("x", 16<<10))
	d.log(crilog.Stdout, "the end of it\r\n")
	d.log(crilog.Stdout, strings.Repeat("\uFFFD", 16<<10)+"\n") // invalid bytes became three each
	d.log(crilog.Stdout, "no newline")
	waitLog(t, k, d.expected())
	finish(t, ps, "c0ffee")
	finish(t, ps, "c0ffee")
	if s := ps.Stats(); s.Entries != 7 || s.Bytes != uint64(len(d.want)) || s.Gaps+s.BadLines+s.WriteErrors+s.ReadErrors+s.SaveErrors != 0 {
		t.Fatalf("counted %+v for %d bytes", s, len(d.want))
	}
}

func TestTerminalNewlinesAreTrimmed(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	d.tty = true
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "hello\r\n")
	d.log(crilog.Stdout, "a\rb\r\n")
	d.log(crilog.Stdout, "$ ")
	waitLog(t, k, d.expected())
}

func TestALineTakesLessThanTwentyMilliseconds(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	const most = 20 * time.Millisecond
	best := time.Hour // a loaded machine may be late mostly, a poll each 100 ms always is
	for i := 0; i < 20 || best > most && i < 500; i++ {
		begin := time.Now()
		d.log(crilog.Stdout, fmt.Sprintf("line %d\n", i))
		want := len(d.expected())
		poll(t, func() bool {
			info, err := os.Stat(k.path)
			return err == nil && info.Size() == int64(want)
		})
		best = min(best, time.Since(begin))
	}
	if best > most {
		t.Fatalf("the fastest line took %v", best)
	}
}

func TestTheFileMayBeMadeAfterTheStart(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	must(t, os.Remove(d.path))
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	if _, err := os.Stat(k.path); err != nil {
		t.Fatalf("the log exists from the start on: %v", err)
	}
	d.open()
	d.log(crilog.Stdout, "first\n")
	waitLog(t, k, d.expected())
}

// Rows: R29
func TestRestartGoesOnWhereItWas(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	dir := t.TempDir()
	for i := range 5 {
		ps := newTestPumps(t, dir)
		must(t, ps.Start(k.container(d)))
		d.log(crilog.Stdout, fmt.Sprintf("up %d\n", i))
		waitLog(t, k, d.expected())
		ps.Close()
		d.log(crilog.Stdout, fmt.Sprintf("down %d\n", i))
	}
	ps := newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())

	// A finished log that was removed does not come back, nor does its folder, and going over it again adds nothing.
	for _, removed := range []string{k.path, filepath.Dir(k.path), k.root} {
		must(t, os.RemoveAll(removed))
		must(t, ps.Start(k.container(d)))
		finish(t, ps, "c0ffee")
		if _, err := os.Stat(removed); !os.IsNotExist(err) {
			t.Fatalf("the removed %s: %v", removed, err)
		}
	}
	if ids, err := ps.Known(); err != nil || len(ids) != 1 || ids[0] != "c0ffee" {
		t.Fatalf("known: %v, %v", ids, err)
	}
	must(t, ps.Forget(t.Context(), "c0ffee"))
	must(t, ps.Forget(t.Context(), "c0ffee"))
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Fatalf("%v is left", entries)
	}
}

// The position is lost or spoilt: the log itself says how far it is.
//
// Rows: R29 (part)
func TestWithoutAPositionNothingIsWrittenTwice(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"lost":        os.Remove,
		"empty":       func(path string) error { return os.Truncate(path, 0) },
		"of a future": func(path string) error { return os.WriteFile(path, []byte(`{"version":99}`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			d, k := newDockerLog(t, 0, 1), newKubelet(t)
			dir := t.TempDir()
			ps := newTestPumps(t, dir)
			must(t, ps.Start(k.container(d)))
			d.log(crilog.Stdout, "one\n")
			for range 3 {
				d.log(crilog.Stdout, strings.Repeat("x", 16<<10))
			}
			waitLog(t, k, d.expected())
			ps.Close()
			must(t, spoil(filepath.Join(dir, "c0ffee.json")))
			// The last part is torn on top of that.
			must(t, os.Truncate(k.path, int64(len(d.want)-100)))
			d.log(crilog.Stdout, "end\n")
			ps = newTestPumps(t, dir)
			must(t, ps.Start(k.container(d)))
			finish(t, ps, "c0ffee")
			checkLog(t, k, d.expected())
		})
	}
}

func TestSinceLeavesOutWhatIsOlder(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	d.log(crilog.Stdout, "old\n")
	d.want = nil
	c := k.container(d)
	c.Since = d.clock
	d.log(crilog.Stdout, "new\n")
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(c))
	waitLog(t, k, d.expected())
}

// R26: rename and Reopen under heavy writing, with Docker rotating its own file below, lose, double and tear nothing.
//
// Rows: R26
func TestRotationUnderHeavyWriting(t *testing.T) {
	d, k := newDockerLog(t, 200<<10, 5), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			d.log([]crilog.Stream{crilog.Stdout, crilog.Stderr}[i%2], fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%200)))
			if i%100 == 0 {
				poll(t, d.isRead) // Docker writes some 20 MB/s, not more than can be read on this machine
			}
		}
	})
	sizes := map[string]int64{}
	for range 50 {
		time.Sleep(20 * time.Millisecond)
		must(t, k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }))
		old := k.rotated[len(k.rotated)-1]
		info, err := os.Stat(old)
		must(t, err)
		sizes[old] = info.Size()
	}
	close(stop)
	writer.Wait()
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
	for old, size := range sizes {
		if info, err := os.Stat(old); err != nil || info.Size() != size {
			t.Errorf("%s changed after Reopen", old)
		}
	}
	if s := ps.Stats(); s.Gaps != 0 {
		t.Fatalf("%+v", s)
	}
	t.Logf("%d bytes of log, %d rotations of the kubelet's", len(d.want), len(sizes))
}

// Rows: R26 (part), S10 (part)
func TestReopenWithoutRenameKeepsTheFileAndWithoutAPumpFails(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	if err := ps.Reopen(t.Context(), "c0ffee"); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("got %v", err)
	}
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	waitLog(t, k, d.expected())
	must(t, ps.Reopen(t.Context(), "c0ffee"))
	d.log(crilog.Stdout, "two\n")
	waitLog(t, k, d.expected())

	// S10: what a pod puts at the path is not opened, and the old file stays in use.
	canary := filepath.Join(t.TempDir(), "canary")
	must(t, os.WriteFile(canary, []byte("canary"), 0o644))
	must(t, os.Rename(k.path, k.path+".1"))
	must(t, os.Symlink(canary, k.path))
	if err := ps.Reopen(t.Context(), "c0ffee"); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("reopen at a symlink: %v", err)
	}
	must(t, os.Remove(k.path))
	must(t, os.Rename(k.path+".1", k.path))
	d.log(crilog.Stdout, "three\n")
	waitLog(t, k, d.expected())
	if data, _ := os.ReadFile(canary); string(data) != "canary" {
		t.Fatalf("the canary is %q", data)
	}
	finish(t, ps, "c0ffee")
	if err := ps.Reopen(t.Context(), "c0ffee"); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("after the exit: %v", err)
	}
}

func TestStartRefusesWhatItCannotPump(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	c := k.container(d)
	for _, id := range []string{"", "../x", "a/b", ".", strings.Repeat("a", 200)} {
		c.ID = id
		if err := ps.Start(c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	c = k.container(d)
	c.JSONPath = ""
	if err := ps.Start(c); !errdefs.IsNotFound(err) {
		t.Errorf("no source: %v", err)
	}
	c.JSONPath = "/absent/folder/x-json.log"
	if err := ps.Start(c); !errdefs.IsNotFound(err) {
		t.Errorf("no folder: %v", err)
	}
	c = k.container(d)
	c.LogPath = k.root + "/../elsewhere"
	if err := ps.Start(c); !errdefs.IsInvalidArgument(err) {
		t.Errorf("log path: %v", err)
	}
}

// Docker dropped its file while nobody read: one line says so, and what is left comes complete.
//
// Rows: R29 (part)
func TestAGapIsMarked(t *testing.T) {
	d, k := newDockerLog(t, 1, 2), newKubelet(t) // one entry a file, two files
	dir := t.TempDir()
	ps := newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "read\n")
	waitLog(t, k, d.expected())
	ps.Close()
	before := len(d.want)
	for i := range 3 {
		d.log(crilog.Stdout, fmt.Sprintf("unread %d\n", i))
	}
	ps = newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	finish(t, ps, "c0ffee")
	var got []string
	for line := range bytes.Lines(k.log()[before:]) {
		e, err := crilog.ParseEntry(line)
		must(t, err)
		got = append(got, string(e.Content))
		if e.Time.After(d.clock) {
			t.Errorf("%q is of %v, later than what follows", e.Content, e.Time)
		}
	}
	if len(got) != 3 || !strings.HasPrefix(got[0], "crishim: log may have been dropped by Docker") || got[1] != "unread 1" || got[2] != "unread 2" {
		t.Fatalf("the log goes on with %q", got)
	}
	if s := ps.Stats(); s.Gaps != 1 {
		t.Fatalf("%+v", s)
	}
}

func TestGarbageIsSkippedAndCounted(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	d.raw([]byte("garbage\n"))
	d.log(crilog.Stdout, "two\n")
	d.raw(make([]byte, 3<<20)) // zeros of a power cut, then dockerd goes on without a newline
	d.log(crilog.Stdout, "three\n")
	d.raw([]byte(`{"log":"torn by dockerd's en`))
	waitLog(t, k, d.expected())
	d.log(crilog.Stdout, "four\n")
	waitLog(t, k, d.expected())
	if s := ps.Stats(); s.BadLines < 2 || s.Gaps != 0 {
		t.Fatalf("%+v", s)
	}
}

// What a power cut or a full disk left at the end of a file that Docker then rotated has no newline, however long it is.
func TestGarbageAtTheEndOfARotatedFileIsSkipped(t *testing.T) {
	for _, size := range []int{1 << 10, 2 * readSize, 3 << 20} {
		d, k := newDockerLog(t, 1, 3), newKubelet(t) // one entry a file
		ps := newTestPumps(t, t.TempDir())
		d.log(crilog.Stdout, "one\n")
		d.raw(make([]byte, size))
		d.log(crilog.Stdout, "two\n")
		must(t, ps.Start(k.container(d)))
		waitLog(t, k, d.expected())
		if s := ps.Stats(); s.BadLines == 0 || s.Gaps != 0 {
			t.Errorf("%d bytes: %+v", size, s)
		}
	}
}

// The disk of the logs is full, with short writes: nothing is lost, also across Docker's rotations, and Reopen says so.
//
// Rows: R28 (part)
func TestAFullDiskLosesNothing(t *testing.T) {
	d, k := newDockerLog(t, 4<<10, 3), newKubelet(t)
	var left atomic.Int64
	left.Store(1000)
	ps, err := newPumps(t.Context(), Options{Dir: t.TempDir()}, hooks{
		step: func(string) error { return nil },
		write: func(f *os.File, b []byte) (int, error) {
			n := min(int64(len(b)), left.Load())
			left.Add(-n)
			m, err := f.Write(b[:n])
			if err == nil && m < len(b) {
				err = unix.ENOSPC
			}
			return m, err
		},
	})
	must(t, err)
	t.Cleanup(ps.Close)
	must(t, ps.Start(k.container(d)))
	for i := range 100 {
		d.log(crilog.Stdout, fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", 100)))
		if i%30 == 29 { // it notices a rotation when it is woken
			poll(t, d.isRead)
		}
	}
	poll(t, func() bool { return ps.Stats().WriteErrors > 0 })
	if err := k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }); !errdefs.IsResourceExhausted(err) {
		t.Fatalf("reopen: %v", err)
	}
	left.Store(1 << 30)
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
}

// A container that is removed while its log is stuck leaves a log of whole entries.
//
// Rows: R28 (part)
func TestForgettingAStuckLogLeavesWholeEntries(t *testing.T) {
	d, k := newDockerLog(t, 4<<10, 3), newKubelet(t)
	left := int64(1000)
	ps, err := newPumps(t.Context(), Options{Dir: t.TempDir()}, hooks{
		step: func(string) error { return nil },
		write: func(f *os.File, b []byte) (int, error) {
			n := min(int64(len(b)), left)
			left -= n
			m, err := f.Write(b[:n])
			if err == nil && m < len(b) {
				err = unix.ENOSPC
			}
			return m, err
		},
	})
	must(t, err)
	t.Cleanup(ps.Close)
	c := k.container(d)
	must(t, ps.Start(c))
	for i := range 20 {
		d.log(crilog.Stdout, fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", 100)))
	}
	poll(t, func() bool { return ps.Stats().WriteErrors > 0 })
	must(t, ps.Forget(t.Context(), "c0ffee"))
	data, err := os.ReadFile(c.LogPath)
	must(t, err)
	if len(data) == 0 || len(data) >= 1000 || data[len(data)-1] != '\n' {
		t.Errorf("the log has %d bytes and ends with %q", len(data), data[max(0, len(data)-20):])
	}
}

// The log cannot be written for so long that files pile up: the oldest are given up, and counted by the byte.
//
// Rows: R28 (part), S54 (part)
func TestFilesOfAStuckLogAreGivenUpAtLast(t *testing.T) {
	d, k := newDockerLog(t, 1, 2), newKubelet(t)
	var full atomic.Bool
	ps, err := newPumps(t.Context(), Options{Dir: t.TempDir()}, hooks{
		step: func(string) error { return nil },
		write: func(f *os.File, b []byte) (int, error) {
			if full.Load() {
				return 0, unix.ENOSPC
			}
			return f.Write(b)
		},
	})
	must(t, err)
	t.Cleanup(ps.Close)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "first\n")
	waitLog(t, k, d.expected())
	full.Store(true)
	p := ps.running("c0ffee")
	for i := range 2 * maxHeld {
		d.log(crilog.Stdout, fmt.Sprintf("line %02d\n", i))
		poll(t, func() bool { return ps.Stats().WriteErrors > 0 })
		poll(t, func() bool { open, _ := d.seen(); return open }) // one look a rotation
	}
	full.Store(false)
	finish(t, ps, "c0ffee")
	if len(p.source.(*jsonSource).files) != 0 {
		t.Fatal("files are still open")
	}
	s := ps.Stats()
	if s.Gaps == 0 || s.DroppedBytes == 0 {
		t.Fatalf("%+v", s)
	}
	if want := "crishim: " + fmt.Sprint(s.DroppedBytes) + " bytes of log were dropped by Docker before they could be read\n"; s.Gaps == 1 && !bytes.Contains(k.log(), []byte(want)) {
		t.Fatalf("the log has no %q:\n%s", want, k.log())
	}
	if !bytes.HasSuffix(k.log(), fmt.Appendf(nil, "line %02d\n", 2*maxHeld-1)) {
		t.Fatalf("the log ends %s", k.log())
	}
}

func TestManyIdleContainersShareOneInotifyInstance(t *testing.T) {
	before, goroutines := inotifyCount(t), runtime.NumGoroutine()
	ps := newTestPumps(t, t.TempDir())
	type one struct {
		d *dockerLog
		k *kubelet
	}
	var all []one
	for i := range 300 {
		d, k := newDockerLog(t, 0, 1), newKubelet(t)
		c := k.container(d)
		c.ID = fmt.Sprintf("c%d", i)
		must(t, ps.Start(c))
		all = append(all, one{d, k})
	}
	if got := inotifyCount(t) - before; got != 1 {
		t.Fatalf("%d inotify instances for 300 containers", got)
	}
	if got := runtime.NumGoroutine() - goroutines; got > 310 {
		t.Fatalf("%d goroutines for 300 containers", got)
	}
	for _, o := range all {
		o.d.log(crilog.Stdout, "hello\n")
	}
	for _, o := range all {
		waitLog(t, o.k, o.d.expected())
	}
	ps.Close()
	if got := inotifyCount(t) - before; got != 0 {
		t.Fatalf("%d inotify instances are left", got)
	}
	poll(t, func() bool { return runtime.NumGoroutine() <= goroutines+1 })
}

func inotifyCount(t *testing.T) (count int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, entry := range entries {
		if target, _ := os.Readlink("/proc/self/fd/" + entry.Name()); target == "anon_inode:inotify" {
			count++
		}
	}
	return count
}

// Rows: R49 (part)
func TestWithoutInotifyLogsArePolled(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	ps.notify.close()
	must(t, ps.Start(k.container(d)))
	for i := range 3 {
		d.log(crilog.Stdout, fmt.Sprintf("line %d\n", i))
		waitLog(t, k, d.expected())
	}
}

// Rows: R28 (part)
func TestFinishOfAStuckLogEndsWithItsContext(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	var full atomic.Bool
	full.Store(true)
	ps, err := newPumps(t.Context(), Options{Dir: t.TempDir()}, hooks{
		step: func(string) error { return nil },
		write: func(f *os.File, b []byte) (int, error) {
			if full.Load() {
				return 0, unix.ENOSPC
			}
			return f.Write(b)
		},
	})
	must(t, err)
	t.Cleanup(ps.Close)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "last words\n")
	poll(t, func() bool { return ps.Stats().WriteErrors > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // in which it is told, however busy the machine is
	defer cancel()
	if err := ps.Finish(ctx, "c0ffee"); err == nil {
		t.Fatal("finished without writing")
	}
	full.Store(false)
	poll(t, func() bool { return ps.running("c0ffee") == nil })
	checkLog(t, k, d.expected())
}

func BenchmarkPump(b *testing.B) {
	for _, length := range []int{80, 1000, 16000} {
		b.Run(fmt.Sprintf("%d bytes a line", length), func(b *testing.B) {
			d := newDockerLog(b, 0, 1)
			for d.size < 64<<20 {
				d.log(crilog.Stdout, strings.Repeat("x", length)+"\n")
			}
			b.SetBytes(d.size)
			for b.Loop() {
				k := newKubelet(b)
				ps := newTestPumps(b, b.TempDir())
				must(b, ps.Start(k.container(d)))
				finish(b, ps, "c0ffee")
				ps.Close()
				must(b, os.RemoveAll(k.root))
			}
		})
	}
}

// A pump that ends by itself is forgotten meanwhile, as of a container that is removed right after its exit.
func TestForgettingMeetsTheEnd(t *testing.T) {
	for range 20 {
		d, k, ps := newDockerLog(t, 4<<10, 3), newKubelet(t), newTestPumps(t, t.TempDir())
		must(t, ps.Start(k.container(d)))
		d.log(crilog.Stdout, "a line\n")
		var both sync.WaitGroup
		both.Go(func() { _ = ps.Finish(t.Context(), "c0ffee") })
		both.Go(func() {
			if err := ps.Forget(t.Context(), "c0ffee"); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		if ids, err := ps.Known(); err != nil || len(ids) > 0 {
			t.Errorf("positions of %v, %v", ids, err)
		}
	}
}

// A daemon that died as it saved a position, or had no space for it, leaves a file that nobody else names.
func TestAPositionThatWasNotSavedToItsEndIsForgottenToo(t *testing.T) {
	dir := t.TempDir()
	ps := newTestPumps(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, ".tmp-c0ffee.json"), []byte(`{"ver`), 0o600))
	ids, err := ps.Known()
	must(t, err)
	for _, id := range ids {
		must(t, ps.Forget(t.Context(), id))
	}
	must(t, ps.Forget(t.Context(), "c0ffee"))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	if len(ids) != 1 || ids[0] != "c0ffee" {
		t.Errorf("known are %v", ids)
	}
}

// slowLook is a source on a disk that is slow to answer.
type slowLook struct{ source }

func (slowLook) look() error { time.Sleep(retryDelay * 2 / 3); return nil }

// A look during which the pause after a failed write ends puts the next try off no further: a container that writes all the time has one
// look follow the other, and its log would stay stuck.
func TestASlowLookPutsNoTryOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pump{id: "c0ffee", source: slowLook{}}
		p.note(unix.ENOSPC)
		for looks := 0; time.Now().Before(p.retryAt); looks++ {
			if looks > 2 {
				t.Fatal("it is not tried again")
			}
			_, err := p.step()
			p.note(err)
		}
	})
}
