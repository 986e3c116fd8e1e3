package image

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// A clock that was set back keeps nothing for longer than its age.
//
// Rows: R46 (part)
func TestWhatIsOfTheFutureIsCollected(t *testing.T) {
	s := newStore(t, nil)
	d := digest.FromString("x")
	future := time.Now().Add(1000 * time.Hour)
	paths := []string{s.partPath(d), s.blobPath(d), filepath.Join(s.layerPath(d), layerFile)}
	for _, path := range paths {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(`{"diffID":"`+d+`","blob":"`+d+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, future, future); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(s.layerTree(d), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(s.layerPath(d), future, future); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	s = reopen(t, s.root, nil)
	if err := s.Collect(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("its age does not count from now: %v", err)
		}
	}
	for range 2 { // at the first an age of the future may be found yet
		if err := s.Collect(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if files, _ := left(t, s); len(files) != 0 {
		t.Errorf("%v stays until the clock has caught up", files)
	}
}
