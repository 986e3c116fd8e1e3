package logpump

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestLinkIsDockershimsAndGoesAgain(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "ctr", "0.log")
	for _, target := range []string{"/var/lib/docker/containers/a/a-json.log", "/var/lib/docker/containers/a/a-json.log", "/other/b-json.log"} {
		must(t, Link(path, root, target))
		if got, err := os.Readlink(path); err != nil || got != target {
			t.Fatalf("linked to %q, %v", got, err)
		}
	}
	for range 2 {
		must(t, Unlink(path, root))
		if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 0 {
			t.Fatalf("%v is left", entries)
		}
	}
	must(t, Unlink(filepath.Join(root, "absent", "0.log"), root))
}

// Rows: S10 (part)
func TestLinkLeavesAloneWhatIsNoLink(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	const target = "/var/lib/docker/containers/a/a-json.log"
	file, folder := filepath.Join(root, "file"), filepath.Join(root, "folder")
	must(t, os.WriteFile(file, []byte("log"), 0o600))
	must(t, os.Mkdir(folder, 0o700))
	for _, path := range []string{file, folder} {
		if err := Link(path, root, target); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("link at %s: %v", path, err)
		}
		must(t, Unlink(path, root))
		if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSymlink != 0 {
			t.Errorf("%s became %v, %v", path, info, err)
		}
	}
	must(t, os.Symlink(outside, filepath.Join(root, "ctr")))
	must(t, os.Symlink(target, filepath.Join(outside, "0.log")))
	for _, path := range []string{root + "/ctr/0.log", root + "/../0.log", "/etc/0.log"} {
		if err := Link(path, root, target); !errdefs.IsInvalidArgument(err) {
			t.Errorf("link at %s: %v", path, err)
		}
		if err := Unlink(path, root); !errdefs.IsInvalidArgument(err) {
			t.Errorf("unlink at %s: %v", path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(outside, "0.log")); err != nil {
		t.Errorf("outside: %v", err)
	}
	for _, bad := range []string{"", "relative", "/a/../b"} {
		if err := Link(root+"/x", root, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("target %q: %v", bad, err)
		}
	}
}
