package logpump

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"crishim/crilog"

	"github.com/containerd/errdefs"
)

// apiLog is a container behind the Engine API: Source answers as GET /containers/ID/logs does with follow, timestamps, since.
type apiLog struct {
	tty bool

	mu      sync.Mutex
	entries []entry
	exited  bool
	changed chan struct{} // closed and replaced at each change
	cut     int           // streams end early after so many entries, once; 0 never
	opens   int
}

func newAPILog() *apiLog { return &apiLog{changed: make(chan struct{})} }

func (a *apiLog) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *apiLog) log(i int, text string) {
	a.change(func() {
		t := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC).Add(time.Duration(i) * time.Microsecond)
		a.entries = append(a.entries, entry{t, crilog.Stdout, []byte(text)})
	})
}

func (a *apiLog) Source(ctx context.Context, since time.Time) (io.ReadCloser, error) {
	r, w := io.Pipe()
	a.mu.Lock()
	a.opens++
	left := a.cut
	a.cut = 0
	a.mu.Unlock()
	go func() { w.CloseWithError(a.serve(ctx, w, since, left)) }()
	return r, nil
}

func (a *apiLog) serve(ctx context.Context, w io.Writer, since time.Time, left int) error {
	for next := 0; ; {
		a.mu.Lock()
		entries, exited, changed := a.entries, a.exited, a.changed
		a.mu.Unlock()
		for ; next < len(entries); next++ {
			e := entries[next]
			if e.time.Before(since) {
				continue
			}
			if _, err := w.Write(a.frame(e)); err != nil {
				return err
			}
			if left--; left == 0 {
				return io.ErrUnexpectedEOF // as a body that breaks off
			}
		}
		if exited {
			return io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *apiLog) frame(e entry) []byte {
	text := e.time.AppendFormat(nil, "2006-01-02T15:04:05.000000000Z07:00")
	text = append(append(text, ' '), e.text...)
	if a.tty {
		return text
	}
	header := make([]byte, 8)
	header[0] = 1
	binary.BigEndian.PutUint32(header[4:], uint32(len(text)))
	return append(header, text...)
}

func (a *apiLog) expected() (want []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.entries {
		text := bytes.ReplaceAll(e.text, []byte("\r\n"), []byte("\n"))
		want = crilog.AppendText(want, e.time, e.stream, text)
	}
	return want
}

func TestTheAPIIsReadWhereThereIsNoFile(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("tty %v", tty), func(t *testing.T) {
			a, k := newAPILog(), newKubelet(t)
			a.tty = tty
			dir := t.TempDir()
			c := Container{ID: "c0ffee", Source: a.Source, LogPath: k.path, LogRoot: k.root, TTY: tty}
			newline := map[bool]string{true: "\r\n", false: "\n"}[tty]
			ps := newTestPumps(t, dir)
			must(t, ps.Start(c))
			for i := range 300 {
				a.log(i, fmt.Sprintf("line %d%s", i, newline))
			}
			waitLog(t, k, a.expected())
			ps.Close()
			if !tty { // the parts of a long line have one time; a restart falls between them
				for range 3 {
					a.log(300, strings.Repeat("x", 16<<10))
				}
			}
			ps = newTestPumps(t, dir)
			must(t, ps.Start(c))
			waitLog(t, k, a.expected())
			ps.Close()
			a.log(300, "end"+newline)
			a.change(func() { a.exited, a.cut = true, 1 }) // and one stream breaks off
			ps = newTestPumps(t, dir)
			must(t, ps.Start(c))
			finish(t, ps, "c0ffee")
			ps.Close()
			checkLog(t, k, a.expected())
		})
	}
}

// kill -9 between the log and the position: what the log holds already is not written again.
//
// Rows: R29 (part)
func TestTheAPISurvivesACrash(t *testing.T) {
	for budget := 5; budget < 200; budget += 13 {
		a, k := newAPILog(), newKubelet(t)
		c := Container{ID: "c0ffee", Source: a.Source, LogPath: k.path, LogRoot: k.root}
		dir := t.TempDir()
		var crash crasher
		crash.arm(budget)
		ps := crash.start(t, dir, c)
		for i := range 3 {
			a.log(i/2, fmt.Sprintf("line %d\n", i))
		}
		p := ps.running("c0ffee")
		want := len(a.expected())
		poll(t, func() bool { return len(k.log()) >= want || p == nil || p.ended() })
		crash.kill(ps)
		a.log(2, "after\n")
		a.change(func() { a.exited = true })
		ps = newTestPumps(t, dir)
		must(t, ps.Start(c))
		finish(t, ps, "c0ffee")
		ps.Close()
		checkLog(t, k, a.expected())
	}
}

