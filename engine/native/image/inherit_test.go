package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"crishim/engine"
	"crishim/internal/powercut"
	"crishim/internal/treesize"
)

// homes are layers of a base with a folder that is closed, and of an application that only uses it.
func homes() (base, app []entry) {
	home := dir("home/u/")
	home.Mode, home.Uid, home.Gid = 0o700, 65532, 65532
	return []entry{dir("home/"), home}, []entry{file("home/u/app", "app")}
}

// inheritedHome says what is wrong with the layer of folders of an image of homes, of so many layers.
func inheritedHome(ctx context.Context, s *Store, id engine.ImageID, layers int) error {
	dirs, err := s.LayerDirs(ctx, id)
	if err != nil {
		return err
	}
	if len(dirs) != layers+1 {
		return fmt.Errorf("there are %d layers, want %d and one of folders", len(dirs), layers)
	}
	for name, want := range map[string]string{"home": "drwxr-xr-x 0", "home/u": "drwx------ 65532"} {
		info, err := os.Lstat(filepath.Join(dirs[layers], name))
		if err != nil {
			return err
		}
		if got := fmt.Sprint(info.Mode(), " ", info.Sys().(*syscall.Stat_t).Uid); got != want {
			return fmt.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	return nil
}

func TestFoldersThatALayerImpliesInherit(t *testing.T) {
	reg := newSite(t, nil)
	base, app := homes()
	lower, upper := layerOf(t, base...), layerOf(t, app...)
	other := dir("home/u/")
	other.Mode = 0o711
	one := reg.push(t, "one:v1", imageWith(t, lower, upper))
	two := reg.push(t, "two:v1", imageWith(t, layerOf(t, other), upper)) // which shares the layer
	three := reg.push(t, "three:v1", imageWith(t, upper, layerOf(t, dir("x/"))))
	s := newStore(t, nil)
	a, b, none := pull(t, s, one), pull(t, s, two), pull(t, s, three)
	sound(t, s)
	if there := inheriting(t, s); len(there) != 0 {
		t.Errorf("a verification changes nothing, and there are those of %v", there)
	}
	if err := inheritedHome(t.Context(), s, a.ID, 2); err != nil {
		t.Fatal(err)
	}
	if dirs, err := s.LayerDirs(t.Context(), b.ID); err != nil || len(dirs) != 3 {
		t.Errorf("%v, %v", dirs, err)
	} else if info, err := os.Lstat(filepath.Join(dirs[2], "home/u")); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", info, err)
	}
	if dirs, err := s.LayerDirs(t.Context(), none.ID); err != nil || len(dirs) != 2 {
		t.Errorf("where there is nothing to inherit: %v, %v", dirs, err)
	}
	before, err := os.Stat(s.inheritedTree(a.ID))
	if err != nil {
		t.Fatal(err)
	}
	// It stays the same one: it may be mounted.
	_ = s.Close()
	s = reopen(t, s.root, nil)
	if err := s.Collect(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := inheritedHome(t.Context(), s, a.ID, 2); err != nil {
			t.Error(err)
		}
	}
	if now, err := os.Stat(s.inheritedTree(a.ID)); err != nil || !os.SameFile(before, now) {
		t.Errorf("it was made anew: %v", err)
	}
	used, err := treesize.Of(t.Context(), s.root, treesize.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.sample()
	if d := int64(s.Usage().InodesUsed) - int64(used.Inodes); d > 3 || d < -3 {
		t.Errorf("usage has %d inodes, on disk are %d", s.Usage().InodesUsed, used.Inodes)
	}
	// Who takes it away, the image removed or not, takes nothing else.
	if err := os.RemoveAll(s.inheritedPath(a.ID)); err != nil {
		t.Fatal(err)
	}
	if err := inheritedHome(t.Context(), s, a.ID, 2); err != nil {
		t.Error(err)
	}
	if err := s.RemoveImage(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	if left := inheriting(t, s); !slices.Equal(left, []engine.ImageID{b.ID}) {
		t.Errorf("the first is removed, there are those of %v", left)
	}
}

func inheriting(t *testing.T, s *Store) []engine.ImageID {
	t.Helper()
	ids, err := s.inheriting()
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// What folders of a used image inherit stays as long as that, also where no record of it can be read; what a crash left of another
// goes.
func TestWhatFoldersInheritIsCollected(t *testing.T) {
	reg := newSite(t, nil)
	base, app := homes()
	ref := reg.push(t, "one:v1", imageWith(t, layerOf(t, base...), layerOf(t, app...)))
	users := []string{"container x"}
	s := newStore(t, func(o *Options) {
		o.InUse = func(context.Context, engine.ImageID) ([]string, error) { return users, nil }
	})
	img := pull(t, s, ref)
	if err := inheritedHome(t.Context(), s, img.ID, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := s.forget(img.ID); err != nil { // the first step of a removal
		t.Fatal(err)
	}
	if err := s.Collect(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if left := inheriting(t, s); len(left) != 1 {
		t.Error("it was removed under its container")
	}
	users = nil
	if err := s.Collect(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if left := inheriting(t, s); len(left) != 0 {
		t.Errorf("those of %v are left", left)
	}
	if files, _ := left(t, s); len(files) != 0 {
		t.Errorf("%v is left", files)
	}
}

// What was made of a damaged layer is made anew once that is mended.
func TestWhatFoldersInheritIsMendedWithTheirLayer(t *testing.T) {
	reg := newSite(t, nil)
	base, app := homes()
	s := newStore(t, nil)
	img := pull(t, s, reg.push(t, "one:v1", imageWith(t, layerOf(t, base...), layerOf(t, app...))))
	if err := os.Chmod(filepath.Join(s.layerTree(digest.Digest(img.Layers[0])), "home/u"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := inheritedHome(t.Context(), s, img.ID, 2); err == nil {
		t.Fatal("nothing is damaged")
	}
	if err := repaired(t, s)[img.ID]; err != nil {
		t.Fatal(err)
	}
	sound(t, s)
	if err := inheritedHome(t.Context(), s, img.ID, 2); err != nil {
		t.Error(err)
	}
}

// While a layer is taken for a repair, a container that is being made is not told that nothing inherits.
func TestWhatFoldersInheritIsWaitedForDuringARepair(t *testing.T) {
	reg := newSite(t, nil)
	base, app := homes()
	s := newStore(t, nil)
	img := pull(t, s, reg.push(t, "one:v1", imageWith(t, layerOf(t, base...), layerOf(t, app...))))
	d := digest.Digest(img.Layers[1])
	s.content.replaced[d] = s.content.layers[d]
	delete(s.content.layers, d)
	if got, err := s.inherited(t.Context(), img.ID); err != nil || got == "" {
		t.Errorf("%q, %v", got, err)
	}
	unlock, err := s.using.Lock(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.inherited(ended(t), img.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("%q, %v", got, err)
	}
	unlock()
}

// Wherever the power is cut while it is made or removed: what there is of a listed image is whole, and of others nothing stays.
//
// Rows: R22 (part)
func TestR22APowerCutLeavesWhatFoldersInheritWhole(t *testing.T) {
	needRoot(t)
	disk := powercut.New(t, 32<<20)
	root := filepath.Join(disk.Dir, "images")
	s := reopen(t, root, nil)
	reg := newSite(t, nil)
	base, app := homes()
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, base...), layerOf(t, app...)))
	img := pull(t, s, ref)
	begun := disk.Now()
	if err := inheritedHome(t.Context(), s, img.ID, 2); err != nil {
		t.Fatal(err)
	}
	made := disk.Now()
	if err := s.RemoveImage(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if err := syncFS(root); err != nil {
		t.Fatal(err)
	}
	listed, there := 0, 0
	for at := begun; at <= disk.Now(); at++ {
		for _, lossy := range []bool{false, true} {
			disk.Cut(at, lossy, func(dir string) {
				fail := func(err error) {
					if err != nil {
						t.Errorf("cut after write %d of %d to %d (lossy: %v): %v", at, begun, disk.Now(), lossy, err)
					}
				}
				s, err := Open(Options{Root: filepath.Join(dir, "images")})
				if err != nil {
					fail(err)
					return
				}
				defer func() { _ = s.Close() }()
				img, err := s.Image(t.Context(), ref)
				if err == nil {
					listed++
					if _, err := os.Lstat(s.inheritedTree(img.ID)); err == nil {
						there++
					} else if at == made {
						fail(errors.New("it had been told of, and is lost"))
					}
					fail(inheritedHome(t.Context(), s, img.ID, 2))
					fail(s.RemoveImage(t.Context(), img.ID))
				}
				fail(s.Collect(t.Context(), 0))
				if ids, err := s.inheriting(); err != nil || len(ids) > 0 {
					fail(fmt.Errorf("those of %v are left, %w", ids, err))
				}
			})
		}
	}
	t.Logf("of %d images that were listed, %d had theirs", listed, there)
	if listed == there || there == 0 {
		t.Error("the test proves nothing")
	}
}

// An archive of docker save brings the same.
func TestWhatFoldersInheritOfAnImportedImage(t *testing.T) {
	reg := newSite(t, nil)
	base, app := homes()
	from := newStore(t, nil)
	img := pull(t, from, reg.push(t, "one:v1", imageWith(t, layerOf(t, base...), layerOf(t, app...))))
	archive, err := os.Create(filepath.Join(t.TempDir(), "archive"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = archive.Close() }()
	if err := from.ExportImage(t.Context(), img.ID, archive); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	to := newStore(t, nil)
	carried, err := to.ImportImage(t.Context(), archive, img)
	if err != nil {
		t.Fatal(err)
	}
	if err := inheritedHome(t.Context(), to, carried.ID, 2); err != nil {
		t.Error(err)
	}
}
