package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// An image that unpacks without end, in one layer or over all, or is compressed in a form that is not undone here, fails and
// leaves nothing that was unpacked.
//
// Rows: S37 (part)
func TestS37AnImageThatIsABombLeavesNothing(t *testing.T) {
	needRoot(t)
	reg := newSite(t, nil)
	zeros := strings.Repeat("\x00", 8<<20)
	xz := archive(t, file("f", "x"))
	copy(xz, "\xfd7zXZ\x00") // whatever follows: it is not looked at
	for name, test := range map[string]struct {
		limit func(*Limits)
		ref   string
		want  func(error) bool
	}{
		"a layer": {func(l *Limits) { l.Layer.Bytes = 4 << 20 },
			reg.push(t, "bomb:layer", imageWith(t, layerOf(t, file("small", "1")), layerOf(t, file("f", zeros)))), errdefs.IsResourceExhausted},
		"all layers": {func(l *Limits) { l.Layer.Reserve = 52 << 20 },
			reg.push(t, "bomb:all", imageWith(t, layerOf(t, file("f", zeros)), layerOf(t, file("g", zeros)))), fullButForTheReserve},
		"another form": {func(*Limits) {},
			reg.push(t, "bomb:xz", imageWith(t, static.NewLayer(xz, types.DockerLayer))), errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			limits := DefaultLimits
			test.limit(&limits)
			disk := t.TempDir()
			if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
			s := reopen(t, filepath.Join(disk, "images"), func(o *Options) { o.Limits = limits })
			if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: test.ref}); !test.want(err) {
				t.Fatalf("the pull: %v", err)
			}
			if list, err := s.ListImages(t.Context()); err != nil || len(list) > 0 {
				t.Errorf("listed: %v, %v", list, err)
			}
			if err := s.Close(); err != nil { // what the pull left in the middle has ended
				t.Fatal(err)
			}
			again := reopen(t, s.root, nil)
			if err := again.Collect(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if files, bytes := left(t, again); bytes > 0 {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

// fullButForTheReserve says that something was ended before the disk was full.
func fullButForTheReserve(err error) bool {
	return errdefs.IsResourceExhausted(err) && !errors.Is(err, unix.ENOSPC)
}

// What an image takes is bounded by the disk: its layers may be as large as they like where there is room, an image that there
// is no room for is refused before a layer is fetched, and so is what comes in larger than was said.
//
// Rows: S37 (part)
func TestS37AnImageFitsOrIsRefused(t *testing.T) {
	needRoot(t)
	reg := newSite(t, nil)
	whole := imageWith(t, layerOf(t, file("f", noise(3<<20))), layerOf(t, file("g", noise(3<<20))))
	ref := reg.push(t, "app:v1", whole)
	var archive bytes.Buffer
	source := newStore(t, nil)
	pull(t, source, ref)
	if err := source.Export(t.Context(), &archive, []string{ref}); err != nil {
		t.Fatal(err)
	}
	disk := newDisk(t, "tmpfs") // of 8 MiB
	on := func(name string, reserve int64) *Store {
		limits := DefaultLimits
		limits.Layer.Reserve = reserve
		return reopen(t, filepath.Join(disk.dir, name), func(o *Options) { o.Limits = limits })
	}
	asked := reg.count(http.MethodGet, "/blobs/")
	s := on("small", 4<<20)
	_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref})
	if !fullButForTheReserve(err) || !strings.Contains(err.Error(), "6145 KiB to be fetched") || !strings.Contains(err.Error(), "of 8192 KiB has 4") {
		t.Errorf("the pull: %v", err)
	}
	if n := reg.count(http.MethodGet, "/blobs/") - asked; n != 1 { // the config
		t.Errorf("%d blobs were asked for", n)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(archive.Bytes()), ImportOptions{Source: "a test"}); !fullButForTheReserve(err) || !strings.Contains(err.Error(), "archive entry") {
		t.Errorf("the import: %v", err)
	}
	content := strings.Repeat("x", 7<<20) // that would go, and others may have taken the room since it was looked for
	desc := ocispec.Descriptor{Digest: digest.FromString(content), Size: int64(len(content))}
	if err := s.ensureBlob(t.Context(), contentSource(content), desc, newProgress()); !fullButForTheReserve(err) {
		t.Errorf("the fetch: %v", err)
	}
}

// claimed is a layer that its image says is another one.
type claimed struct {
	v1.Layer
	diffID v1.Hash
}

func (c claimed) DiffID() (v1.Hash, error) { return c.diffID, nil }

// A blob that claims to be a layer that is here is only looked at, and no further than that layer is long.
//
// Rows: S37 (part)
func TestS37ABombInTheNameOfALayer(t *testing.T) {
	reg := newSite(t, nil)
	small := layerOf(t, file("f", "1"))
	diffID, err := small.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	pull(t, s, reg.push(t, "app:v1", imageWith(t, small)))
	bomb := reg.push(t, "bomb:v1", imageWith(t, claimed{layerOf(t, file("f", strings.Repeat("\x00", 8<<20))), diffID}))
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: bomb}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("the pull: %v", err)
	}
}

// contentSource has one blob.
type contentSource string

func (c contentSource) open(_ context.Context, _ digest.Digest, offset int64) (*blobStream, error) {
	return &blobStream{Reader: strings.NewReader(string(c)[offset:]), close: func() {}}, nil
}

// The manifest of a model's image.
func TestLayersMayBeLarge(t *testing.T) {
	layer := func(size int64) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%064x","size":%d}`, types.OCILayer, size, size)
	}
	manifest := func(layers ...string) *document {
		doc, err := parseDocument(fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":"sha256:%064x","size":2},"layers":[%s]}`,
			types.OCIManifestSchema1, types.OCIConfigJSON, 1, strings.Join(layers, ",")), "")
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	limits := DefaultLimits
	_, layers, err := manifest(layer(300<<30), layer(300<<30+1)).links(&limits)
	if err != nil || len(layers) != 2 {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	if _, layers, err = manifest(layer(1<<62), layer(1<<62+1)).links(&limits); err != nil {
		t.Fatal(err)
	}
	if err := s.checkRoom(layers); !errdefs.IsInvalidArgument(err) {
		t.Errorf("layers of 8 EiB: %v", err)
	}
	if err := s.checkRoom(layers[:1]); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a layer of 4 EiB: %v", err)
	}
}

// The store holds set-id programs and devices of images: nobody but root comes near them, whoever made its folder.
//
// Rows: S36 (part)
func TestS36TheStoreIsClosedToOthers(t *testing.T) {
	needRoot(t)
	root := filepath.Join(t.TempDir(), "images")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	reopen(t, root, nil)
	if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// What a pull that did not fit has brought goes before a kubelet has to evict pods for it.
//
// Rows: S37 (part)
func TestUnusedContentIsNotKeptOnACrowdedDisk(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	s := reopen(t, filepath.Join(disk, "images"), nil)
	if got := s.keepUnused(); got != DefaultKeepUnused {
		t.Errorf("on an empty disk it is kept for %v", got)
	}
	if err := os.WriteFile(filepath.Join(disk, "other"), make([]byte, 58<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.keepUnused(); got != 0 {
		t.Errorf("on a crowded disk it is kept for %v", got)
	}
}