// As TestAReopenWhileTheLogIsCompared, but what the log is compared with is yet to come through the API.
//
// Rows: R29 (part)
func TestAReopenBeforeTheAPIAnswers(t *testing.T) {
	a, k := newAPILog(), newKubelet(t)
	dir := t.TempDir()
	c := Container{ID: "c0ffee", Source: a.Source, LogPath: k.path, LogRoot: k.root}
	ps := newTestPumps(t, dir)
	must(t, ps.Start(c))
	a.log(0, "first\n")
	waitLog(t, k, a.expected())
	ps.Close()
	old, err := os.ReadFile(filepath.Join(dir, "c0ffee.json"))
	must(t, err)
	ps = newTestPumps(t, dir)
	must(t, ps.Start(c))
	for i := range 100 {
		a.log(i+1, fmt.Sprintf("line %d\n", i))
	}
	waitLog(t, k, a.expected())
	ps.Close()
	must(t, os.WriteFile(filepath.Join(dir, "c0ffee.json"), old, 0o600)) // as kill -9 within the second leaves it
	answers := make(chan struct{})
	c.Source = func(ctx context.Context, since time.Time) (io.ReadCloser, error) {
		<-answers
		return a.Source(ctx, since)
	}
	ps = newTestPumps(t, dir)
	must(t, ps.Start(c))
	for range 2 {
		if err := k.rotate(func() error { return ps.Reopen(t.Context(), "c0ffee") }); err != nil {
			t.Log("refused:", err)
		}
		if _, err := os.Stat(k.path); err != nil {
			t.Error("no log after a reopen:", err)
		}
	}
	close(answers)
	a.log(101, "last\n")
	a.change(func() { a.exited = true })
	finish(t, ps, "c0ffee")
	checkLog(t, k, a.expected())
}

// What Docker says of a log that it cannot read, in the place of an entry, keeps nothing that comes behind it from the log, and is
// counted.
func TestWhatDockerCannotReadHoldsUpNothing(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("tty %v", tty), func(t *testing.T) {
			a, k := newAPILog(), newKubelet(t)
			a.tty = tty
			a.log(0, "before\n")
			words := []byte("Error grabbing logs: invalid character 'x' looking for beginning of value\n")
			if !tty {
				words = append(binary.BigEndian.AppendUint32([]byte{3, 0, 0, 0}, uint32(len(words))), words...)
			}
			c := Container{ID: "c0ffee", LogPath: k.path, LogRoot: k.root, TTY: tty}
			c.Source = func(ctx context.Context, since time.Time) (io.ReadCloser, error) {
				body, err := a.Source(ctx, since)
				first := make([]byte, len(a.frame(entry{time.Now().UTC(), crilog.Stdout, []byte("before\n")})))
				_, ferr := io.ReadFull(body, first)
				return struct {
					io.Reader
					io.Closer
				}{io.MultiReader(bytes.NewReader(first), bytes.NewReader(words), body), body}, errors.Join(err, ferr)
			}
			ps := newTestPumps(t, t.TempDir())
			must(t, ps.Start(c))
			a.log(1, "behind\n")
			waitLog(t, k, a.expected())
			a.change(func() { a.exited = true })
			finish(t, ps, "c0ffee")
			checkLog(t, k, a.expected())
			if s := ps.Stats(); s.ReadErrors == 0 {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

// Of a log driver that cannot be read nothing comes, and an exit is not held up for it.
func TestALogThatDockerCannotReadEndsWithItsContainer(t *testing.T) {
	k := newKubelet(t)
	ps := newTestPumps(t, t.TempDir())
	must(t, ps.Start(Container{ID: "c0ffee", LogPath: k.path, LogRoot: k.root, Source: func(context.Context, time.Time) (io.ReadCloser, error) {
		return nil, fmt.Errorf("configured logging driver does not support reading: %w", errdefs.ErrNotImplemented)
	}}))
	finish(t, ps, "c0ffee")
	if s := ps.Stats(); s.ReadErrors != 1 {
		t.Errorf("counted %+v", s)
	}
}
