package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// indexOf is an index with the image for this platform and another one for another.
func indexOf(t *testing.T, img v1.Image) v1.ImageIndex {
	t.Helper()
	here := hostPlatform()
	other := imageWith(t, layerOf(t, file("other", "x")))
	return mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: here.OS, Architecture: here.Architecture}}})
}

func TestExportedImagesComeBackTheSame(t *testing.T) {
	reg := newSite(t, nil)
	img := imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("b", "2")))
	plain, index := reg.push(t, "app:v1", img), reg.push(t, "multi:v1", indexOf(t, imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("c", "3")))))
	from := newStore(t, nil)
	pull(t, from, plain)
	pull(t, from, plain+"@"+hexOf(img.Digest()))
	pull(t, from, index)
	want, err := from.ListImages(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	var first bytes.Buffer
	if err := from.Export(t.Context(), &first, []string{string(want[0].ID), string(want[1].ID)}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	umask := unix.Umask(0o077) // a daemon's
	err = from.ExportDir(t.Context(), dir, []string{plain, index})
	unix.Umask(umask)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{"": os.ModeDir | 0o755, "blobs/sha256": os.ModeDir | 0o755, "index.json": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode() != want {
			t.Errorf("%q is %v, %v", path, info.Mode(), err)
		}
	}
	imports := map[string]func(*Store) ([]engine.Image, error){
		"tar": func(s *Store) ([]engine.Image, error) {
			return s.Import(t.Context(), bytes.NewReader(first.Bytes()), ImportOptions{Source: "tar"})
		},
		"gzip": func(s *Store) ([]engine.Image, error) {
			return s.Import(t.Context(), bytes.NewReader(gzipped(t, first.Bytes())), ImportOptions{Source: "gzip"})
		},
		"layout": func(s *Store) ([]engine.Image, error) { return s.ImportDir(t.Context(), dir, ImportOptions{}) },
		"unlocked": func(s *Store) ([]engine.Image, error) {
			return s.Import(t.Context(), bytes.NewReader(first.Bytes()), ImportOptions{})
		},
	}
	for how, load := range imports {
		t.Run(how, func(t *testing.T) {
			to := newStore(t, nil)
			if got, err := load(to); err != nil || len(got) != 2 {
				t.Fatalf("%d images, %v", len(got), err)
			}
			got, err := to.ListImages(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if got[i].ID != want[i].ID || !slices.Equal(got[i].RepoTags, want[i].RepoTags) || !slices.Equal(got[i].RepoDigests, want[i].RepoDigests) || got[i].Size != want[i].Size {
					t.Errorf("got  %+v\nwant %+v", got[i], want[i])
				}
			}
			if read(t, to, got[0].ID, 0, "a") != "1" {
				t.Error("another layer")
			}
			// And again: byte for byte.
			var second bytes.Buffer
			if err := to.Export(t.Context(), &second, []string{string(want[0].ID), string(want[1].ID)}); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
				t.Errorf("a second export differs: %v", err)
			}
			if parts, _ := os.ReadDir(to.path(partsDir)); len(parts) != 0 {
				t.Errorf("%d parts are left", len(parts))
			}
		})
	}
}

// What other tools write, this reads, and the other way round.
func TestArchivesOfOtherTools(t *testing.T) {
	img := imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("b", "2")))
	path := filepath.Join(t.TempDir(), "ggcr.tar")
	tag, err := name.NewTag("example.org/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	saved, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = saved.Close() }()
	got, err := s.Import(t.Context(), saved, ImportOptions{})
	if err != nil || len(got) != 1 || string(got[0].ID) != hexOf(img.ConfigName()) || !slices.Equal(got[0].RepoTags, []string{"example.org/team/app:v1"}) {
		t.Fatalf("%+v %v", got, err)
	}
	var out bytes.Buffer
	if err := s.Export(t.Context(), &out, []string{"example.org/team/app:v1"}); err != nil {
		t.Fatal(err)
	}
	back, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil }, &tag)
	if err != nil || hexOf(back.ConfigName()) != string(got[0].ID) {
		t.Fatal(err)
	}

	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	other := newStore(t, nil)
	got, err = other.ImportDir(t.Context(), dir, ImportOptions{Name: "renamed:v2"})
	if err != nil || len(got) != 1 || !slices.Equal(got[0].RepoTags, []string{"renamed:v2"}) {
		t.Fatalf("%+v %v", got, err)
	}
}

