package crilog

import (
	"os"
	"path/filepath"
	"testing"
)

// Whatever is in a log's file, the place of its last entry is within it, and the entry can be read there.
func FuzzLastMoment(f *testing.F) {
	f.Add([]byte("2024-02-29T12:00:00.000000001Z stdout F hello\n"))
	f.Add([]byte("2024-02-29T12:00:00Z stdout P hel\n2024-02-29T12:00:00Z stdout F lo\n2024-02-29T12:00:01Z std"))
	f.Add([]byte("\x00\x00\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		moment, offset, ok := LastMoment(file)
		switch {
		case !ok:
		case offset < 0 || offset > int64(len(data)):
			t.Fatalf("place %d of %d", offset, len(data))
		case moment.IsZero():
			t.Fatal("an entry without a time")
		}
	})
}
