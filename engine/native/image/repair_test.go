package image

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"crishim/engine"
	"crishim/registry"
)

// midway is a registry that does something once, when the content of a path is asked for, before it answers.
type midway struct {
	*site
	todo atomic.Pointer[errand]
}

type errand struct {
	path string
	do   func()
}

func newMidway(t *testing.T) *midway {
	t.Helper()
	m := new(midway)
	m.site = newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if e := m.todo.Load(); e != nil && r.Method == http.MethodGet && strings.Contains(r.URL.Path, e.path) && m.todo.CompareAndSwap(e, nil) {
				e.do()
			}
			next.ServeHTTP(w, r)
		}
	})
	return m
}

// The moments of a repair that fetches a blob: before and after it has taken the layer's folder.
func (m *midway) beforeTaking(do func()) { m.todo.Store(&errand{"/manifests/sha256:", do}) }
func (m *midway) whileTaken(do func())   { m.todo.Store(&errand{"/blobs/", do}) }

// rotten damages an image's first layer, with its only file, and the blob that it would be unpacked from.
func rotten(t *testing.T, s *Store, img *engine.Image) (tree string) {
	t.Helper()
	tree = s.layerTree(digest.Digest(img.Layers[0]))
	flip(t, filepath.Join(tree, "s"))
	flip(t, s.blobPath(s.images[img.ID].record.Manifests[0].Layers[0].Digest))
	return tree
}

// rotOf is what rotten has done.
func rotOf(s *Store, img *engine.Image) []Damage {
	return []Damage{
		{Digest: digest.Digest(img.Layers[0]), Layer: true},
		{Digest: s.images[img.ID].record.Manifests[0].Layers[0].Digest},
	}
}

// mend repairs it.
func mend(t *testing.T, s *Store, damaged []Damage) map[engine.ImageID]error {
	t.Helper()
	errs := map[engine.ImageID]error{}
	if err := s.Repair(t.Context(), damaged, func(img *engine.Image, err error) { errs[img.ID] = err }); err != nil {
		t.Fatal(err)
	}
	return errs
}

// fetched is what a pull has got that is about to record its image.
func fetched(t *testing.T, s *Store, ref string) *found {
	t.Helper()
	named, err := registry.ParseName(ref)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := openRepository(nil, named, registry.Credentials{}, Options{}, time.Minute, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(repo.close)
	tag, err := version(named)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.resolve(t.Context(), repo, tag, "", newProgress())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.release)
	if err := s.fetchLayers(t.Context(), repo, f, newProgress()); err != nil {
		t.Fatal(err)
	}
	return f
}

// ended is a context that nobody waits with.
func ended(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// A pull that found a layer whole records its image while the layer is being replaced: nobody is told of the folder until that is done.
func TestNoFolderIsToldOfWhileItIsReplaced(t *testing.T) {
	shared := layerOf(t, file("s", "shared"))
	for name, other := range map[string]bool{"the same image": false, "another image": true} {
		t.Run(name, func(t *testing.T) {
			reg := newMidway(t)
			image := imageWith(t, shared)
			one, two := reg.push(t, "one:v1", image), reg.push(t, "two:v1", image)
			if other {
				two = reg.push(t, "two:v1", imageWith(t, shared, layerOf(t, file("a", "1"))))
			}
			s := newStore(t, nil)
			a := pull(t, s, one)
			f := fetched(t, s, two)
			rotten(t, s, a)
			reg.whileTaken(func() {
				if err := s.publish(f, names{tags: []string{two}}); err != nil {
					t.Error(err)
				}
				if dirs, err := s.LayerDirs(ended(t), f.id()); !errors.Is(err, context.Canceled) {
					t.Errorf("told of %v, %v", dirs, err)
				}
				if err := s.Ready(ended(t), f.id()); !errors.Is(err, context.Canceled) {
					t.Errorf("it is ready: %v", err)
				}
			})
			if err := mend(t, s, rotOf(s, a))[a.ID]; err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{one, two} {
				if img, err := s.Image(t.Context(), ref); err != nil || read(t, s, img.ID, 0, "s") != "shared" {
					t.Errorf("%s: %v, %v", ref, img, err)
				}
			}
			if err := s.Ready(t.Context(), f.id()); err != nil {
				t.Error(err)
			}
			sound(t, s)
		})
	}
}

// A container that is made while a repair looks where content is to come from keeps the folders that it was told of, of whichever
// image that has the layer, also of one that is no longer recorded.
func TestNoLayerIsReplacedUnderAContainerMadeMeanwhile(t *testing.T) {
	shared := layerOf(t, file("s", "shared"))
	for name, of := range map[string]func(t *testing.T, s *Store, a *engine.Image, other string) engine.ImageID{
		"of the image": func(_ *testing.T, _ *Store, a *engine.Image, _ string) engine.ImageID { return a.ID },
		"of an image pulled meanwhile": func(t *testing.T, s *Store, _ *engine.Image, other string) engine.ImageID {
			img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: other})
			if err != nil {
				t.Error(err)
				return ""
			}
			return img.ID
		},
		"of an image without a record": func(t *testing.T, s *Store, _ *engine.Image, other string) engine.ImageID {
			img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: other})
			if err == nil {
				_, err = s.forget(img.ID)
			}
			if err != nil {
				t.Error(err)
				return ""
			}
			return img.ID
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newMidway(t)
			one, two := reg.push(t, "one:v1", imageWith(t, shared)), reg.push(t, "two:v1", imageWith(t, shared, layerOf(t, file("a", "1"))))
			var used atomic.Value
			used.Store(engine.ImageID(""))
			s := newStore(t, func(o *Options) {
				o.InUse = func(_ context.Context, id engine.ImageID) (users []string, err error) {
					if id == used.Load() {
						users = []string{"container x"}
					}
					return users, nil
				}
			})
			a := pull(t, s, one)
			tree := rotten(t, s, a)
			before, err := os.Stat(tree)
			if err != nil {
				t.Fatal(err)
			}
			reg.beforeTaking(func() { used.Store(of(t, s, a, two)) })
			err = mend(t, s, rotOf(s, a))[a.ID]
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "stays as it is") {
				t.Error(err)
			}
			if now, err := os.Stat(tree); err != nil || !os.SameFile(before, now) {
				t.Errorf("the layer was replaced: %v", err)
			}
			used.Store(engine.ImageID(""))
			for range 2 { // of a damaged blob's layer only the second look can tell
				if errs := repaired(t, s); errs[a.ID] != nil {
					t.Error(errs)
				}
			}
			sound(t, s)
		})
	}
}

