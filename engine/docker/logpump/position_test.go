package logpump

import (
	"os"
	"path/filepath"
	"testing"
)

// Whatever became of a position's file, it is put aside or names a place that can be looked for in a log.
func FuzzPosition(f *testing.F) {
	f.Add([]byte(`{"version":1,"json":{"file":{"inode":7},"offset":10,"tail":3},"log":{"file":{"inode":8},"offset":4}}`))
	f.Add([]byte(`{"version":1,"json":{"file":{"inode":7},"offset":-10},"log":{}}`))
	f.Add([]byte(`{"version":1,"api":{"time":"2024-02-29T12:00:00Z","count":-1},"log":{"offset":-9223372036854775808}}`))
	f.Add([]byte(`{"version":1,"json":{"offset":9223372036854775807},"log":{}}`))
	f.Add([]byte("\x00\x00"))
	log := []byte(`{"log":"x\n","stream":"stdout","time":"2024-02-29T12:00:00Z"}` + "\n")
	file, err := openJSONFile(writeTemp(f, log))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { closeAll([]*jsonFile{file}) })
	f.Fuzz(func(t *testing.T, data []byte) {
		path := writeTemp(t, data)
		pos, err := loadPosition(path)
		if err != nil {
			t.Fatal(err)
		}
		if pos == nil {
			if _, err := os.Stat(path + badSuffix); err != nil {
				t.Fatalf("it is not put aside: %v", err)
			}
			return
		}
		if pos.JSON != nil {
			pos.JSON.File = file.id // else its place is not looked at
			if pos.JSON.in(file) && pos.JSON.Offset > int64(len(log)) {
				t.Fatalf("place %d is in a file of %d bytes", pos.JSON.Offset, len(log))
			}
		}
	})
}

func writeTemp(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
