package docker

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// No kernel of AppArmor or SELinux is needed here: what they would be asked is what is tested.

func TestAnAppArmorProfileMustBeLoaded(t *testing.T) {
	list := filepath.Join(t.TempDir(), "profiles")
	if err := os.WriteFile(list, []byte("docker-default (enforce)\nmy (odd) name (complain)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	local := func(name string) engine.Profile {
		return engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: name}
	}
	for _, row := range []struct {
		name    string
		profile engine.Profile
		kernel  bool
		list    string
		refused func(error) bool
	}{
		{"loaded", local("docker-default"), true, list, nil},
		{"loaded, with a parenthesis in its name", local("my (odd) name"), true, list, nil},
		{"not loaded", local("absent"), true, list, errdefs.IsInvalidArgument},
		{"the beginning of a loaded one", local("docker"), true, list, errdefs.IsInvalidArgument},
		{"a whole line of the list", local("docker-default (enforce)"), true, list, errdefs.IsInvalidArgument},
		{"on an engine without AppArmor", local("docker-default"), false, list, errdefs.IsInvalidArgument},
		{"where the list cannot be read", local("docker-default"), true, list + ".absent", errdefs.IsFailedPrecondition},
		{"the runtime's default, which needs no look", engine.Profile{Type: engine.ProfileRuntimeDefault}, false, list + ".absent", nil},
	} {
		err := checkAppArmor(&row.profile, &facts{appArmor: row.kernel}, row.list)
		if (err == nil) != (row.refused == nil) || err != nil && !row.refused(err) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// Rows: S12
func TestOnlyMountsThatAskAreRelabelled(t *testing.T) {
	asked, unlabelled := t.TempDir(), t.TempDir()
	spec := &engine.ContainerSpec{Mounts: []engine.Mount{
		{HostPath: asked, SELinuxRelabel: true},
		{HostPath: t.TempDir()},
		{SELinuxRelabel: true, Image: &engine.ImageRef{}},
		{HostPath: unlabelled, SELinuxRelabel: true},
	}}
	var done []string
	relabel := func(path, label string, shared bool) error {
		if label != "system_u:object_r:container_file_t:s0:c1,c2" || shared {
			t.Errorf("%s got label %q, shared %v", path, label, shared)
		}
		done = append(done, path)
		if path == unlabelled {
			return unix.ENOTSUP
		}
		return nil
	}
	if err := relabelMounts(spec, "system_u:object_r:container_file_t:s0:c1,c2", relabel); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(done, []string{asked, unlabelled}) {
		t.Errorf("relabelled %v", done)
	}
	done = nil
	if err := relabelMounts(spec, "", relabel); err != nil || len(done) != 0 {
		t.Errorf("without SELinux: %v, %v", done, err)
	}
	refuse := func(string, string, bool) error { return errors.New("relabeling of /etc is not allowed") }
	if err := relabelMounts(spec, "l", refuse); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a folder that the host needs: %v", err)
	}
}
