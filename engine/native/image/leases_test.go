package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// archived is what a store exports of an image.
func archived(t *testing.T, ref string) []byte {
	t.Helper()
	from := newStore(t, nil)
	pull(t, from, ref)
	var data bytes.Buffer
	if err := from.Export(t.Context(), &data, []string{ref}); err != nil {
		t.Fatal(err)
	}
	return data.Bytes()
}

// during is an archive in whose middle, at n bytes, something else happens.
func during(data []byte, n int, do func()) io.Reader {
	return io.MultiReader(bytes.NewReader(data[:n]), &once{do}, bytes.NewReader(data[n:]))
}

// once does something at its place of a reader.
type once struct{ do func() }

func (o *once) Read([]byte) (int, error) {
	if o.do != nil {
		o.do()
		o.do = nil
	}
	return 0, io.EOF
}

// On a crowded disk Run collects with age 0 at each sample, also in the middle of an import.
func TestACollectionSparesAnImport(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("b", "2"))))
	data := archived(t, ref)
	to := newStore(t, nil)
	half := len(data) * 3 / 4
	r := during(data, half, func() {
		time.Sleep(20 * time.Millisecond)
		if err := to.Collect(context.Background(), 0); err != nil {
			t.Error(err)
		}
	})
	if _, err := to.Import(t.Context(), r, ImportOptions{Source: "x"}); err != nil {
		t.Fatal(err)
	}
}

// The archive's layer is here, by another image, which is removed before the archive ends.
func TestARemovalSparesAnImport(t *testing.T) {
	reg := newSite(t, nil)
	shared := layerOf(t, file("a", "1"))
	ref := reg.push(t, "app:v1", imageWith(t, shared, layerOf(t, file("b", "2"))))
	other := reg.push(t, "other:v1", imageWith(t, shared, layerOf(t, file("c", "3"))))
	data := archived(t, ref)
	to := newStore(t, nil)
	img := pull(t, to, other)
	n := len(data) - 1024
	r := during(data, n, func() {
		if err := to.RemoveImage(context.Background(), img.ID); err != nil {
			t.Error(err)
		}
	})
	if _, err := to.Import(t.Context(), r, ImportOptions{Source: "x"}); err != nil {
		t.Fatal(err)
	}
}

// An import that breaks off leaves what another one of the same archive has just put there.
func TestImportsOfTheSameArchiveDoNotDisturbEachOther(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("b", "2"))))
	data := archived(t, ref)
	to := newStore(t, nil)
	n := len(data) - 1024
	r := during(data, n, func() {
		// Another client's upload of it that breaks off.
		if _, err := to.Import(context.Background(), bytes.NewReader(data[:n-600]), ImportOptions{Source: "y"}); err == nil {
			t.Error("a broken archive was taken")
		}
	})
	if _, err := to.Import(t.Context(), r, ImportOptions{Source: "x"}); err != nil {
		t.Fatal(err)
	}
}

// What a node prunes must not stay in memory.
func TestRemovedLayersAreForgotten(t *testing.T) {
	reg := newSite(t, nil)
	s := newStore(t, nil)
	for i := range 5 {
		img := pull(t, s, reg.push(t, fmt.Sprintf("app:v%d", i), imageWith(t, layerOf(t, file("a", fmt.Sprint(i))))))
		if err := s.RemoveImage(t.Context(), img.ID); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.content.looked); n != 0 {
		t.Errorf("%d layers are remembered that are gone", n)
	}
}

// A crash between the record of the newer image and that of the older, then the newer is removed.
func TestATagThatMovedStaysMoved(t *testing.T) {
	reg := newSite(t, nil)
	root := filepath.Join(t.TempDir(), "images")
	s := reopen(t, root, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	first := pull(t, s, ref)
	path := s.path(recordsDir, recordName(first.ID))
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	second := pull(t, s, reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "2")))))
	if err := os.WriteFile(path, before, 0o600); err != nil { // as the crash leaves it
		t.Fatal(err)
	}
	_ = s.Close()
	s = reopen(t, root, nil)
	if err := s.RemoveImage(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Image(t.Context(), ref); err == nil {
		t.Fatalf("%s has it", img.ID)
	}
	_ = s.Close()
	s = reopen(t, root, nil)
	if img, err := s.Image(t.Context(), ref); err == nil {
		t.Errorf("after a restart the tag is that of the older image again: %v", img.RepoTags)
	}
}

// index.json names the manifests of several platforms under one name, as crane and bazel write it.
func TestALayoutOfSeveralPlatformsUnderOneName(t *testing.T) {
	here := hostPlatform()
	mine := imageWith(t, layerOf(t, file("a", "1")))
	other := imageWith(t, layerOf(t, file("b", "2")))
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	ann := layout.WithAnnotations(map[string]string{"io.containerd.image.name": "reg.example/app:v1", "org.opencontainers.image.ref.name": "v1"})
	if err := p.AppendImage(mine, ann, layout.WithPlatform(v1.Platform{OS: here.OS, Architecture: here.Architecture})); err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(other, ann, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "s390x"})); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	if _, err := s.ImportDir(t.Context(), dir, ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	img, err := s.Image(t.Context(), "reg.example/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if want := hexOf(mine.ConfigName()); string(img.ID) != want {
		t.Errorf("the tag is that of another platform's image")
	}
}

// Each file of an archive is remembered until the import ends, also where several have one name.
func TestAnArchiveOfOneNameWithoutEnd(t *testing.T) {
	s := newStore(t, func(o *Options) { o.Limits.ArchiveEntries = 100 })
	var entries []entry
	for range 101 {
		entries = append(entries, file("a", "x"))
	}
	_, err := s.Import(t.Context(), bytes.NewReader(archive(t, entries...)), ImportOptions{})
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("%d entries, of which 100 are allowed: %v", len(entries), err)
	}
}

// Who releases what it does not hold is in nobody's way.
func TestAReleaseWithoutAHold(t *testing.T) {
	reg := newSite(t, nil)
	s := newStore(t, nil)
	img := pull(t, s, reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1")))))
	s.Release(img.ID, "a")
	for range 2 {
		if err := s.Hold(t.Context(), img.ID, "a"); err != nil {
			t.Fatal(err)
		}
	}
	s.Release(img.ID, "b")
	s.Release(img.ID, "a")
	if err := s.RemoveImage(t.Context(), img.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("held once of twice: %v", err)
	}
	s.Release(img.ID, "a")
	s.Release(img.ID, "a")
	if err := s.RemoveImage(t.Context(), img.ID); err != nil {
		t.Error(err)
	}
}
