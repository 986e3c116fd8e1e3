package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// A build without the native engine's helper, as plain `go build` makes it, compiles and says at its start what it lacks.
func TestABuildWithoutTheHelperSaysSo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the daemon runs as root")
	}
	dir := t.TempDir()
	helper, err := filepath.Abs("../../engine/native/helper/embedded/" + runtime.GOARCH + "/crishim-monitor")
	if err != nil {
		t.Fatal(err)
	}
	absent, err := json.Marshal(map[string]map[string]string{"Replace": {helper: ""}})
	if err != nil {
		t.Fatal(err)
	}
	overlay, program, file := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "crishim"), filepath.Join(dir, "config.toml")
	err = errors.Join(os.WriteFile(overlay, absent, 0o600), os.WriteFile(file, []byte(`engine = "native"
root_dir = "`+dir+`/root"
run_dir = "`+dir+`/run"
listen = ["unix://`+dir+`/crishim.sock"]
[metrics]
listen = ""
`), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-overlay", overlay, "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), program, "serve", "--config", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "start the native engine: built without the native engine: build crishim with make") {
		t.Errorf("it ends with %v and says\n%s", err, out)
	}
}
