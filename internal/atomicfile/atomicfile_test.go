package atomicfile

import (
	"os"
	"path/filepath"
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

func TestPlaceIsSeenAtOnceAndCanBeSettled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	if err := Place(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "one" {
		t.Fatalf("read %q, %v", got, err)
	}
	if err := Settle(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := Settle(path); err != nil {
		t.Fatalf("what was removed meanwhile: %v", err)
	}
}
