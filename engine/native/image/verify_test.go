package image

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// richLayer has an entry of every kind.
func richLayer(t *testing.T) []entry {
	t.Helper()
	capability := dir("etc/")
	capability.PAXRecords = map[string]string{"SCHILY.xattr.user.origin": "image"}
	owned := file("etc/owned", noise(300_000))
	owned.Uid, owned.Gid, owned.Mode = 1000, 5, 0o4755
	return []entry{
		dir("bin/"), file("bin/tool", noise(5000)), {tar.Header{Name: "bin/alias", Typeflag: tar.TypeLink, Linkname: "bin/tool"}, ""},
		{tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "tool"}, ""}, capability, owned,
		{tar.Header{Name: "etc/.wh.gone", Typeflag: tar.TypeReg}, ""}, file("deep/"+strings.Repeat("d/", 60)+"f", "implied folders"),
	}
}

// verify is what Verify finds, by image.
func verify(t *testing.T, s *Store, refs ...string) map[engine.ImageID][]Damage {
	t.Helper()
	found := map[engine.ImageID][]Damage{}
	seen, err := s.Verify(t.Context(), refs, func(img *engine.Image, damaged []Damage) { found[img.ID] = damaged })
	if err != nil {
		t.Fatal(err)
	}
	if seen.Images != len(found) || seen.Images > 0 && (seen.Blobs == 0 || seen.Bytes == 0) {
		t.Errorf("%+v of %d images", seen, len(found))
	}
	return found
}

func sound(t *testing.T, s *Store) {
	t.Helper()
	for id, damaged := range verify(t, s) {
		for _, d := range damaged {
			t.Errorf("image %s: %v", id, &d)
		}
	}
	if entries, err := os.ReadDir(s.path(tempDir)); err != nil || len(entries) > 0 {
		t.Errorf("%v is left, %v", entries, err)
	}
}

// repaired is Repair of what Verify finds; the errors are by image.
func repaired(t *testing.T, s *Store) map[engine.ImageID]error {
	t.Helper()
	var all []Damage
	for _, damaged := range verify(t, s) {
		all = append(all, damaged...)
	}
	errs := map[engine.ImageID]error{}
	if err := s.Repair(t.Context(), all, func(img *engine.Image, err error) { errs[img.ID] = err }); err != nil {
		t.Fatal(err)
	}
	return errs
}

// keepTimes changes a file and leaves its modification time as it was.
func keepTimes(t *testing.T, path string, change func()) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		t.Fatal(err)
	}
	change()
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stat.Atim, stat.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
}