// Names that images get and lose while one is being repaired stay so, also on disk.
func TestNamesChangeDuringARepair(t *testing.T) {
	reg := newMidway(t)
	image := imageWith(t, layerOf(t, file("s", "shared")))
	moved, kept, added := reg.push(t, "app:v1", image), reg.push(t, "app:v2", image), reg.push(t, "app:v3", image)
	s := newStore(t, nil)
	pull(t, s, moved)
	a := pull(t, s, kept)
	rotten(t, s, a)
	reg.push(t, "app:v1", imageWith(t, layerOf(t, file("t", "other"))))
	reg.beforeTaking(func() {
		for _, ref := range []string{moved, added} {
			if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); err != nil {
				t.Error(err)
			}
		}
		if img, err := s.Image(t.Context(), kept); err != nil || img.ID != a.ID {
			t.Errorf("during the repair: %v, %v", img, err)
		}
	})
	if err := mend(t, s, rotOf(s, a))[a.ID]; err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if img, err := s.Image(t.Context(), string(a.ID)); err != nil || !slices.Equal(img.RepoTags, []string{kept, added}) {
			t.Errorf("%v, %v", img, err)
		}
		if img, err := s.Image(t.Context(), moved); err != nil || img.ID == a.ID {
			t.Errorf("the name that moved: %v, %v", img, err)
		}
		sound(t, s)
		_ = s.Close()
		s = reopen(t, s.root, nil)
	}
}

// An image is not removed in the middle of its repair, which would bring it back; nor does a second repair, or who removes it, wait for
// longer than they will.
func TestARepairIsWaitedFor(t *testing.T) {
	reg := newMidway(t)
	s := newStore(t, nil)
	a := pull(t, s, reg.push(t, "app:v1", imageWith(t, layerOf(t, file("s", "shared")))))
	blob := []Damage{{Digest: s.images[a.ID].record.Manifests[0].Layers[0].Digest}}
	flip(t, s.blobPath(blob[0].Digest))
	reg.beforeTaking(func() {
		if err := s.RemoveImage(ended(t), a.ID); !errors.Is(err, context.Canceled) {
			t.Errorf("removed: %v", err)
		}
		if err := s.Repair(ended(t), blob, func(*engine.Image, error) { t.Error("a second repair") }); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	if errs := mend(t, s, blob); len(errs) != 1 || errs[a.ID] != nil {
		t.Error(errs)
	}
	sound(t, s)
	if err := s.RemoveImage(t.Context(), a.ID); err != nil {
		t.Error(err)
	}
	if files, _ := left(t, s); len(files) != 0 {
		t.Errorf("%v is left", files)
	}
}

// Damaged content that no image has any more does not lie about for the next pull to take.
func TestDamagedContentOfNoImageGoes(t *testing.T) {
	reg := newMidway(t)
	s := newStore(t, nil)
	a := pull(t, s, reg.push(t, "app:v1", imageWith(t, layerOf(t, file("s", "shared")))))
	tree, damaged := rotten(t, s, a), rotOf(s, a)
	if _, err := s.forget(a.ID); err != nil {
		t.Fatal(err)
	}
	if errs := mend(t, s, damaged); len(errs) != 0 {
		t.Error(errs)
	}
	for _, path := range []string{tree, s.blobPath(damaged[1].Digest)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}
