package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// A CDI file's device, variable and mount are in the container that asked for its device, and in no other.
//
// Rows: S27 (part)
func TestCDIDevicesReachTheContainer(t *testing.T) {
	n := node(t)
	if n.Docker != nil {
		var info struct{ CDISpecDirs []string }
		if n.Docker.Get("/info", &info); len(info.CDISpecDirs) == 0 {
			t.Skip("this Docker Engine has no CDI")
		}
	}
	source := harness.WorkDir(t, "c")
	if err := os.WriteFile(filepath.Join(source, "mark"), []byte("mounted\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := harness.ID()
	kind := "e2e-" + id + ".example/device"
	writeCDI(t, id+".json", map[string]any{
		"cdiVersion": "0.5.0", "kind": kind, "devices": []any{map[string]any{"name": "one", "containerEdits": map[string]any{
			"env":         []string{"CDI_DEVICE=one"},
			"deviceNodes": []any{map[string]any{"path": "/dev/cdi-one", "hostPath": "/dev/null"}},
			"mounts":      []any{map[string]any{"hostPath": source, "containerPath": "/cdi", "options": []string{"bind", "ro"}}},
		}}},
	})
	pod := n.RunPod(t, "cdi")
	has := pod.Run("has", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.CDIDevices = []*runtimeapi.CDIDevice{{Name: kind + "=one"}}
	})
	look := "stat -c '%F %t:%T' /dev/cdi-one; echo x >/dev/cdi-one && echo written; tr '\\0' '\\n' </proc/1/environ | grep CDI; cat /cdi/mark; touch /cdi/x || echo refused"
	if got := has.Output("exec 2>/dev/null; " + look); got != "character special file 1:3\nwritten\nCDI_DEVICE=one\nmounted\nrefused\n" {
		t.Errorf("the container has %q", got)
	}
	other := pod.Run("other", n.Registry.Ref(harness.Busybox), forever)
	if got := other.Output("ls /dev/cdi-one /cdi 2>/dev/null; tr '\\0' '\\n' </proc/1/environ | grep CDI; true"); strings.TrimSpace(got) != "" {
		t.Errorf("a container that asked for none has %q", got)
	}
}

// writeCDI writes a CDI file where every engine looks for them, until the test ends.
func writeCDI(t *testing.T, name string, spec any) {
	t.Helper()
	const dir = "/var/run/cdi"
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name)
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		_ = os.Remove(dir) // where it is empty
	})
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
