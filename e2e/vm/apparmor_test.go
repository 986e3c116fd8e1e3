package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func profile(kind runtimeapi.SecurityProfile_ProfileType, name string) *runtimeapi.LinuxContainerConfig {
	// No path is hidden or protected but by AppArmor.
	return &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		Apparmor: &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: name}, NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
	}}
}

// No signal may be received: the end of the pod is by the cgroup.
const testProfile = `
profile crishim-vm-test flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  deny /tmp/** w,
}
`

// Rows: S19 (part)
func TestAppArmorProfiles(t *testing.T) {
	h := onNode(t)
	file := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(file, []byte(testProfile), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "apparmor_parser", "-r", file)
	p := h.pod(t, "vmapparmor.slice")
	const current = "cat /proc/self/attr/current"
	for _, tt := range []struct {
		name, want string
		config     *runtimeapi.LinuxContainerConfig
		// denied and allowed are scripts.
		denied, allowed string
	}{
		// "h" prints a help text in the kernel's log and does nothing else.
		{"unset", "crishim-default (enforce)", nil, "echo h >/proc/sysrq-trigger", "touch /tmp/a"},
		{"default", "crishim-default (enforce)", profile(runtimeapi.SecurityProfile_RuntimeDefault, ""), "echo h >/proc/sysrq-trigger", "touch /tmp/a"},
		{"localhost", "crishim-vm-test (enforce)", profile(runtimeapi.SecurityProfile_Localhost, "crishim-vm-test"), "touch /tmp/a", "echo h >/proc/sysrq-trigger"},
		{"unconfined", "unconfined", profile(runtimeapi.SecurityProfile_Unconfined, ""), "false", "echo h >/proc/sysrq-trigger && touch /tmp/a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := p.sleeper(t, tt.name, tt.config)
			if out, _ := h.exec(t, id, current); out != tt.want {
				t.Errorf("an exec runs in %q, want %q", out, tt.want)
			}
			if first := read(t, "/proc/"+strings.Fields(read(t, scope(t, id)+"/cgroup.procs"))[0]+"/attr/current"); first != tt.want {
				t.Errorf("the container runs in %q, want %q", first, tt.want)
			}
			if out, code := h.exec(t, id, tt.denied); code == 0 {
				t.Errorf("%s is allowed: %s", tt.denied, out)
			}
			if out, code := h.exec(t, id, tt.allowed); code != 0 {
				t.Errorf("%s is denied: %s", tt.allowed, out)
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		_, err := p.start(t, "unknown", profile(runtimeapi.SecurityProfile_Localhost, "no-such-profile"), "sleep", "1")
		if err == nil || !strings.Contains(err.Error(), "no-such-profile") {
			t.Errorf("error %v", err)
		}
	})
}
