//go:build cgo

package run

import (
	"os"
	"path/filepath"
	"testing"

	"crishim/engine/native/monitor"
)

// A specification that cannot be planned would prepare nothing, and nobody would notice.
func TestThePreparedContainerIsPlannedAndMadeNowhere(t *testing.T) {
	r := &Runtime{Root: filepath.Join(t.TempDir(), "state")}
	made, err := r.Plan("prepare", &monitor.CreateArgs{Spec: []byte(example)})
	if err != nil {
		t.Fatal(err)
	}
	if config := made.(*plan).config; config.Cgroups == nil || config.Seccomp == nil || len(config.Mounts) == 0 || config.Namespaces == nil {
		t.Errorf("parts are missing: %+v", config)
	}
	r.Prepare()
	if _, err := os.Stat(r.Root); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
	if matches, err := filepath.Glob("/sys/fs/cgroup/*/crishim/prepare"); err != nil || len(matches) > 0 {
		t.Errorf("cgroups were made: %v, %v", matches, err)
	}
}
