package cni

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"crishim/internal/process"
	"crishim/internal/starving"

	"golang.org/x/sys/unix"
)

// Rows: S65 (part)
func TestFoldersOfWhatIsDoneAsRootAreClosedToTheWritesOfOthers(t *testing.T) {
	n := newNode(t)
	for _, dir := range []string{n.opts.CacheDir, n.opts.OwedDir} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(n.opts); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{n.opts.CacheDir, n.opts.OwedDir} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
}

// Rows: R38
func TestOwedDelIsPaidAfterARestart(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	if err := os.WriteFile(filepath.Join(n.dir, "do.DEL"), []byte("fail"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Owe(added, "pod is gone"); err != nil {
		t.Fatal(err)
	}
	// A broken file beside it, and one that a crash left.
	for _, name := range []string{"bad.json", ".tmp-pod1.json-1"} {
		if err := os.WriteFile(filepath.Join(n.opts.OwedDir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	network, err := New(n.opts)
	if err != nil {
		t.Fatal(err)
	}
	network.ns = n.ns
	n.Network = network
	n.running()
	eventually(t, "a try that fails", 10*time.Second, func() bool {
		o := n.Owed()
		return len(o) == 1 && o[0].Tries == 1 && o[0].LastError != "" && o[0].Reason == "pod is gone" && time.Until(o[0].NextTry) > owedFirst
	})
	if err := os.Remove(filepath.Join(n.dir, "do.DEL")); err != nil {
		t.Fatal(err)
	}
	if err := n.Owe(added, "again"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the DEL is done", 2*owedFirst, func() bool { return len(n.Owed()) == 0 })
	entries, err := os.ReadDir(n.opts.OwedDir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "bad.json.bad" {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
	if len(n.cached()) != 0 {
		t.Error("cache left")
	}
}

// Rows: R38 (part)
func TestAnOwedDelThatCannotBeOpenedNowStaysOwed(t *testing.T) {
	dir := t.TempDir()
	q, err := loadOwed(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.add([]Attachment{{PodID: "pod1"}}, "pod is gone"); err != nil {
		t.Fatal(err)
	}
	starving.Opening(t, 0, unix.O_DIRECTORY, func() { _, err = loadOwed(dir) })
	if !process.Starved(err) {
		t.Errorf("loaded with %v", err)
	}
	if q, err = loadOwed(dir); err != nil || len(q.pods) != 1 {
		t.Errorf("%d are owed, %v", len(q.pods), err)
	}
}

// An older version that was put back leaves what it cannot read to the newer one.
func TestAnOwedDelOfANewerVersionIsLeftAlone(t *testing.T) {
	n := newNode(t)
	path, content := filepath.Join(n.opts.OwedDir, "pod1.json"), `{"version":2,"id":"pod1","attachments":{"in":"another form"}}`
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	network, err := New(n.opts)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadFile(path); err != nil || string(left) != content || len(network.Owed()) != 0 {
		t.Errorf("the file is now %q, %v; owed are %+v", left, err, network.Owed())
	}
}

// Whoever was told that a DEL is owed forgets it: what is not on disk would be lost with the daemon.
func TestADelThatCannotBeKeptIsNotOwed(t *testing.T) {
	n := newNode(t)
	if err := os.RemoveAll(n.opts.OwedDir); err != nil {
		t.Fatal(err)
	}
	if err := n.Owe([]Attachment{{PodID: "pod1"}}, "pod is gone"); err == nil {
		t.Error("took it")
	}
	if owed := n.Owed(); len(owed) != 0 {
		t.Errorf("owed are %+v", owed)
	}
}

func TestAnOwedDelIsTriedOnceAtATimeAndNotBeforeItsPause(t *testing.T) {
	q, err := loadOwed(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"pod1", "pod2", "pod3"} {
		if err := q.add([]Attachment{{PodID: id}}, "pod is gone"); err != nil {
			t.Fatal(err)
		}
	}
	next := func(at time.Time) {
		for id, o := range q.pods {
			o.NextTry = at
			q.pods[id] = o
		}
	}
	next(time.Now().Add(time.Minute))
	if due, wait := q.take(9); len(due) != 0 || wait <= 0 || wait > time.Minute {
		t.Errorf("a minute before its next try %d are due, the next in %v", len(due), wait)
	}
	next(time.Time{})
	first, _ := q.take(2)
	second, _ := q.take(9)
	if len(first) != 2 || len(second) != 1 {
		t.Fatalf("taken are %d and %d of three", len(first), len(second))
	}
	before := time.Now()
	q.settle(first[0], errors.New("the plugin fails"))
	q.settle(first[1], nil)
	if wait := q.pods[first[0].ID].NextTry.Sub(before); wait < pause(1) {
		t.Errorf("after one that failed it waits for %v", wait)
	}
	next(time.Now())
	if due, _ := q.take(9); len(due) != 1 || due[0].ID != first[0].ID {
		t.Errorf("due are %+v, of one that failed, one that is done and one under way", due)
	}
	if again, err := loadOwed(q.dir); err != nil || len(again.pods) != 2 || again.pods[first[0].ID].Tries != 1 {
		t.Errorf("on disk are %+v, %v", again.pods, err)
	}
}

// Rows: R38 (part)
func TestPausesGrowToTenMinutes(t *testing.T) {
	last := time.Duration(0)
	for tries := 1; tries < 100; tries++ {
		p := pause(tries)
		if p < last || p > owedMost || p <= 0 {
			t.Fatalf("pause after %d tries is %v, before %v", tries, p, last)
		}
		last = p
	}
	if last != owedMost {
		t.Errorf("longest pause %v", last)
	}
}

// Rows: S28 (part)
func TestOwedRefusesAPodIDThatIsAPath(t *testing.T) {
	n := newNode(t)
	if err := n.Owe([]Attachment{{PodID: "../x"}}, ""); err == nil {
		t.Error("took it")
	}
}
