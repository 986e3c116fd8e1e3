package harness

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReadLogTakesCRIRecordsAndRefusesOthers(t *testing.T) {
	for name, row := range map[string]struct {
		content string
		stdout  string
		refused bool
	}{
		"two lines":      {"2024-01-01T00:00:00.1Z stdout F a b\n2024-01-01T00:00:00.2Z stderr F no\n2024-01-01T00:00:00.3Z stdout F \n", "a b\n\n", false},
		"partial joined": {"2024-01-01T00:00:00Z stdout P ab\n2024-01-01T00:00:00Z stdout F cd\n", "abcd\n", false},
		"torn":           {"2024-01-01T00:00:00Z stdout F ab", "", true},
		"Docker's JSON":  {`{"log":"a\n","stream":"stdout"}` + "\n", "", true},
		"other stream":   {"2024-01-01T00:00:00Z stdlog F ab\n", "", true},
		"other tag":      {"2024-01-01T00:00:00Z stdout X ab\n", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "0.log")
			if err := os.WriteFile(file, []byte(row.content), 0o600); err != nil {
				t.Fatal(err)
			}
			lines, err := ReadLog(file)
			if (err != nil) != row.refused {
				t.Fatalf("error %v, want one: %v", err, row.refused)
			}
			if got := JoinLog(lines, "stdout"); err == nil && got != row.stdout {
				t.Errorf("stdout %q, want %q", got, row.stdout)
			}
		})
	}
}
