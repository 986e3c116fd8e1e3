package crilog

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

func open(t *testing.T) (w *Writer, path string) {
	t.Helper()
	root := t.TempDir()
	path = root + "/ctr/0.log"
	w, err := Open(root, path, 0)
	must(t, err)
	t.Cleanup(func() { _ = w.Close() })
	return w, path
}

// Rows: R27, S31
func TestCopyKeepsEveryByte(t *testing.T) {
	text := []byte("one\n\nthree" + strings.Repeat("x", 3*MaxContent) + "\r\n\r\rno end")
	for name, reader := range map[string]io.Reader{
		"at once":      bytes.NewReader(text),
		"byte by byte": iotest.OneByteReader(bytes.NewReader(text)),
	} {
		t.Run(name, func(t *testing.T) {
			w, path := open(t)
			must(t, w.Copy(Stderr, reader))
			log, err := os.ReadFile(path)
			must(t, err)
			if got := decode(t, log); !bytes.Equal(got, text) {
				t.Fatalf("%d bytes came back of %d", len(got), len(text))
			}
			if !bytes.HasSuffix(log, []byte(" stderr P \r\rno end\n")) {
				t.Fatalf("the last line ends %q", log[len(log)-30:])
			}
			if got := w.Stats(); got.Bytes != uint64(len(log)) || got.DroppedBytes != 0 || got.WriteErrors != 0 {
				t.Fatalf("%+v for %d bytes", got, len(log))
			}
		})
	}
}

func TestCopyTerminalWritesTheNewlineThatWasMeant(t *testing.T) {
	text := "a\r\nb\rc\r\n" + strings.Repeat("x", MaxContent-1) + "\r\n$ "
	want := strings.ReplaceAll(text, "\r\n", "\n")
	for name, reader := range map[string]io.Reader{
		"at once":      strings.NewReader(text),
		"byte by byte": iotest.OneByteReader(strings.NewReader(text)),
	} {
		t.Run(name, func(t *testing.T) {
			w, path := open(t)
			must(t, w.CopyTerminal(reader))
			log, err := os.ReadFile(path)
			must(t, err)
			if got := decode(t, log); string(got) != want {
				t.Fatalf("got %q", got)
			}
		})
	}
}

// R26: rename and Reopen under heavy writing from two streams lose, double and tear nothing.
//
// Rows: R26
func TestReopenUnderHeavyWritingLosesNothing(t *testing.T) {
	w, path := open(t)
	const lines = 20_000
	var writers sync.WaitGroup
	for _, stream := range []Stream{Stdout, Stderr} {
		r, pw := io.Pipe()
		writers.Go(func() {
			for i := range lines {
				_, _ = fmt.Fprintf(pw, "%s %d\n", stream, i)
			}
			_ = pw.Close()
		})
		writers.Go(func() {
			if err := w.Copy(stream, r); err != nil {
				t.Error(err)
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	var logs []string
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		old := fmt.Sprintf("%s.%d", path, len(logs))
		must(t, os.Rename(path, old))
		must(t, w.Reopen())
		before, err := os.Stat(old)
		must(t, err)
		logs = append(logs, old)
		defer func() {
			if after, err := os.Stat(old); err != nil || after.Size() != before.Size() {
				t.Errorf("%s grew after Reopen", old)
			}
		}()
	}
	next := map[Stream]int{}
	for _, log := range append(logs, path) {
		data, err := os.ReadFile(log)
		must(t, err)
		for line := range bytes.Lines(data) {
			e, err := ParseEntry(line)
			must(t, err)
			if want := fmt.Sprintf("%s %d", e.Stream, next[e.Stream]); string(e.Content) != want {
				t.Fatalf("read %q, want %q", e.Content, want)
			}
			next[e.Stream]++
		}
	}
	if next[Stdout] != lines || next[Stderr] != lines {
		t.Fatalf("%v lines of %d", next, lines)
	}
}

// Rows: R27 (part)
func TestOpenEndsALineThatACrashTore(t *testing.T) {
	root := t.TempDir()
	path := root + "/0.log"
	must(t, os.WriteFile(path, []byte("2024-02-29T12:00:00Z stdout F whole\n2024-02-29T12:0"), 0o640))
	w, err := Open(root, path, 0)
	must(t, err)
	w.WriteText(noon, Stdout, []byte("next\n"))
	must(t, w.Close())
	data, _ := os.ReadFile(path)
	lines := slices.Collect(strings.Lines(string(data)))
	if len(lines) != 3 || lines[2] != "2024-02-29T12:00:00.123456789Z stdout F next\n" {
		t.Fatalf("got %q", lines)
	}
}

// A limit on the file size stands in for a full disk, because it also makes short writes. It holds for a whole process, so
// the test runs itself once more.
//
// Rows: R28 (part)
func TestFullDiskDropsAndCountsAndLeavesNoTornEntry(t *testing.T) {
	const child = "CRILOG_TEST_FULL_DISK"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(unix.SIGXFSZ)
	limit := func(bytes uint64) {
		must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}))
	}
	w, path := open(t)
	limit(100)
	for i := range 10 { // 47 bytes each: two fit, the third is torn
		w.WriteText(noon, Stdout, fmt.Appendf(nil, "line %d\n", i))
	}
	full := w.Stats()
	limit(1 << 20)
	w.WriteText(noon, Stdout, []byte("after\n"))
	data, err := os.ReadFile(path)
	must(t, err)
	if got := string(decode(t, data)); got != "line 0\nline 1\nline 2\nafter\n" {
		t.Fatalf("the log holds %q", got)
	}
	if full.WriteErrors == 0 || full.DroppedBytes != 7*47 || w.Stats().DroppedBytes != full.DroppedBytes {
		t.Fatalf("counted %+v, then %+v", full, w.Stats())
	}
}