// flip changes one byte in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	keepTimes(t, path, func() {
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if _, err := f.WriteAt([]byte{data[len(data)/2] ^ 1}, int64(len(data)/2)); err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever happens to content on disk is found, named and mended, with the image's names kept, also in a store that goes on.
//
// Rows: R21 (part), R22 (part), R23 (part)
func TestDamagedContentIsFoundAndMended(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", indexOf(t, imageWith(t, layerOf(t, richLayer(t)...), layerOf(t, file("top", "2")))))
	s := newStore(t, nil)
	img := pull(t, s, ref)
	sound(t, s)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	type place struct {
		tree string   // the first layer's
		m    manifest // with the blobs
		s    *Store
	}
	blob := func(p place, d digest.Digest) string { return p.s.blobPath(d) }
	for name, test := range map[string]struct {
		damage func(place)
		layer  bool
		says   string
	}{
		"a layer's blob":      {func(p place) { flip(t, blob(p, p.m.Layers[0].Digest)) }, false, "its content is sha256:"},
		"a short blob":        {func(p place) { must(os.Truncate(blob(p, p.m.Layers[1].Digest), 3)) }, false, "its content is sha256:"},
		"no blob":             {func(p place) { must(os.Remove(blob(p, p.m.Layers[1].Digest))) }, false, "absent"},
		"the config":          {func(p place) { flip(t, blob(p, p.m.Config.Digest)) }, false, "its content is sha256:"},
		"the manifest":        {func(p place) { flip(t, blob(p, p.m.Manifest.Digest)) }, false, "its content is sha256:"},
		"the index":           {func(p place) { flip(t, blob(p, p.m.Indexes[0].Digest)) }, false, "its content is sha256:"},
		"a file's content":    {func(p place) { flip(t, p.tree+"/etc/owned") }, true, `"etc/owned" has another content`},
		"a file of two names": {func(p place) { flip(t, p.tree+"/bin/alias") }, true, "has another content"},
		"a deep file":         {func(p place) { flip(t, p.tree+"/deep/"+strings.Repeat("d/", 60)+"f") }, true, `d/f" has another content`},
		"a file's length":     {func(p place) { must(os.Truncate(p.tree+"/etc/owned", 3)) }, true, "has 3 bytes in place of 300000"},
		"a file's time":       {func(p place) { must(os.Chtimes(p.tree+"/etc/owned", time.Time{}, time.Now())) }, true, "modification time"},
		"a file's mode":       {func(p place) { must(os.Chmod(p.tree+"/etc/owned", 0o755)) }, true, "has mode 100755 in place of 104755"},
		"a file's owner":      {func(p place) { must(os.Lchown(p.tree+"/bin/sh", 7, 0)) }, true, "is of user 7"},
		"a file less":         {func(p place) { must(os.Remove(p.tree + "/etc/owned")) }, true, `"etc/owned" is absent`},
		"a file more":         {func(p place) { must(os.WriteFile(p.tree+"/bin/more", nil, 0o600)) }, true, `"bin/more" is none of the image's`},
		"a link elsewhere": {func(p place) {
			keepTimes(t, p.tree+"/bin/sh", func() { must(os.Remove(p.tree + "/bin/sh")); must(os.Symlink("look", p.tree+"/bin/sh")) })
		}, true, `leads to "look"`},
		"a folder's attribute": {func(p place) { must(unix.Lsetxattr(p.tree+"/etc", "user.origin", []byte("other"), 0)) }, true, "user.origin"},
		"an attribute more":    {func(p place) { must(unix.Lsetxattr(p.tree, "trusted.overlay.opaque", []byte("y"), 0)) }, true, "trusted.overlay.opaque more"},
		"a whiteout less":      {func(p place) { must(os.Remove(p.tree + "/etc/gone")) }, true, `"etc/gone" is absent`},
		"a copied name": {func(p place) {
			must(os.Remove(p.tree + "/bin/alias"))
			must(os.WriteFile(p.tree+"/bin/alias", []byte(noise(5000)), 0o644))
			must(os.Chtimes(p.tree+"/bin/alias", time.Time{}, time.Unix(1000, 0)))
		}, true, "names in place of 2"},
		"no layer": {func(p place) { must(os.RemoveAll(p.tree)) }, true, "absent"},
	} {
		t.Run(name, func(t *testing.T) {
			test.damage(place{s.layerTree(digest.Digest(img.Layers[0])), s.images[img.ID].record.Manifests[0], s})
			found := verify(t, s)[img.ID]
			if len(found) != 1 || found[0].Layer != test.layer || !strings.Contains(found[0].String(), test.says) {
				t.Fatalf("found %v, want %q", found, test.says)
			}
			if err := repaired(t, s)[img.ID]; err != nil {
				t.Fatal(err)
			}
			sound(t, s)
			_ = s.Close()
			s = reopen(t, s.root, nil)
			now, err := s.Image(t.Context(), ref)
			if err != nil || now.ID != img.ID || !slices.Equal(now.RepoTags, img.RepoTags) || !slices.Equal(now.RepoDigests, img.RepoDigests) {
				t.Errorf("%+v, %v; it was %+v", now, err, img)
			}
			sound(t, s)
		})
	}
}

// The number of layers that an image may have became smaller: one that was pulled before is whole, and is mended, all the same. No
// container is made of it.
func TestAnImageOfMoreLayersThanMayBePulledNowIsWhole(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("b", "2"))))
	s := newStore(t, nil)
	img := pull(t, s, ref)
	_ = s.Close()
	s = reopen(t, s.root, func(o *Options) {
		o.Limits = DefaultLimits
		o.Limits.Layers = 1
	})
	sound(t, s)
	if err := os.RemoveAll(s.layerTree(digest.Digest(img.Layers[0]))); err != nil {
		t.Fatal(err)
	}
	if err := repaired(t, s)[img.ID]; err != nil {
		t.Errorf("mended: %v", err)
	}
	sound(t, s)
	if dirs, err := s.LayerDirs(t.Context(), img.ID); !errdefs.IsResourceExhausted(err) {
		t.Errorf("mounted: %d layers, %v", len(dirs), err)
	}
	var archive bytes.Buffer
	if err := s.Export(t.Context(), &archive, []string{string(img.ID)}); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveImage(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("pulled: %v", err)
	}
	if _, err := s.Import(t.Context(), &archive, ImportOptions{}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("imported: %v", err)
	}
}

