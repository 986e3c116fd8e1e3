package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crishim/state"
)

// The binary is in the place of cri-dockerd too, where a unit starts it that is not the package's: purging the package, which is not
// needed for that any more, must not take the records, networks and images of what runs.
func TestAPurgeLeavesTheFolderOfADaemonThatRuns(t *testing.T) {
	script, err := os.ReadFile("../../packaging/deb/postrm")
	if err != nil {
		t.Fatal(err)
	}
	root, run := filepath.Join(t.TempDir(), "crishim"), t.TempDir()
	text := strings.NewReplacer("/var/lib/crishim", root, "/run/systemd/system", "/nonexistent").Replace(string(script))
	purge := func(action string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", text, "postrm", action)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", action, err, &out)
		}
		return out.String()
	}
	purge("purge") // of a node where no daemon ever ran
	store, err := state.Open(filepath.Join(root, "state"), run)
	if err != nil {
		t.Fatal(err)
	}
	records := filepath.Join(root, "state", "pods")
	said := purge("purge")
	if _, err := os.Stat(records); err != nil || !strings.Contains(said, root) {
		t.Errorf("below a daemon that runs: %v; said %q", err, said)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	purge("remove")
	if _, err := os.Stat(records); err != nil {
		t.Errorf("after the package was removed and not purged: %v", err)
	}
	purge("purge")
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("after the purge: %v", err)
	}
}