// The disk is full still when the log is left for another, or closed: nobody will complete the entry that it took in part.
//
// Rows: R26 (part)
func TestALogThatIsLeftOnAFullDiskHasNoTornEntry(t *testing.T) {
	const child = "CRILOG_TEST_FULL_DISK"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(unix.SIGXFSZ)
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100, Max: unix.RLIM_INFINITY}))
	w, path := open(t)
	write := func() {
		for i := range 5 { // 47 bytes each: two fit, the third is torn
			w.WriteText(noon, Stdout, fmt.Appendf(nil, "line %d\n", i))
		}
	}
	check := func(path string, dropped uint64) {
		t.Helper()
		data, err := os.ReadFile(path)
		must(t, err)
		if got := string(decode(t, data)); got != "line 0\nline 1\n" {
			t.Errorf("the log holds %q", data)
		}
		if got := w.Stats().DroppedBytes; got != dropped {
			t.Errorf("%d bytes are counted as dropped, want %d", got, dropped)
		}
	}
	write()
	must(t, os.Rename(path, path+".1"))
	must(t, w.Reopen())
	check(path+".1", 3*47)
	write()
	must(t, w.Reopen()) // nobody has renamed it
	check(path, 6*47)
	must(t, w.Close())
	check(path, 6*47)
}

// The disk gets full as the lines of a reopen that was taken back are carried into the old file: the one that it takes in part is
// taken back where the log is closed, too.
//
// Rows: R26 (part)
func TestALogThatIsTakenBackOnAFullDiskHasNoTornEntry(t *testing.T) {
	const child = "CRILOG_TEST_FULL_DISK"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(unix.SIGXFSZ)
	w, path := open(t)
	w.WriteText(noon, Stdout, []byte("line 0\n")) // 47 bytes
	must(t, os.Rename(path, path+".1"))
	must(t, w.Reopen())
	w.WriteText(noon, Stdout, []byte("line 1\nline 2\n"))
	must(t, os.Rename(path+".1", path))
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100, Max: unix.RLIM_INFINITY}))
	w.WriteText(noon, Stdout, []byte("line 3\n"))
	must(t, w.Close())
	data, err := os.ReadFile(path)
	must(t, err)
	if got := string(decode(t, data)); got != "line 0\nline 1\n" {
		t.Errorf("the log holds %q", data)
	}
	if got := w.Stats().DroppedBytes; got != 2*47 {
		t.Errorf("%d bytes are counted as dropped", got)
	}
}

// Rows: S10 (part)
func TestHostilePathAtReopenKeepsTheOldFile(t *testing.T) {
	w, path := open(t)
	canary := t.TempDir() + "/canary"
	must(t, os.WriteFile(canary, []byte("canary"), 0o644))
	must(t, os.Rename(path, path+".1"))
	must(t, os.Symlink(canary, path))
	if err := w.Reopen(); err == nil {
		t.Fatal("a symlink was opened")
	}
	w.WriteText(noon, Stdout, []byte("still\n"))
	if data, _ := os.ReadFile(path + ".1"); !bytes.HasSuffix(data, []byte("still\n")) {
		t.Fatalf("the old file has %q", data)
	}
	if data, _ := os.ReadFile(canary); string(data) != "canary" {
		t.Fatalf("the canary is %q", data)
	}
}

