package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"crishim/engine"
	"crishim/internal/powercut"
)

// Wherever the power is cut while images are pulled, tagged anew and removed, the store opens; what it lists is whole, bit by
// bit; what a call had answered for is as it said; and what was lost can be pulled again.
//
// Rows: R22
func TestR22APowerCutLeavesOnlyWholeImages(t *testing.T) {
	needRoot(t)
	disk := powercut.New(t, 32<<20)
	root := filepath.Join(disk.Dir, "images")
	s := reopen(t, root, nil)
	reg := newSite(t, nil)
	base := layerOf(t, dir("base"), file("base/a", noise(40_000)), file("base/empty", ""))
	push := func(ref, content string) string {
		return reg.push(t, ref, imageWith(t, base, layerOf(t, file("own", content))))
	}
	one, two := push("app:one", noise(30_001)), push("app:two", noise(30_002))

	// change is one call: what is listed under the reference afterwards, by when the disk had first and last to do with it.
	type change struct {
		ref            string
		id             engine.ImageID // "" for none
		begun, durable int
	}
	var changes []change
	do := func(ref string, call func() (engine.ImageID, error)) {
		t.Helper()
		c := change{ref: ref, begun: disk.Now()}
		id, err := call()
		if err != nil {
			t.Fatal(err)
		}
		c.id, c.durable = id, disk.Now()
		changes = append(changes, c)
	}
	contents := map[engine.ImageID]string{} // of the topmost layer's file
	pulled := func(ref, content string) {
		t.Helper()
		do(ref, func() (engine.ImageID, error) {
			img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref})
			if err != nil {
				return "", err
			}
			contents[img.ID] = content
			return img.ID, nil
		})
	}
	removed := func(ref string) {
		t.Helper()
		do(ref, func() (engine.ImageID, error) { return "", s.RemoveImage(t.Context(), engine.ImageID(ref)) })
	}
	pulled(one, noise(30_001))
	pulled(two, noise(30_002))
	removed(one)
	push("app:two", noise(30_003)) // the tag moves on
	pulled(two, noise(30_003))
	pulled(one, noise(30_001))
	removed(two)
	if err := s.Collect(t.Context(), 0); err != nil {
		t.Fatal(err)
	}

	moments, again := disk.Moments(30), 0
	for n, at := range moments {
		for _, lossy := range []bool{false, true} {
			disk.Cut(at, lossy, func(dir string) {
				fail := func(format string, args ...any) {
					t.Errorf("cut after write %d of %d (lossy: %v): %s", at, disk.Now(), lossy, fmt.Sprintf(format, args...))
				}
				s, err := Open(Options{Root: filepath.Join(dir, "images")})
				if err != nil {
					fail("%v", err)
					return
				}
				defer func() { _ = s.Close() }()
				list, err := s.ListImages(t.Context())
				if err != nil {
					fail("%v", err)
				}
				for i := range list {
					if err := whole(t.Context(), s, list[i].ID, contents[list[i].ID], noise(40_000)); err != nil {
						fail("image %s %v is listed: %v", list[i].ID, list[i].RepoTags, err)
					}
				}
				for _, ref := range []string{one, two} {
					possible := map[engine.ImageID]bool{"": true}
					for _, c := range changes {
						if c.ref == ref && c.durable <= at {
							possible = map[engine.ImageID]bool{}
						}
						if c.ref == ref && (c.begun < at || c.durable <= at) {
							possible[c.id] = true
						}
					}
					id := engine.ImageID("")
					if img, err := s.Image(t.Context(), ref); err == nil {
						id = img.ID
					}
					if !possible[id] {
						fail("%s is image %q, possible are %v", ref, id, slices.Collect(maps.Keys(possible)))
					}
				}
				if n%5 != 0 {
					return
				}
				again++
				img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: one})
				if err == nil {
					err = whole(t.Context(), s, img.ID, contents[img.ID], noise(40_000))
				}
				if err != nil {
					fail("pull it again: %v", err)
				}
			})
		}
	}
	t.Logf("%d cuts in %d writes, %d pulls after one", 2*len(moments), disk.Now(), again)
}

// whole reads all of an image: its blobs against their digests, and its layers against what they were made of.
func whole(ctx context.Context, s *Store, id engine.ImageID, own, base string) error {
	s.mu.Lock()
	img := s.images[id]
	s.mu.Unlock()
	for i := range img.record.Manifests {
		for _, b := range img.record.Manifests[i].blobs() {
			f, err := os.Open(s.blobPath(b.Digest))
			if err != nil {
				return err
			}
			sum := digest.SHA256.Digester()
			_, err = io.Copy(sum.Hash(), f)
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			if sum.Digest() != b.Digest {
				return fmt.Errorf("blob %s is %s", b.Digest, sum.Digest())
			}
		}
	}
	dirs, err := s.LayerDirs(ctx, id)
	if err != nil {
		return err
	}
	for path, want := range map[string]string{filepath.Join(dirs[0], "base/a"): base, filepath.Join(dirs[0], "base/empty"): "", filepath.Join(dirs[1], "own"): own} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			return fmt.Errorf("%s has %d bytes, %w", path, len(got), err)
		}
	}
	return nil
}

// Wherever the power is cut while damaged layers are brought in anew, the image is there, each of its layers new or as it was, and can
// be mended again.
//
// Rows: R22 (part), R23 (part)
func TestR22APowerCutWhileDamageIsMendedLosesNoImage(t *testing.T) {
	needRoot(t)
	disk := powercut.New(t, 32<<20)
	s := reopen(t, filepath.Join(disk.Dir, "images"), nil)
	reg := newSite(t, nil)
	files := []string{"a", "b"}
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", noise(40_000))), layerOf(t, file("b", noise(30_000)))))
	img := pull(t, s, ref)
	for i, name := range files {
		flip(t, filepath.Join(s.layerTree(digest.Digest(img.Layers[i])), name))
	}
	if err := syncFS(s.root); err != nil {
		t.Fatal(err)
	}
	begun := disk.Now()
	if err := repaired(t, s)[img.ID]; err != nil {
		t.Fatal(err)
	}
	reg.Close()
	cuts, mended := 0, 0
	for at := begun; at <= disk.Now(); at += max(1, (disk.Now()-begun)/20) {
		for _, lossy := range []bool{false, true} {
			cuts++
			disk.Cut(at, lossy, func(dir string) {
				s, err := Open(Options{Root: filepath.Join(dir, "images")})
				if err != nil {
					t.Errorf("cut after write %d of %d to %d (lossy: %v): %v", at, begun, disk.Now(), lossy, err)
					return
				}
				defer func() { _ = s.Close() }()
				if now, err := s.Image(t.Context(), ref); err != nil || now.ID != img.ID {
					t.Errorf("cut after write %d of %d to %d (lossy: %v): %v, %v", at, begun, disk.Now(), lossy, now, err)
					return
				}
				for _, err := range repaired(t, s) {
					mended++
					if err != nil {
						t.Errorf("cut after write %d of %d to %d (lossy: %v): mended again: %v", at, begun, disk.Now(), lossy, err)
					}
				}
				s.removeLeft(t.Context())
				sound(t, s)
			})
		}
	}
	if cuts < 10 || mended == 0 {
		t.Errorf("%d cuts, after %d of which the image was damaged still: the test proves nothing", cuts, mended)
	}
}
