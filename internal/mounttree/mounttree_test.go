package mounttree

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func mounts(t *testing.T, dir string) []*mountinfo.Info {
	t.Helper()
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAFolderOfMountsIsPrivateAndMadeOnce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := filepath.Join(t.TempDir(), "new", "dir")
	for range 2 {
		if err := Private(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = Unmount(dir) })
	all := mounts(t, dir)
	if len(all) != 1 || all[0].Optional != "" {
		t.Errorf("%d mounts, propagation %q", len(all), all[0].Optional)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestEverythingMountedBelowIsUnmountedAlsoWhatIsInUse(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := filepath.Join(t.TempDir(), "dir")
	beside := dir + "2"
	for _, d := range []string{dir, beside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(beside, unix.MNT_DETACH) })
	for _, d := range []string{"a", "a/b c"} {
		d = filepath.Join(dir, d)
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
	}
	used, err := os.Create(filepath.Join(dir, "a", "b c", "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = used.Close() }()
	for range 2 {
		if err := Unmount(dir); err != nil {
			t.Fatal(err)
		}
	}
	if all := mounts(t, dir); len(all) != 0 {
		t.Errorf("%d mounts are left", len(all))
	}
	if all := mounts(t, beside); len(all) != 1 {
		t.Errorf("what is beside: %d mounts", len(all))
	}
	if err := Unmount(filepath.Join(dir, "no", "such")); err != nil {
		t.Error(err)
	}
}

func TestWhatIsAtAPath(t *testing.T) {
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"file": true, "other": false, "link": false} {
		if got, err := At(filepath.Join(dir, name), int(file.Fd())); err != nil || got != want {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
	if _, err := At(filepath.Join(dir, "absent"), int(file.Fd())); !os.IsNotExist(err) {
		t.Error(err)
	}
}
