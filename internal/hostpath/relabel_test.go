package hostpath

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// No SELinux is needed: what it would be asked is what is tested.
//
// Rows: S12
func TestWhatIsTheHostsIsNeverRelabelled(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	dir := t.TempDir()
	volume := filepath.Join(dir, "volume")
	link := func(name, to string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	var asked []string
	relabel := func(path, with string, shared bool) error {
		if with != label || shared {
			t.Errorf("%s is given %q, shared %v", path, with, shared)
		}
		asked = append(asked, path)
		return nil
	}
	etc := link("etc", "/etc")
	for _, name := range []string{
		"/", "/etc", "/etc/", "/etc/hosts", "/usr", "/usr/bin", "/usr/../etc", "/bin", "/lib", "/dev", "/proc", "/sys/kernel", "/home", "/root", "/run", "/var", "/var/lib",
		"/var/log", "/tmp", etc, filepath.Join(etc, "passwd"), link("home", "/root"), link("up", "../../../../../.."), link("chain", "etc"),
	} {
		if err := Relabel(name, label, relabel); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(asked) > 0 {
		t.Fatalf("relabelled %v", asked)
	}
	for _, name := range []string{volume, link("to-volume", "volume")} {
		if err := Relabel(name, label, relabel); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Relabel(filepath.Join(dir, "absent"), label, relabel); !errdefs.IsInvalidArgument(err) {
		t.Errorf("what is not there: %v", err)
	}
	if err := Relabel("/etc", "", relabel); err != nil {
		t.Errorf("without SELinux: %v", err)
	}
	if !slices.Equal(asked, []string{volume, volume}) {
		t.Errorf("relabelled %v", asked)
	}
	refuse := func(err error) func(string, string, bool) error {
		return func(string, string, bool) error { return err }
	}
	if err := Relabel(volume, label, refuse(&os.PathError{Op: "lsetxattr", Path: volume, Err: unix.ENOTSUP})); err != nil {
		t.Errorf("a file system without labels: %v", err)
	}
	if err := Relabel(volume, label, refuse(errors.New("not allowed"))); !errdefs.IsInvalidArgument(err) {
		t.Errorf("what the library refuses: %v", err)
	}
	for _, name := range []string{"/home/user", "/home", "/var/lib"} {
		if !ofTheHost(name) {
			t.Errorf("%s is not the host's", name)
		}
	}
	for _, name := range []string{"/home/user/data", "/var/lib/kubelet/pods/1/volumes/v", "/etcetera", "/mnt/disk", "/opt/app"} {
		if ofTheHost(name) {
			t.Errorf("%s is the host's", name)
		}
	}
}
