package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// folderOf is a folder's entry with attributes.
func folderOf(name string, mode int64, owner int, more ...string) entry {
	e := dir(name)
	e.Mode, e.Uid, e.Gid = mode, owner, owner
	if len(more) > 0 {
		e.PAXRecords = map[string]string{paxXattr + "user.note": more[0]}
	}
	return e
}

// unpacked are layers of these archives, lowest first, below base.
func unpacked(t *testing.T, base string, archives ...[]entry) (layers []Stacked) {
	t.Helper()
	for i, entries := range archives {
		dir := filepath.Join(base, fmt.Sprint("layer", i))
		got, err := unpackTo(t, dir, archive(t, entries...), DefaultLimits)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, Stacked{Dir: dir, Implied: got.Implied})
	}
	return layers
}

// inherit makes what layers inherit, "" where that is nothing.
func inherit(t *testing.T, base string, layers []Stacked) string {
	t.Helper()
	path := filepath.Join(base, "inherited")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	made, err := Inherit(t.Context(), dir, layers)
	if err != nil {
		t.Fatal(err)
	}
	if !made {
		if entries, err := os.ReadDir(path); err != nil || len(entries) > 0 {
			t.Errorf("nothing is made, and there is %v, %v", entries, err)
		}
		return ""
	}
	return path
}