// oldSave is an archive as Docker before 25 saves it: folders of layers, plain, equal ones linked to each other.
func oldSave(t *testing.T, change func(files map[string][]byte)) []byte {
	t.Helper()
	layer := archive(t, file("a", "1"))
	diffID := fmt.Sprintf("sha256:%x", sha256.Sum256(layer))
	config := []byte(`{"architecture":"` + hostPlatform().Architecture + `","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["` + diffID + `","` + diffID + `"]}}`)
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	list, err := json.Marshal([]dockerManifest{{Config: configName, RepoTags: []string{"old:v1"}, Layers: []string{"one/layer.tar", "two/layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{configName: config, "manifest.json": list, "one/layer.tar": layer, "repositories": []byte("{}")}
	if change != nil {
		change(files)
	}
	entries := []entry{{tar.Header{Name: "two/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../one/layer.tar"}, ""}}
	for name, data := range files {
		entries = append(entries, file(name, string(data)))
	}
	return archive(t, entries...)
}

func TestArchiveOfAnOldDockerSave(t *testing.T) {
	s := newStore(t, nil)
	got, err := s.Import(t.Context(), bytes.NewReader(oldSave(t, nil)), ImportOptions{})
	if err != nil || len(got) != 1 || !slices.Equal(got[0].RepoTags, []string{"old:v1"}) || read(t, s, got[0].ID, 1, "a") != "1" {
		t.Fatalf("%+v %v", got, err)
	}
}

// Rows: S39 (part)
func TestBadArchivesAreRefusedAndLeaveNothing(t *testing.T) {
	for name, data := range map[string][]byte{
		"nothing":       nil,
		"no archive":    bytes.Repeat([]byte("x"), 2000),
		"no index":      archive(t, file("a", "b")),
		"a broken list": oldSave(t, func(f map[string][]byte) { f["manifest.json"] = []byte("[{") }),
		"a list with a key twice": oldSave(t, func(f map[string][]byte) {
			f["manifest.json"] = []byte(`[{"Config":"a","Config":"b","Layers":[]}]`)
		}),
		"a layer that is not there":    oldSave(t, func(f map[string][]byte) { delete(f, "one/layer.tar") }),
		"another layer":                oldSave(t, func(f map[string][]byte) { f["one/layer.tar"] = archive(t, file("b", "2")) }),
		"a blob of another digest":     archive(t, file("blobs/sha256/"+fmt.Sprintf("%064d", 1), "x"), file("index.json", "{}")),
		"links in a circle":            archive(t, entry{tar.Header{Name: "index.json", Typeflag: tar.TypeSymlink, Linkname: "index.json"}, ""}),
		"an archive that ends early":   oldSave(t, nil)[:3000],
		"an index that is no index":    archive(t, file("index.json", `{"schemaVersion":2,"config":{},"layers":[]}`)),
		"a link in an index to a path": archive(t, file("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:../../../../etc/passwd"}]}`)),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, nil)
			_, err := s.Import(t.Context(), bytes.NewReader(data), ImportOptions{})
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) {
				t.Fatalf("%v", err)
			}
			list, _ := s.ListImages(t.Context())
			for _, folder := range []string{partsDir, tempDir, layersDir} {
				if left, _ := os.ReadDir(s.path(folder)); len(left) != 0 && folder != layersDir || len(list) != 0 {
					t.Errorf("%s holds %v, images %v", folder, left, list)
				}
			}
		})
	}
}
