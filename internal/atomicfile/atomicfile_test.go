package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestWriteReplacesAndLeavesNoTemporaryFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record.json")
	for _, want := range []string{"one", "two"} {
		if err := Write(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d files left, %v; want 1", len(entries), err)
	}
}

func TestWriteIntoMissingFolderFailsAndRemoveOfAbsentIsFine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent", "record.json")
	if err := Write(path, nil, 0o600); err == nil {
		t.Fatal("wrote into a missing folder")
	}
	if err := Remove(path); err != nil {
		t.Fatalf("remove of an absent file: %v", err)
	}
}

func has(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if want == "" && !errors.Is(err, fs.ErrNotExist) || want != "" && string(got) != want {
		t.Errorf("%s has %q, %v; want %q", filepath.Base(path), got, err, want)
	}
}

func TestPlaceIsSeenAtOnceAndKeepsWhatWasSettledUntilItIsToo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record.json")
	for _, step := range []struct {
		name        string
		do          func() error
		file, older string
	}{
		{"first", func() error { return Place(path, []byte("one"), 0o600) }, "one", ""},
		{"settled", func() error { return Settle(path) }, "one", ""},
		{"second", func() error { return Place(path, []byte("two"), 0o600) }, "two", "one"},
		{"third", func() error { return Place(path, []byte("three"), 0o600) }, "three", "one"},
		{"settled again", func() error { return Settle(path) }, "three", ""},
		{"fourth", func() error { return Place(path, []byte("four"), 0o600) }, "four", "three"},
		{"dropped", func() error { return Drop(path) }, "", ""},
		{"settled when it is not there", func() error { return Settle(path) }, "", ""},
		{"dropped when it is not there", func() error { return Drop(path) }, "", ""},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		t.Log(step.name)
		has(t, path, step.file)
		has(t, Older(path), step.older)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%d files left, %v", len(entries), err)
	}
}

// While one file is settled a newer one may be placed, which is not durable: the older self stays for it.
func TestWhatIsPlacedDuringASettlingKeepsItsOlderSelf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	must(t, Place(path, []byte("one"), 0o600))
	must(t, Settle(path))
	must(t, Place(path, []byte("two"), 0o600))
	two, err := os.Open(path)
	must(t, err)
	defer func() { _ = two.Close() }()
	must(t, Place(path, []byte("three"), 0o600))
	must(t, outgrow(two))
	has(t, Older(path), "one")
	must(t, Settle(path))
	has(t, Older(path), "")
}

func TestManyFilesAreSettled(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for i := range 2*atOnce + 1 {
		path := filepath.Join(dir, strconv.Itoa(i))
		paths = append(paths, path)
		must(t, Place(path, []byte("one"), 0o600))
		must(t, Place(path, []byte("two"), 0o600))
	}
	must(t, Settle(paths...))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != len(paths) {
		t.Errorf("%d files, %v; want %d", len(entries), err, len(paths))
	}
}

// What was dropped but for its older self leaves nothing to a successor.
func TestAPredecessorsOlderSelfIsNotASuccessors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	must(t, os.WriteFile(Older(path), []byte("another's"), 0o600))
	must(t, Place(path, []byte("one"), 0o600))
	has(t, Older(path), "")
}

// A link to itself cannot be made durable, what else there is is.
func TestSettleSaysWhatItCouldNot(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record.json")
	must(t, Place(path, []byte("one"), 0o600))
	must(t, Place(path, []byte("two"), 0o600))
	loop := filepath.Join(dir, "loop")
	must(t, os.Symlink("loop", loop))
	if err := Settle(loop, path); err == nil || !strings.Contains(err.Error(), loop) {
		t.Errorf("settled a link to itself: %v", err)
	}
	has(t, Older(path), "")
}
