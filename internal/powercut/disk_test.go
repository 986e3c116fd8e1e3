package powercut

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A disk that loses nothing would prove nothing.
func TestWhatWasNotSyncedIsLostAndTheRestIsThere(t *testing.T) {
	d := New(t, 16<<20)
	content := bytes.Repeat([]byte("content\n"), 1000)
	must(t, os.WriteFile(filepath.Join(d.Dir, "unsynced"), content, 0o600))
	f, err := os.Create(filepath.Join(d.Dir, "synced"))
	must(t, err)
	defer func() { must(t, f.Close()) }()
	_, err = f.Write(content)
	must(t, err)
	before := d.Now()
	must(t, f.Sync())
	for _, lossy := range []bool{false, true} {
		d.Cut(d.Now(), lossy, func(dir string) {
			if data, err := os.ReadFile(filepath.Join(dir, "synced")); err != nil || !bytes.Equal(data, content) {
				t.Errorf("a file that was synced has %d bytes, %v", len(data), err)
			}
			if data, _ := os.ReadFile(filepath.Join(dir, "unsynced")); bytes.Equal(data, content) {
				t.Error("a file that nobody synced is whole")
			}
		})
	}
	if d.Now() == before {
		t.Error("the sync wrote nothing")
	}
	d.Cut(before, false, func(dir string) {
		if data, _ := os.ReadFile(filepath.Join(dir, "synced")); bytes.Equal(data, content) {
			t.Error("a file is whole before it was synced")
		}
	})
}
