package crilog

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestOpenFileMakesFoldersAndFile(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	root := filepath.Join(t.TempDir(), "pod")
	path := filepath.Join(root, "ctr", "0.log")
	for range 2 {
		f, err := OpenFile(root, path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Fatalf("the descriptor is inherited: %v, %v", flags, err)
		}
		_ = f.Close()
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "xx" {
		t.Fatalf("read %q, %v; want the second open to append", data, err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Fatalf("mode %v, want 0640", info.Mode())
	}
}

// S10: every shape of a path that leads elsewhere is refused, and the canary is not touched.
//
// Rows: S10, S08 (part)
func TestOpenFileRefusesPathsThatLeadElsewhere(t *testing.T) {
	shapes := map[string]func(t *testing.T, root, canary string) (path string){
		"dot dot": func(t *testing.T, root, canary string) string {
			return root + "/../canary/file"
		},
		"outside of the root": func(t *testing.T, root, canary string) string { return canary },
		"the root itself":     func(t *testing.T, root, canary string) string { return root },
		"relative":            func(t *testing.T, root, canary string) string { return "ctr/0.log" },
		"symlink to a file": func(t *testing.T, root, canary string) string {
			must(t, os.Symlink(canary, root+"/0.log"))
			return root + "/0.log"
		},
		"dangling symlink": func(t *testing.T, root, canary string) string {
			must(t, os.Symlink(filepath.Dir(canary)+"/new", root+"/0.log"))
			return root + "/0.log"
		},
		"symlink within the root": func(t *testing.T, root, canary string) string {
			must(t, os.WriteFile(root+"/other", nil, 0o600))
			must(t, os.Symlink("other", root+"/0.log"))
			return root + "/0.log"
		},
		"symlinked parent": func(t *testing.T, root, canary string) string {
			must(t, os.Symlink(filepath.Dir(canary), root+"/ctr"))
			return root + "/ctr/file"
		},
		"symlinked grandparent": func(t *testing.T, root, canary string) string {
			must(t, os.Symlink(filepath.Dir(filepath.Dir(canary)), root+"/a"))
			return root + "/a/canary/file"
		},
		"parent is a file": func(t *testing.T, root, canary string) string {
			must(t, os.WriteFile(root+"/ctr", nil, 0o600))
			return root + "/ctr/0.log"
		},
		"FIFO": func(t *testing.T, root, canary string) string {
			must(t, unix.Mkfifo(root+"/0.log", 0o600))
			return root + "/0.log"
		},
		"socket": func(t *testing.T, root, canary string) string {
			must(t, unix.Mknod(root+"/0.log", unix.S_IFSOCK|0o600, 0))
			return root + "/0.log"
		},
		"device": func(t *testing.T, root, canary string) string {
			if err := unix.Mknod(root+"/0.log", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
				t.Skipf("cannot make a device: %v", err)
			}
			return root + "/0.log"
		},
		"folder": func(t *testing.T, root, canary string) string {
			must(t, os.Mkdir(root+"/0.log", 0o700))
			return root + "/0.log"
		},
		"hard link": func(t *testing.T, root, canary string) string {
			must(t, os.Link(canary, root+"/0.log"))
			return root + "/0.log"
		},
		"name too long": func(t *testing.T, root, canary string) string { return root + "/" + strings.Repeat("a", 300) },
	}
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			root, canary := base+"/root", base+"/canary/file"
			must(t, os.Mkdir(root, 0o755))
			must(t, os.Mkdir(base+"/canary", 0o755))
			must(t, os.WriteFile(canary, []byte("canary"), 0o644))
			f, err := OpenFile(root, shape(t, root, canary))
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v, %v; want an invalid argument", f, err)
			}
			if data, _ := os.ReadFile(canary); string(data) != "canary" {
				t.Errorf("the canary is %q", data)
			}
			if entries, _ := os.ReadDir(base + "/canary"); len(entries) != 1 {
				t.Errorf("%d files beside the canary", len(entries)-1)
			}
		})
	}
}

func TestOpenParentDoesNotMakeFolders(t *testing.T) {
	root := t.TempDir()
	if _, _, err := OpenParent(root, root+"/absent/0.log"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
	if entries, _ := os.ReadDir(root); len(entries) != 0 {
		t.Fatal("a folder was made")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