// A layer under a container is left as it is, also where only another image's container has it; a blob is mended under it.
//
// Rows: R30 (part)
func TestUsedLayersAreNotMended(t *testing.T) {
	reg := newSite(t, nil)
	shared := layerOf(t, file("s", "shared"))
	one, two := reg.push(t, "one:v1", imageWith(t, shared, layerOf(t, file("a", "1")))), reg.push(t, "two:v1", imageWith(t, shared))
	used := engine.ImageID("")
	s := newStore(t, func(o *Options) {
		o.InUse = func(_ context.Context, id engine.ImageID) (users []string, err error) {
			if id == used {
				users = []string{"container x"}
			}
			return users, nil
		}
	})
	a, b := pull(t, s, one), pull(t, s, two)
	used = b.ID
	flip(t, filepath.Join(s.layerTree(digest.Digest(a.Layers[0])), "s"))
	flip(t, filepath.Join(s.layerTree(digest.Digest(a.Layers[1])), "a"))
	flip(t, s.blobPath(s.images[b.ID].record.Manifests[0].Manifest.Digest))
	for id, err := range repaired(t, s) {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "container x") {
			t.Errorf("%s: %v", id, err)
		}
	}
	if list, err := s.ListImages(t.Context()); err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if read(t, s, a.ID, 0, "s") == "shared" {
		t.Error("a layer in use was replaced")
	}
	used = ""
	if errs := repaired(t, s); len(errs) != 2 || errs[a.ID] != nil || errs[b.ID] != nil {
		t.Errorf("%v", errs)
	}
	sound(t, s)
	used = b.ID
	flip(t, s.blobPath(s.images[b.ID].record.Manifests[0].Layers[0].Digest))
	if errs := repaired(t, s); len(errs) != 2 || errs[a.ID] != nil || errs[b.ID] != nil {
		t.Errorf("a blob under a container: %v", errs)
	}
	sound(t, s)
}

// R23: at its first use since the start what an image lacks is noticed and brought in anew, out of a sound blob or from the
// registry, once for all who want it; where that fails, the use does, and says why.
//
// Rows: R23
func TestR23DamageIsNoticedAndMendedBeforeUse(t *testing.T) {
	for name, damage := range map[string]func(tree string) error{
		"an empty file": func(tree string) error { return os.Truncate(tree+"/etc/owned", 0) },
		"a cut file":    func(tree string) error { return os.Truncate(tree+"/bin/tool", 4096) },
		"a file less":   func(tree string) error { return os.Remove(tree + "/etc/owned") },
		"a file more":   func(tree string) error { return os.WriteFile(tree+"/etc/more", nil, 0o600) },
		"no tree":       os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			reg := newSite(t, nil)
			ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, richLayer(t)...), layerOf(t, file("top", "2"))))
			s := newStore(t, nil)
			img := pull(t, s, ref)
			tree := s.layerTree(digest.Digest(img.Layers[0]))
			_ = s.Close()
			s = reopen(t, s.root, nil)
			if err := damage(tree); err != nil {
				t.Fatal(err)
			}
			var uses errgroup.Group
			for range 3 {
				uses.Go(func() error { return s.Ready(t.Context(), img.ID) })
			}
			if err := uses.Wait(); err != nil {
				t.Fatal(err)
			}
			sound(t, s)
			if now, err := s.Image(t.Context(), ref); err != nil || now.ID != img.ID {
				t.Errorf("%v, %v", now, err)
			}
			if unseen := s.unseen(img.ID); len(unseen) != 0 {
				t.Errorf("layers %v would be looked at again", unseen)
			}
		})
	}
	t.Run("with its blob", func(t *testing.T) {
		reg := newSite(t, nil)
		ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, richLayer(t)...)))
		s := newStore(t, nil)
		img := pull(t, s, ref)
		blob := s.images[img.ID].record.Manifests[0].Layers[0].Digest
		rot(t, s, img)
		flip(t, s.blobPath(blob))
		s = reopen(t, s.root, nil)
		if err := s.Ready(t.Context(), img.ID); err != nil {
			t.Fatal(err)
		}
		if now, err := s.Image(t.Context(), ref); err != nil || now.ID != img.ID {
			t.Errorf("%v, %v", now, err)
		}
		sound(t, s)
	})
	t.Run("in use", func(t *testing.T) {
		reg := newSite(t, nil)
		ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, richLayer(t)...)))
		s := newStore(t, nil)
		img := pull(t, s, ref)
		rot(t, s, img)
		s = reopen(t, s.root, func(o *Options) {
			o.InUse = func(context.Context, engine.ImageID) ([]string, error) { return []string{"container x"}, nil }
		})
		if err := s.Ready(t.Context(), img.ID); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "container x") {
			t.Error(err)
		}
	})
}

// rot closes the store and cuts a file of an image's first layer short.
func rot(t *testing.T, s *Store, img *engine.Image) {
	t.Helper()
	_ = s.Close()
	if err := os.Truncate(s.layerTree(digest.Digest(img.Layers[0]))+"/etc/owned", 0); err != nil {
		t.Fatal(err)
	}
}

