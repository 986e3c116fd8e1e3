package logpump

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crishim/crilog"
)

// dockerLog is a json-file log as dockerd writes and rotates it, and remembers what the CRI log must be.
type dockerLog struct {
	t        testing.TB
	path     string
	maxSize  int64
	maxFiles int
	tty      bool
	file     *os.File
	size     int64
	clock    time.Time

	mu   sync.Mutex
	want []byte
}

func newDockerLog(t testing.TB, maxSize int64, maxFiles int) *dockerLog {
	t.Helper()
	d := &dockerLog{
		t: t, path: filepath.Join(t.TempDir(), "container-json.log"), maxSize: maxSize, maxFiles: maxFiles,
		clock: time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC),
	}
	d.open()
	t.Cleanup(func() { _ = d.file.Close() })
	return d
}

func (d *dockerLog) open() {
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	must(d.t, err)
	info, err := f.Stat()
	must(d.t, err)
	d.file, d.size = f, info.Size()
}

// log writes one message; a text without newline is a part of a line and has the time of the part before it.
func (d *dockerLog) log(stream crilog.Stream, text string) {
	line, err := json.Marshal(struct {
		Log    string        `json:"log,omitempty"`
		Stream crilog.Stream `json:"stream"`
		Time   time.Time     `json:"time"`
	}{text, stream, d.clock})
	must(d.t, err)
	if d.maxSize > 0 && d.size >= d.maxSize {
		d.rotate()
	}
	want := text
	if d.tty && len(text) > 1 && text[len(text)-2:] == "\r\n" {
		want = text[:len(text)-2] + "\n"
	}
	d.mu.Lock()
	d.want = crilog.AppendText(d.want, d.clock, stream, []byte(want))
	d.mu.Unlock()
	if text[len(text)-1] == '\n' {
		d.clock = d.clock.Add(time.Microsecond)
	}
	d.raw(append(line, '\n'))
}

func (d *dockerLog) raw(b []byte) {
	n, err := d.file.Write(b)
	must(d.t, err)
	d.size += int64(n)
}

func (d *dockerLog) rotate() {
	must(d.t, d.file.Close())
	if d.maxFiles > 1 {
		name := func(i int) string { return d.path + "." + strconv.Itoa(i) }
		_ = os.Remove(name(d.maxFiles - 1))
		for i := d.maxFiles - 1; i > 1; i-- {
			_ = os.Rename(name(i-1), name(i))
		}
		must(d.t, os.Rename(d.path, name(1)))
	} else {
		must(d.t, os.Remove(d.path))
	}
	d.open()
}

// isRead says that a pump has the newest file open, and of those that Docker has removed no more than a few: it loses nothing then,
// however late it is.
func (d *dockerLog) isRead() bool {
	open, removed := d.seen()
	return open && removed <= maxHeld/2
}

// seen says whether a pump has the newest file open, and how many that Docker has removed.
func (d *dockerLog) seen() (open bool, removed int) {
	fds, err := os.ReadDir("/proc/self/fd")
	must(d.t, err)
	newest := 0
	for _, fd := range fds {
		target, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		switch {
		case target == d.path:
			newest++
		case strings.HasPrefix(target, d.path) && strings.HasSuffix(target, " (deleted)"):
			removed++
		}
	}
	return newest > 1, removed // one is ours
}

func (d *dockerLog) expected() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.want)
}

// kubelet holds one container's CRI log and rotates it.
type kubelet struct {
	t       testing.TB
	root    string
	path    string
	rotated []string
}

func newKubelet(t testing.TB) *kubelet {
	root := t.TempDir()
	return &kubelet{t: t, root: root, path: filepath.Join(root, "ctr", "0.log")}
}

// rotate does as the kubelet's container log manager: when ReopenContainerLog fails the log gets its name back.
func (k *kubelet) rotate(reopen func() error) error {
	old := fmt.Sprintf("%s.%06d", k.path, len(k.rotated))
	must(k.t, os.Rename(k.path, old))
	if err := reopen(); err != nil {
		must(k.t, os.Rename(old, k.path))
		return err
	}
	k.rotated = append(k.rotated, old)
	return nil
}

func (k *kubelet) log() []byte {
	var all []byte
	for _, path := range append(slices.Clone(k.rotated), k.path) {
		data, err := os.ReadFile(path)
		if !errors.Is(err, os.ErrNotExist) {
			must(k.t, err)
		}
		all = append(all, data...)
	}
	return all
}

func (k *kubelet) container(d *dockerLog) Container {
	return Container{ID: "c0ffee", JSONPath: d.path, LogPath: k.path, LogRoot: k.root, TTY: d.tty}
}

func newTestPumps(t testing.TB, dir string) *Pumps {
	t.Helper()
	ps, err := New(t.Context(), Options{Dir: dir})
	must(t, err)
	t.Cleanup(ps.Close)
	return ps
}

// waitLog waits until the log is exactly as expected.
func waitLog(t testing.TB, k *kubelet, want []byte) {
	t.Helper()
	poll(t, func() bool { return len(k.log()) >= len(want) })
	checkLog(t, k, want)
}

func checkLog(t testing.TB, k *kubelet, want []byte) {
	t.Helper()
	got := k.log()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	around := func(b []byte) []byte { return b[max(0, min(len(b), at)-60):min(len(b), at+100)] }
	t.Fatalf("the log has %d bytes, want %d; they differ at %d:\ngot  …%q…\nwant …%q…", len(got), len(want), at, around(got), around(want))
}

func poll(t testing.TB, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("did not happen in a minute")
		}
		time.Sleep(time.Millisecond)
	}
}

func finish(t testing.TB, ps *Pumps, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, ps.Finish(ctx, id))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
