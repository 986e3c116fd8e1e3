package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"crishim/engine"
)

// An image that unpacks without end, in one layer or over all, or is compressed in a form that is not undone here, fails and
// leaves nothing that was unpacked.
//
// Rows: S37 (part)
func TestS37AnImageThatIsABombLeavesNothing(t *testing.T) {
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
		"a ratio": {func(l *Limits) { l.Layer.Ratio, l.Layer.RatioAfter = 100, 1<<20 },
			reg.push(t, "bomb:ratio", imageWith(t, layerOf(t, file("f", zeros)))), errdefs.IsResourceExhausted},
		"all layers": {func(l *Limits) { l.Bytes = 12 << 20 },
			reg.push(t, "bomb:all", imageWith(t, layerOf(t, file("f", zeros)), layerOf(t, file("g", zeros)))), errdefs.IsResourceExhausted},
		"another form": {func(*Limits) {},
			reg.push(t, "bomb:xz", imageWith(t, static.NewLayer(xz, types.DockerLayer))), errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			limits := DefaultLimits
			test.limit(&limits)
			s := newStore(t, func(o *Options) { o.Limits = limits })
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
