package rootfs

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim/internal/mounttree"
)

// kinds are what a layer may have of a name: nothing, a file, a whiteout, and a folder, plain or opaque, that has any of these.
func kinds() []string {
	inside := []string{"nothing", "file", "whiteout"}
	all := slices.Clone(inside)
	for _, folder := range []string{"plain", "opaque"} {
		for _, deep := range append(inside, "plain", "opaque") {
			all = append(all, folder+"/"+deep)
		}
	}
	return all
}

const opaqueXattr = "trusted.overlay.opaque"

// makeKind makes one of kinds; content says whose it is, as does the mode of folders.
func makeKind(t *testing.T, path, kind, content string, mode os.FileMode) {
	t.Helper()
	kind, inside, folder := strings.Cut(kind, "/")
	var err error
	switch kind {
	case "file":
		err = os.WriteFile(path, []byte(content), 0o644)
	case "whiteout":
		err = unix.Mknod(path, unix.S_IFCHR, 0)
	case "plain", "opaque":
		if err = os.Mkdir(path, mode); err == nil && kind == "opaque" {
			err = unix.Setxattr(path, opaqueXattr, []byte("y"), 0)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(path, content), []byte(content), 0o644)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if folder {
		makeKind(t, filepath.Join(path, "n"), inside, content, mode)
	}
}

// seen are all names below a folder, with modes and contents.
func seen(t *testing.T, root string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if os.IsNotExist(err) {
			return nil // a whiteout in a folder that no other layer has: overlay lists the name, there is nothing by it
		}
		if err != nil {
			return err
		}
		var content []byte
		if info.Mode().IsRegular() {
			content, err = os.ReadFile(path)
		}
		all = append(all, fmt.Sprintf("%s %v %q", strings.TrimPrefix(path, root), info.Mode(), content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A layer that an image has several times is seen as if each were a folder of its own, whatever it hides, whatever lies below and
// between.
func TestALayerThatIsThereSeveralTimes(t *testing.T) {
	s := store(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0755,nr_inodes=0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mounttree.Unmount(disk); err != nil {
			t.Error(err)
		}
	})
	low, again, between := filepath.Join(disk, "low"), filepath.Join(disk, "again"), filepath.Join(disk, "between")
	modes := map[string]os.FileMode{low: 0o755, again: 0o700, between: 0o750}
	for dir := range modes {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, a := range kinds() {
		for _, b := range kinds() {
			for _, c := range kinds() {
				for dir, kind := range map[string]string{low: a, again: b, between: c} {
					makeKind(t, filepath.Join(dir, strconv.Itoa(n)), kind, filepath.Base(dir), modes[dir])
				}
				n++
			}
		}
	}
	var copies []string
	for i := range 3 {
		dir := again + strconv.Itoa(i)
		if out, err := exec.Command("cp", "-a", again, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		copies = append(copies, dir)
	}
	if _, err := unix.Getxattr(filepath.Join(copies[0], strconv.Itoa(n-1)), opaqueXattr, make([]byte, 1)); err != nil {
		t.Fatalf("cp -a copies no such attributes: %v", err)
	}
	// view is what is seen of layers as a container's root, and as a volume.
	view := func(dirs ...string) (all []string) {
		t.Helper()
		root, err := s.Mount(t.Context(), "c", &Layers{Dirs: dirs})
		if err != nil {
			t.Fatal(err)
		}
		volume, err := s.MountImage(t.Context(), "c", 0, &ImageVolume{Layers: Layers{Dirs: dirs}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(seen(t, root.Path), seen(t, volume)...)
		if err := s.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		return all
	}
	for name, stacks := range map[string][2][]string{
		"something between":  {{low, again, between, again}, {low, copies[0], between, copies[1]}},
		"one upon the other": {{low, again, again, between}, {low, copies[0], copies[1], between}},
		"nothing below":      {{again, between, again}, {copies[0], between, copies[1]}},
		"three times":        {{again, low, again, between, again}, {copies[0], low, copies[1], between, copies[2]}},
	} {
		got, want := view(stacks[0]...), view(stacks[1]...)
		if len(want) < n {
			t.Fatalf("%s: only %d names are seen", name, len(want))
		}
		if !slices.Equal(got, want) {
			for i := range min(len(got), len(want)) {
				if got[i] != want[i] {
					t.Errorf("%s: %s, want %s (and others)", name, got[i], want[i])
					break
				}
			}
			t.Errorf("%s: %d names are seen, want %d", name, len(got), len(want))
		}
	}
}