// R23: a container that has ended, as all have after a power cut, does not keep the layers from being mended.
func TestWhatHasEndedKeepsNoLayerFromBeingMended(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, richLayer(t)...)))
	s := newStore(t, nil)
	img := pull(t, s, ref)
	rot(t, s, img)
	s = reopen(t, s.root, func(o *Options) {
		o.InUse = func(context.Context, engine.ImageID) ([]string, error) { return []string{"container x"}, nil }
		o.Mounted = func(context.Context, engine.ImageID) ([]string, error) { return nil, nil }
	})
	if err := s.Ready(t.Context(), img.ID); err != nil {
		t.Error(err)
	}
	sound(t, s)
}

// R23: where a damaged layer's blob is damaged, too, and no registry is known that has it, the image stays as it is.
func TestWhatCannotBeMendedIsNotThrownAway(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, richLayer(t)...)))
	first := newStore(t, nil)
	img := pull(t, first, ref)
	var archive bytes.Buffer
	if err := first.Export(t.Context(), &archive, []string{ref}); err != nil {
		t.Fatal(err)
	}
	reg.Close()
	s := newStore(t, nil)
	if _, err := s.Import(t.Context(), &archive, ImportOptions{Name: "example.org/app:v1"}); err != nil {
		t.Fatal(err)
	}
	blob := s.images[img.ID].record.Manifests[0].Layers[0].Digest
	rot(t, s, img)
	flip(t, s.blobPath(blob))
	s = reopen(t, s.root, nil)
	if err := s.Ready(t.Context(), img.ID); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "import") {
		t.Error(err)
	}
	if now, err := s.Image(t.Context(), string(img.ID)); err != nil || now.ID != img.ID {
		t.Errorf("%v, %v", now, err)
	}
}

// While the registry is away nothing is thrown away; what a sound blob has needs none; and an imported image says so.
func TestMendingWithoutARegistry(t *testing.T) {
	reg := newSite(t, nil)
	pulled := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	s := newStore(t, nil)
	a := pull(t, s, pulled)
	var archive bytes.Buffer
	if err := s.Export(t.Context(), &archive, []string{pulled}); err != nil {
		t.Fatal(err)
	}
	reg.Close()
	tree := s.layerTree(digest.Digest(a.Layers[0]))
	flip(t, filepath.Join(tree, "a"))
	if errs := repaired(t, s); errs[a.ID] != nil {
		t.Error(errs)
	}
	sound(t, s)
	blob := s.blobPath(s.images[a.ID].record.Manifests[0].Layers[0].Digest)
	flip(t, blob)
	if err := repaired(t, s)[a.ID]; !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	if found := verify(t, s)[a.ID]; len(found) != 1 || read(t, s, a.ID, 0, "a") != "1" {
		t.Errorf("%v", found)
	}
	if err := s.RemoveImage(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	if files, _ := left(t, s); len(files) != 0 {
		t.Errorf("%v is left", files)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(archive.Bytes()), ImportOptions{Name: "example.org/app:v1"}); err != nil {
		t.Fatal(err)
	}
	sound(t, s)
	flip(t, blob)
	if err := repaired(t, s)[a.ID]; !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "import it again") {
		t.Error(err)
	}
}

// While a layer is brought in anew, images that have it are recorded all the same; and two repairs do not meet in an image that has what
// each of them mends.
//
// Rows: R23 (part)
func TestRepairsOfSharedLayersAtOnce(t *testing.T) {
	reg := newSite(t, nil)
	one, two := layerOf(t, file("one", noise(20_000))), layerOf(t, file("two", noise(20_000)))
	refs := []string{reg.push(t, "both:v1", imageWith(t, one, two)), reg.push(t, "one:v1", imageWith(t, one)), reg.push(t, "two:v1", imageWith(t, two))}
	s := newStore(t, nil)
	var images []*engine.Image
	for _, ref := range refs {
		images = append(images, pull(t, s, ref))
	}
	both := s.images[images[0].ID].record
	l := s.content.layers[both.DiffIDs[0]]
	delete(s.content.layers, both.DiffIDs[0])
	if _, err := s.newStored(&both); err != nil {
		t.Error(err)
	}
	s.content.layers[both.DiffIDs[0]] = l
	for range 2 {
		_ = s.Close()
		for i, name := range []string{"one", "two"} {
			if err := os.Truncate(filepath.Join(s.layerTree(both.DiffIDs[i]), name), 0); err != nil {
				t.Fatal(err)
			}
		}
		s = reopen(t, s.root, nil)
		var uses errgroup.Group
		for _, img := range images {
			uses.Go(func() error { return s.Ready(t.Context(), img.ID) })
		}
		if err := uses.Wait(); err != nil {
			t.Fatal(err)
		}
		for i, ref := range refs {
			if now, err := s.Image(t.Context(), ref); err != nil || now.ID != images[i].ID {
				t.Errorf("%v, %v", now, err)
			}
		}
		sound(t, s)
	}
}
