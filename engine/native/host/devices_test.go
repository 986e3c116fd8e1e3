package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

func TestADeviceIsLookedUpBehindALinkAndInAFolder(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making device nodes needs root")
	}
	dir := t.TempDir()
	for i, name := range []string{"a", "sub/b"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(path, unix.S_IFCHR|0o620, int(unix.Mkdev(1, uint32(3+i)))); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o620); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	found, err := Devices([]engine.Device{
		{HostPath: filepath.Join(dir, "link"), ContainerPath: "/dev/x", Permissions: "r"},
		{HostPath: dir, ContainerPath: "/dev/all"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range found {
		got = append(got, d.Path+" "+d.Access)
		if d.Type != "c" || d.Major != 1 || d.FileMode == nil || *d.FileMode != 0o620 {
			t.Errorf("%+v", d)
		}
	}
	if want := "/dev/x r,/dev/all/a rwm,/dev/all/sub/b rwm"; strings.Join(got, ",") != want {
		t.Errorf("%v, want %s", got, want)
	}
	for _, path := range []string{filepath.Join(dir, "file"), filepath.Join(dir, "absent"), t.TempDir()} {
		if _, err := Devices([]engine.Device{{HostPath: path, ContainerPath: "/dev/x"}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestAllDevicesAreTheHostsWithoutTerminals(t *testing.T) {
	all, err := AllDevices()
	if err != nil {
		t.Fatal(err)
	}
	null := false
	for _, d := range all {
		null = null || d.Path == "/dev/null" && d.Major == 1 && d.Minor == 3 && d.Access == "rwm"
		if strings.HasPrefix(d.Path, "/dev/pts/") || d.Path == "/dev/console" {
			t.Errorf("%s is a container's own", d.Path)
		}
	}
	if !null {
		t.Errorf("no /dev/null among %d devices", len(all))
	}
}

// Rows: S27 (part)
func TestCDIDevicesComeFromFilesOfTheNode(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	injector, err := NewInjector(dir)
	if err != nil {
		t.Fatal(err)
	}
	spec := func() *specs.Spec { return &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}} }
	s := spec()
	if err := injector.Inject(s, []string{"example.org/gpu=0"}); !errdefs.IsInvalidArgument(err) || len(s.Process.Env) != 0 {
		t.Fatalf("an unknown device: %v, %+v", err, s)
	}
	write("gpu.json", `{"cdiVersion":"0.5.0","kind":"example.org/gpu","containerEdits":{},"devices":[{"name":"0","containerEdits":{"env":["GPU=0"],"deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/null"}]}}]}`)
	write("broken.json", `{`)
	if err := injector.Inject(s, []string{"example.org/gpu=0"}); err != nil {
		t.Fatal(err)
	}
	if len(s.Process.Env) != 1 || s.Process.Env[0] != "GPU=0" || len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/gpu0" || s.Linux.Devices[0].Minor != 3 {
		t.Errorf("%+v, %+v", s.Process, s.Linux)
	}
	if err := injector.Inject(spec(), []string{"example.org/gpu=0", "example.org/gpu=1"}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "gpu=1") {
		t.Errorf("%v", err)
	}
}

func TestAnAppArmorProfileHasToBeLoaded(t *testing.T) {
	list := filepath.Join(t.TempDir(), "profiles")
	if err := os.WriteFile(list, []byte("docker-default (enforce)\nmy (profile) (complain)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"docker-default": true, "my (profile)": true, "my": false, "docker": false} {
		if got, err := appArmorLoaded(list, name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := appArmorLoaded(list+"absent", "x"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v", err)
	}
	h := &Host{}
	if err := h.CheckAppArmor(&engine.Profile{Type: engine.ProfileRuntimeDefault}); err != nil {
		t.Error(err)
	}
	if err := h.CheckAppArmor(&engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: "x"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a profile without AppArmor: %v", err)
	}
}

func TestSELinuxOptionsOverrideThePodsLevel(t *testing.T) {
	got := labelOptions("s0:c1,c2", &engine.SELinuxOption{Type: "t", Role: "r"})
	if want := "role:r type:t level:s0:c1,c2"; strings.Join(got, " ") != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := labelOptions("s0:c1,c2", &engine.SELinuxOption{Level: "s0"}); strings.Join(got, " ") != "level:s0" {
		t.Errorf("%q", got)
	}
	if level, err := levelOf("system_u:system_r:container_t:s0:c1,c2"); err != nil || level != "s0:c1,c2" {
		t.Errorf("%q, %v", level, err)
	}
}