func TestInherit(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name     string
		archives [][]entry
		want     []string
	}{
		{"from the layer below", [][]entry{{folderOf("tmp/", 0o1777, 0), folderOf("home/u/", 0o700, 65532, "n")}, {file("tmp/x", ""), file("home/u/app", "")}},
			[]string{"home 40755 0:0", "home/u 40700 65532:65532 note n", "tmp 41777 0:0"}},
		{"from further below", [][]entry{{folderOf("tmp/", 0o1777, 0)}, {file("etc/x", "")}, {file("tmp/x", "")}, {file("tmp/y", "")}}, []string{"tmp 41777 0:0"}},
		{"the nearest counts", [][]entry{{folderOf("d/", 0o1777, 1)}, {folderOf("d/", 0o700, 2)}, {file("d/x", "")}}, []string{"d 40700 2:2"}},
		{"those that it lies in have entries", [][]entry{{folderOf("a/", 0o711, 1), folderOf("a/b/", 0o700, 2)}, {folderOf("a/", 0o750, 3), file("a/b/x", "")}},
			[]string{"a 40750 3:3", "a/b 40700 2:2"}},
		{"those in it have none", [][]entry{{folderOf("a/", 0o711, 1), file("a/b/x", "")}, {file("a/b/c/x", "")}}, []string{"a 40711 1:1"}},
		{"nothing is below", [][]entry{{folderOf("d/", 0o700, 1)}, {file("new/x", ""), file("d2/x", "")}}, nil},
		{"the lowest", [][]entry{{file("a/b/x", "")}}, nil},
		{"the uppermost has an entry", [][]entry{{folderOf("d/", 0o700, 1)}, {file("d/x", "")}, {folderOf("d/", 0o755, 0)}}, nil},
		{"nobody has", [][]entry{{file("d/x", "")}, {file("d/y", "")}}, nil},
		{"removed between", [][]entry{{folderOf("d/", 0o700, 1)}, {hides(".wh.d")}, {file("d/x", "")}}, nil},
		{"what it lies in was removed between", [][]entry{{folderOf("a/b/", 0o700, 1)}, {hides(".wh.a")}, {file("a/b/x", "")}}, nil},
		{"a file between", [][]entry{{folderOf("d/", 0o700, 1)}, {file("d", "")}, {file("d/x", "")}}, nil},
		{"a link between", [][]entry{{folderOf("d/", 0o700, 1), folderOf("e/", 0o711, 2)}, {symlink("d", "e")}, {file("d/x", "")}}, nil},
		{"removed by its own layer", [][]entry{{folderOf("d/", 0o700, 1)}, {hides(".wh.d"), file("d/x", "")}}, nil},
		{"made anew between", [][]entry{{folderOf("d/", 0o700, 1)}, {hides(".wh.d"), folderOf("d/", 0o711, 2)}, {file("d/x", "")}}, []string{"d 40711 2:2"}},
		{"emptied between", [][]entry{{folderOf("d/", 0o700, 1), folderOf("d/e/", 0o711, 2)}, {hides("d/.wh..wh..opq")}, {file("d/e/x", "")}}, []string{"d 40700 1:1"}},
		{"emptied by its own layer", [][]entry{{folderOf("d/", 0o700, 1), folderOf("d/e/", 0o711, 2)}, {file("d/e/x", ""), hides("d/.wh..wh..opq")}}, []string{"d 40700 1:1"}},
		{"emptied by one with an entry", [][]entry{{folderOf("d/", 0o700, 1)}, {folderOf("d/", 0o711, 2), hides("d/.wh..wh..opq")}, {file("d/x", "")}}, []string{"d 40711 2:2"}},
	} {
		base := t.TempDir()
		root := inherit(t, base, unpacked(t, base, tt.archives...))
		var got []string
		if root != "" {
			got = listing(t, root)[1:]
		}
		for i, line := range got {
			value := make([]byte, 10)
			at := filepath.Join(root, strings.Fields(line)[0])
			if n, err := unix.Lgetxattr(at, "user.note", value); err == nil {
				got[i] += " note " + string(value[:n])
			}
			if info, err := os.Stat(at); err != nil || strings.Fields(line)[2] != "0:0" && !info.ModTime().Equal(past) {
				t.Errorf("%s: %s is of %v, %v", tt.name, at, info.ModTime(), err)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// The uppermost root is what the root is, with a layer of folders or without.
func TestInheritLeavesTheRoot(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	top := folderOf("./", 0o2751, 7, "n")
	root := inherit(t, base, unpacked(t, base, []entry{folderOf("./", 0o711, 1), folderOf("d/", 0o700, 1)}, []entry{top, file("d/x", "")}))
	value := make([]byte, 10)
	n, err := unix.Getxattr(root, "user.note", value)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(root)
	if err != nil {
		t.Fatal(err)
	}
	if got := listing(t, root)[0]; got != ". 42751 7:7" || string(value[:n]) != "n" || !info.ModTime().Equal(past) {
		t.Errorf("the root is %s, %q, of %v", got, value[:n], info.ModTime())
	}
}

// What an access list says of a folder to come does not get into those that are made.
func TestInheritTakesAttributesFromTheLayersAlone(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	above := folderOf("a/", 0o755, 0)
	// Of version 2: user::rwx, group::rwx, other::rwx.
	above.PAXRecords = map[string]string{paxXattr + "system.posix_acl_default": "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x07\x00\xff\xff\xff\xff\x20\x00\x07\x00\xff\xff\xff\xff"}
	layers := unpacked(t, base, []entry{folderOf("a/b/", 0o700, 1), above}, []entry{file("a/b/x", "")})
	root := inherit(t, base, layers)
	for name, want := range map[string]bool{"a": true, "a/b": false} {
		if _, err := unix.Getxattr(filepath.Join(root, name), "system.posix_acl_default", nil); (err == nil) != want {
			t.Errorf("%s has a list: %v, want %v", name, err == nil, want)
		}
	}
}

// The lists that an earlier version made name folders, too, that an entry followed for, and go through links.
func TestInheritByAnOlderList(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	layers := unpacked(t, base, []entry{folderOf("a/", 0o700, 1), folderOf("d/", 0o700, 2), folderOf("d/x/", 0o700, 3)},
		[]entry{file("a/b/f", ""), folderOf("a/", 0o711, 4), folderOf("d/", 0o755, 0), symlink("l", "d"), file("l/x/f", "")})
	layers[1].Implied = []string{"a", "a/b", "l/x"}
	if root := inherit(t, base, layers); root != "" {
		t.Errorf("inherited is %q", listing(t, root))
	}
}

func TestInheritEndsWithItsCaller(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	layers := unpacked(t, base, []entry{folderOf("d/", 0o700, 1)}, []entry{file("d/x", "")})
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if made, err := Inherit(ctx, dir, layers); made || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", made, err)
	}
}

// flatten applies an archive to a folder that has those of lower layers, one upon the other. Whiteouts are about these.
func flatten(root string, entries []entry) error {
	for _, e := range entries {
		folder, base := path.Split(e.Name)
		hidden, ok := strings.CutPrefix(base, whiteoutPrefix)
		if !ok {
			continue
		}
		at := filepath.Join(root, folder)
		if info, err := os.Lstat(at); err != nil || !info.IsDir() {
			continue
		}
		if base != opaqueMarker {
			if err := os.RemoveAll(filepath.Join(at, hidden)); err != nil {
				return err
			}
			continue
		}
		lower, err := os.ReadDir(at)
		if err != nil {
			return err
		}
		for _, one := range lower {
			if err := os.RemoveAll(filepath.Join(at, one.Name())); err != nil {
				return err
			}
		}
	}
	for _, e := range entries {
		name := path.Clean(e.Name)
		for i := range len(name) {
			if name[i] == '/' {
				if err := flattenFolder(filepath.Join(root, name[:i])); err != nil {
					return err
				}
			}
		}
		at := filepath.Join(root, name)
		if e.Typeflag == tar.TypeDir {
			if err := flattenFolder(at); err != nil {
				return err
			}
			if err := errors.Join(os.Lchown(at, e.Uid, e.Gid), unix.Chmod(at, uint32(e.Mode))); err != nil {
				return err
			}
			continue
		}
		if strings.HasPrefix(path.Base(name), whiteoutPrefix) {
			continue
		}
		if err := errors.Join(os.RemoveAll(at), os.WriteFile(at, []byte(e.content), 0o644), os.Chtimes(at, time.Time{}, e.ModTime)); err != nil {
			return err
		}
	}
	return nil
}

// flattenFolder makes a folder where there is none.
func flattenFolder(path string) error {
	if info, err := os.Lstat(path); err == nil {
		if info.IsDir() {
			return nil
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return errors.Join(os.Mkdir(path, 0o755), os.Chmod(path, 0o755))
}

// randomArchive has folders with and without entries, files and whiteouts, of few names, so that they meet in many ways. No entry
// takes the place of an earlier one of another kind.
func randomArchive(r *rand.Rand, layer int) (entries []entry) {
	kinds := map[string]bool{} // is a folder
	free := func(name string, folder bool) bool {
		for at := path.Dir(name); at != "."; at = path.Dir(at) {
			if isFolder, taken := kinds[at]; taken && !isFolder {
				return false
			}
		}
		isFolder, taken := kinds[name]
		return !taken || folder && isFolder
	}
	for range 1 + r.IntN(8) {
		var parts []string
		for range 1 + r.IntN(3) {
			parts = append(parts, string("abc"[r.IntN(3)]))
		}
		name := path.Join(parts...)
		kind := r.IntN(6)
		if !free(name, kind < 2) {
			continue
		}
		for at := path.Dir(name); at != "."; at = path.Dir(at) {
			kinds[at] = true
		}
		switch kind {
		case 0, 1:
			kinds[name] = true
			entries = append(entries, folderOf(name+"/", []int64{0o700, 0o711, 0o1777, 0o750}[r.IntN(4)], 1+layer))
		case 2:
			kinds[name] = false
			entries = append(entries, file(name, fmt.Sprint(layer)))
		case 3:
			entries = append(entries, hides(path.Join(path.Dir(name), ".wh."+path.Base(name))))
		case 4:
			kinds[name] = true
			entries = append(entries, hides(name+"/.wh..wh..opq"))
		case 5:
			kinds[name] = true
			kinds[name+"/f"] = false
			entries = append(entries, file(name+"/f", fmt.Sprint(layer)))
		}
	}
	return entries
}

// Whatever layers say and imply: overlay shows with what they inherit what one folder has that their archives were unpacked into.
func TestInheritedFoldersAreThoseOfArchivesInOneFolder(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	inherited := 0
	for seed := range 500 {
		r := rand.New(rand.NewPCG(1, uint64(seed)))
		base := filepath.Join(disk, fmt.Sprint(seed))
		flat, merged, empty := filepath.Join(base, "flat"), filepath.Join(base, "merged"), filepath.Join(base, "empty")
		for _, dir := range []string{base, flat, merged, empty} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var archives [][]entry
		for i := range 2 + r.IntN(3) {
			archives = append(archives, randomArchive(r, i))
			if err := flatten(flat, archives[i]); err != nil {
				t.Fatal(err)
			}
		}
		layers := unpacked(t, base, archives...)
		dirs := []string{empty}
		for _, l := range layers {
			dirs = append(dirs, l.Dir)
		}
		if root := inherit(t, base, layers); root != "" {
			dirs = append(dirs, root)
			inherited++
		}
		slices.Reverse(dirs)
		if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(dirs, ":")); err != nil {
			t.Fatal(err)
		}
		got, want := visible(t, merged), visible(t, flat)
		if err := unix.Unmount(merged, 0); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			for i, entries := range archives {
				t.Logf("layer %d: %q", i, names(entries))
			}
			t.Fatalf("seed %d: got\n%s\nwant\n%s", seed, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if err := os.RemoveAll(base); err != nil {
			t.Fatal(err)
		}
	}
	if inherited < 100 {
		t.Errorf("only %d images inherit anything: the test proves nothing", inherited)
	}
}

// visible is what listing says below root, but for names that overlay lists and that are nothing: whiteouts in a folder that no other
// layer has.
func visible(t *testing.T, root string) (lines []string) {
	t.Helper()
	folders := []string{"."}
	for len(folders) > 0 {
		folder := folders[0]
		folders = folders[1:]
		entries, err := os.ReadDir(filepath.Join(root, folder))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := path.Join(folder, e.Name())
			info, err := os.Lstat(filepath.Join(root, name))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
				t.Fatal(err)
			}
			line := fmt.Sprintf("%s %v %d:%d", name, info.Mode(), st.Uid, st.Gid)
			if info.IsDir() {
				folders = append(folders, name)
			} else {
				content, err := os.ReadFile(filepath.Join(root, name))
				if err != nil {
					t.Fatal(err)
				}
				line += fmt.Sprintf(" %q", content)
			}
			lines = append(lines, line)
		}
	}
	return lines
}