func TestLastMomentFindsAllPartsOfTheLastLine(t *testing.T) {
	path := t.TempDir() + "/0.log"
	before := AppendText(nil, noon.Add(-1), Stdout, bytes.Repeat([]byte("a line\n"), 20_000)) // more than is read at once
	data := AppendText(before, noon, Stdout, bytes.Repeat([]byte("b"), 2*MaxContent))
	must(t, os.WriteFile(path, append(data, "2024-02"...), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	if moment, offset, ok := LastMoment(f); !ok || !moment.Equal(noon) || offset != int64(len(before)) {
		t.Fatalf("%v at %d, %v; want %v at %d", moment, offset, ok, noon, len(before))
	}
	if EndsWithNewline(f) {
		t.Fatal("the torn tail was not seen")
	}
}

func TestClosedWriterCountsWhatItDrops(t *testing.T) {
	w, _ := open(t)
	must(t, w.Close())
	must(t, w.Copy(Stdout, strings.NewReader("gone\n")))
	if w.Stats().DroppedBytes == 0 {
		t.Fatal("nothing was counted")
	}
}

// What somebody has emptied (a full disk, logrotate with copytruncate) has room again: it is not set aside in place of what was full.
func TestALogThatWasEmptiedIsNotSetAside(t *testing.T) {
	path := t.TempDir() + "/0.log"
	w, err := Open(filepath.Dir(path), path, 1000)
	must(t, err)
	defer func() { _ = w.Close() }()
	must(t, os.WriteFile(path+OverflowSuffix, []byte("older"), 0o600))
	var want []byte
	for range 2 {
		must(t, os.Truncate(path, 0))
		line := bytes.Repeat([]byte{'x'}, 700)
		w.WriteText(noon, Stdout, append(line, '\n'))
		want = AppendText(nil, noon, Stdout, append(line, '\n'))
	}
	for name, want := range map[string]string{path: string(want), path + OverflowSuffix: "older"} {
		if data, err := os.ReadFile(name); err != nil || string(data) != want {
			t.Errorf("%s has %q, %v", name, data, err)
		}
	}
}

// Rows: S54 (part)
func TestALogThatOutgrowsItsBoundIsSetAside(t *testing.T) {
	path := t.TempDir() + "/0.log"
	w, err := Open(filepath.Dir(path), path, 1000)
	must(t, err)
	defer func() { _ = w.Close() }()
	var all []byte
	write := func(from, to int) {
		for i := range to - from {
			line := fmt.Appendf(nil, "line %d\n", from+i)
			w.WriteText(noon, Stdout, line)
			all = AppendText(all, noon, Stdout, line)
		}
	}
	check := func() {
		t.Helper()
		var there []byte
		for _, name := range []string{path + OverflowSuffix, path} {
			data, err := os.ReadFile(name)
			must(t, err)
			if len(data) > 1000 || len(data) == 0 || data[len(data)-1] != '\n' {
				t.Errorf("%s has %d bytes: %q", name, len(data), data)
			}
			there = append(there, data...)
		}
		if !bytes.HasSuffix(all, there) || len(there) < 1000 {
			t.Errorf("of the log there are %d bytes: %q", len(there), there)
		}
	}
	write(0, 100)
	check()
	must(t, w.Close())
	w, err = Open(filepath.Dir(path), path, 1000) // what it had before counts
	must(t, err)
	write(100, 130)
	check()

	// The kubelet renames it meanwhile: then there is nothing to set aside.
	must(t, os.Rename(path, path+".1"))
	overflow, err := os.ReadFile(path + OverflowSuffix)
	must(t, err)
	write(130, 150)
	if now, err := os.ReadFile(path + OverflowSuffix); err != nil || !bytes.Equal(now, overflow) {
		t.Errorf("the overflow is %q, %v", now, err)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.HasSuffix(all, data) || len(data) == 0 {
		t.Errorf("the new log is %q, %v", data, err)
	}

	// Where it cannot be set aside it grows no more, and what is not written is counted.
	must(t, os.Remove(path+OverflowSuffix))
	must(t, os.MkdirAll(path+OverflowSuffix+"/in-the-way", 0o755))
	before := w.Stats()
	write(150, 250)
	info, err := os.Stat(path)
	must(t, err)
	if now := w.Stats(); info.Size() > 1000 || now.DroppedBytes == before.DroppedBytes || now.WriteErrors == before.WriteErrors {
		t.Errorf("it has %d bytes, and before %+v, now %+v was counted", info.Size(), before, now)
	}
	must(t, os.RemoveAll(path+OverflowSuffix))
	write(250, 260)
	if data, err := os.ReadFile(path); err != nil || !bytes.Contains(data, []byte("line 259\n")) {
		t.Errorf("the log is %q, %v", data, err)
	}
}
