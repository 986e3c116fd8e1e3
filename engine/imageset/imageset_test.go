package imageset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/enginetest"
)

const (
	app   = "registry.test/app:1"
	other = "registry.test/other:1"
)

// node is a set over two engines' stores; the second one's ids are its own.
type node struct {
	*Set
	docker, native *enginetest.Memory

	mu   sync.Mutex
	told []Progress
	away map[string]bool
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{away: map[string]bool{}}
	n.docker = enginetest.NewMemory(enginetest.Options{Name: "docker"})
	n.native = enginetest.NewMemory(enginetest.Options{Name: "native", ManifestIDs: true})
	var stores []Store
	for _, m := range []*enginetest.Memory{n.docker, n.native} {
		t.Cleanup(m.Close)
		stores = append(stores, Store{m.Name(), m, func() error {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.away[m.Name()] {
				return fmt.Errorf("engine %s is away: %w", m.Name(), errdefs.ErrUnavailable)
			}
			return nil
		}})
	}
	n.Set = New(stores, func(p Progress) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.told = append(n.told, p)
	})
	t.Cleanup(n.Close)
	return n
}

func (n *node) takeAway(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.away[name] = true
	for _, m := range []*enginetest.Memory{n.docker, n.native} {
		if m.Name() == name {
			m.SetHealth(false)
		}
	}
}

func (n *node) ensure(t *testing.T, engineName, ref string) (*engine.Image, engine.ImageID) {
	t.Helper()
	img, told, err := n.Ensure(t.Context(), engineName, ref, "")
	if err != nil {
		t.Fatalf("ensure %s on %s: %v", ref, engineName, err)
	}
	return img, told
}

func TestAnImageIsCarriedToTheEngineThatNeedsIt(t *testing.T) {
	n := newNode(t)
	image := enginetest.NewImage(app)
	n.docker.AddImage(image)
	img, told := n.ensure(t, "native", app)
	if img.ID == image.ID || !img.SameContent(&image) {
		t.Fatalf("carried %+v", img)
	}
	if told != image.ID {
		t.Errorf("the set tells of it as %s, the default engine's id is %s", told, image.ID)
	}
	if !slices.Equal(img.RepoTags, image.RepoTags) || !slices.Equal(img.RepoDigests, image.RepoDigests) {
		t.Errorf("its names are %v %v", img.RepoTags, img.RepoDigests)
	}
	// It is one image, under either id.
	list, err := n.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != image.ID {
		t.Fatalf("listed %+v, %v", list, err)
	}
	for _, ref := range []string{app, string(image.ID), string(img.ID), image.RepoDigests[0]} {
		if found, err := n.Find(t.Context(), ref, ""); err != nil || found.ID != image.ID {
			t.Errorf("%s: %+v, %v", ref, found, err)
		}
		n.ensure(t, "native", ref)
	}
	if exports := n.docker.Calls("ExportImage"); exports != 1 {
		t.Errorf("it was carried %d times", exports)
	}
	// And it is removed as one.
	if err := n.Remove(t.Context(), string(img.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Find(t.Context(), app, ""); !errdefs.IsNotFound(err) {
		t.Errorf("after the removal: %v", err)
	}
	for _, m := range []*enginetest.Memory{n.docker, n.native} {
		if left, _ := m.ListImages(t.Context()); len(left) > 0 {
			t.Errorf("%s still has %+v", m.Name(), left)
		}
	}
}

func TestAnImageIsCarriedToTheDefaultEngineToo(t *testing.T) {
	n := newNode(t)
	image := enginetest.NewImage(app)
	n.native.AddImage(image)
	if img, told := n.ensure(t, "docker", app); told != img.ID || !img.SameContent(&image) {
		t.Errorf("told as %s, the default engine has %+v", told, img)
	}
}

func TestCallersJoinAndMayLeave(t *testing.T) {
	n := newNode(t)
	n.docker.AddImage(enginetest.NewImage(app))
	release := n.docker.Block("ExportImage.half")
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, _, err := n.Ensure(ctx, "native", app, "")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "%") || !strings.Contains(err.Error(), "from engine docker to native") {
		t.Fatalf("a caller whose time is over is told %v", err)
	}
	if now := n.Underway(); len(now) != 1 || now[0].Image != app || now[0].To != "native" || now[0].Done {
		t.Errorf("on their way are %+v", now)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, _, err := n.Ensure(t.Context(), "native", app, ""); err != nil {
				t.Error(err)
			}
		})
	}
	release()
	all.Wait()
	if exports := n.docker.Calls("ExportImage"); exports != 1 {
		t.Errorf("carried %d times", exports)
	}
	if now := n.Underway(); len(now) > 0 {
		t.Errorf("still on their way: %+v", now)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if end := n.told[len(n.told)-1]; !end.Done || end.Err != nil || end.Percent() != 100 || end.Moved == 0 || end.From != "docker" || end.To != "native" {
		t.Errorf("told at the end: %+v", end)
	}
}

// A caller who looked for an image before it had come, and asks for it afterwards, does not have it carried again.
func TestWhatHasComeMeanwhileIsNotCarriedAgain(t *testing.T) {
	n := newNode(t)
	n.docker.AddImage(enginetest.NewImage(app))
	before, err := n.find(t.Context(), app, "")
	if err != nil {
		t.Fatal(err)
	}
	n.ensure(t, "native", app)
	if err := n.await(t.Context(), n.begin(before, n.index("native"))); err != nil {
		t.Error(err)
	}
	if exports := n.docker.Calls("ExportImage"); exports != 1 {
		t.Errorf("carried %d times", exports)
	}
}

func TestWhatIsDamagedOnTheWayIsNotUsed(t *testing.T) {
	n := newNode(t)
	n.docker.AddImage(enginetest.NewImage(app))
	n.docker.DamageExport()
	if _, _, err := n.Ensure(t.Context(), "native", app, ""); !errdefs.IsDataLoss(err) {
		t.Fatal(err)
	}
	if list, _ := n.native.ListImages(t.Context()); len(list) > 0 {
		t.Errorf("the target has %+v", list)
	}
	n.ensure(t, "native", app) // the next try is a new one
}

func TestAFailureOnTheWayIsToldAndTheNextCallTriesAgain(t *testing.T) {
	for _, step := range []string{"ExportImage", "ExportImage.half", "ImportImage"} {
		n := newNode(t)
		n.docker.AddImage(enginetest.NewImage(app))
		failure := fmt.Errorf("the disk of a test is full: %w", errdefs.ErrResourceExhausted)
		if step == "ImportImage" {
			n.native.FailOnce(step, failure)
		} else {
			n.docker.FailOnce(step, failure)
		}
		if _, _, err := n.Ensure(t.Context(), "native", app, ""); !errors.Is(err, failure) {
			t.Errorf("%s: %v", step, err)
		}
		n.ensure(t, "native", app)
	}
}

// A store that hangs does not keep the failure of the other one from being told.
func TestAFailureIsToldThoughTheOtherStoreHangs(t *testing.T) {
	n := newNode(t)
	n.docker.AddImage(enginetest.NewImage(app))
	defer n.docker.Block("ExportImage")()
	failure := fmt.Errorf("the disk of a test is full: %w", errdefs.ErrResourceExhausted)
	n.native.FailOnce("ImportImage", failure)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := n.Ensure(ctx, "native", app, ""); !errors.Is(err, failure) {
		t.Error(err)
	}
}

func TestOneEngineDownLeavesTheOthersImages(t *testing.T) {
	n := newNode(t)
	n.docker.AddImage(enginetest.NewImage(app))
	n.native.AddImage(enginetest.NewImage(other))
	n.takeAway("docker")
	list, err := n.List(t.Context())
	if err != nil || len(list) != 1 || list[0].RepoTags[0] != other {
		t.Fatalf("listed %+v, %v", list, err)
	}
	n.ensure(t, "native", other)
	if _, err := n.Find(t.Context(), app, ""); !errdefs.IsUnavailable(err) {
		t.Errorf("what the engine that is away may have: %v", err)
	}
	if _, _, err := n.Ensure(t.Context(), "native", app, ""); !errdefs.IsUnavailable(err) {
		t.Errorf("what only the engine that is away has: %v", err)
	}
	if err := n.Remove(t.Context(), other); !errdefs.IsUnavailable(err) {
		t.Errorf("a removal that one engine knows nothing of: %v", err)
	}
	if left, _ := n.native.ListImages(t.Context()); len(left) > 0 {
		t.Errorf("the engine that is there did not remove %+v", left)
	}
	n.takeAway("native")
	if _, err := n.List(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("without any engine: %v", err)
	}
}

// unread lists its images and cannot read them, as Docker does with one whose configuration is damaged or hostile.
type unread struct{ *enginetest.Memory }

func (u unread) Image(context.Context, string) (*engine.Image, error) {
	return nil, fmt.Errorf("could not deserialize image config: %w", errdefs.ErrInternal)
}

func TestWhatAStoreCannotReadCanBeRemoved(t *testing.T) {
	for _, engines := range []int{1, 2} {
		n := newNode(t)
		n.stores[0].Images = unread{n.docker}
		n.stores = n.stores[:engines]
		image := enginetest.NewImage(app)
		n.docker.AddImage(image)
		if err := n.Remove(t.Context(), string(image.ID)); err != nil {
			t.Errorf("of %d engines: %v", engines, err)
		}
		if left, err := n.List(t.Context()); err != nil || len(left) > 0 {
			t.Errorf("of %d engines left: %+v, %v", engines, left, err)
		}
	}
	// The other store has it too, and reads it.
	n := newNode(t)
	n.stores[0].Images = unread{n.docker}
	slices.Reverse(n.stores)
	n.docker.AddImage(enginetest.NewImage(app))
	n.native.AddImage(enginetest.NewImage(app))
	if err := n.Remove(t.Context(), app); err != nil {
		t.Errorf("of both: %v", err)
	}
	if left, err := n.List(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("of both left: %+v, %v", left, err)
	}
}

// The same tag on two engines: the default engine's image has it, and the other's does not come forth when that is removed.
func TestATagMeansTheDefaultEnginesImage(t *testing.T) {
	n := newNode(t)
	stale, fresh := enginetest.NewImage(app), enginetest.NewImage(other)
	stale.RepoTags, fresh.RepoTags = []string{app, "registry.test/old:1"}, []string{app}
	n.native.AddImage(stale)
	n.docker.AddImage(fresh)
	list, err := n.List(t.Context())
	if err != nil || len(list) != 2 || list[0].ID != fresh.ID || !slices.Equal(list[0].RepoTags, []string{app}) || !slices.Equal(list[1].RepoTags, []string{"registry.test/old:1"}) {
		t.Fatalf("listed %+v, %v", list, err)
	}
	if img, _ := n.ensure(t, "native", app); !img.SameContent(&fresh) {
		t.Errorf("the engine got %+v", img)
	}
	// Asked for on behalf of the engine's own handler, its own image counts.
	n = newNode(t)
	n.native.AddImage(stale)
	n.docker.AddImage(fresh)
	if img, _, err := n.Ensure(t.Context(), "native", app, "native"); err != nil || img.ID != stale.ID {
		t.Errorf("its own: %+v, %v", img, err)
	}
	if err := n.Remove(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	if left, err := n.List(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left: %+v, %v", left, err)
	}
}

func TestImagesAreJoinedByContent(t *testing.T) {
	image := func(id string, change func(*engine.Image)) engine.Image {
		img := engine.Image{ID: engine.ImageID(id), Layers: []string{"l1", "l2"}, Cmd: []string{"run"}}
		if change != nil {
			change(&img)
		}
		return img
	}
	digest := func(d string) func(*engine.Image) {
		return func(img *engine.Image) { img.RepoDigests, img.Layers = []string{"r@" + d}, nil }
	}
	for _, row := range []struct {
		what         string
		first, other engine.Image
		one          bool
	}{
		{"the same id", image("a", nil), image("a", func(i *engine.Image) { i.Layers = nil }), true},
		{"the same manifest", image("a", digest("m")), image("b", digest("m")), true},
		{"an id that is the other's manifest", image("m", digest("n")), image("b", digest("m")), true},
		{"the same layers and config", image("a", nil), image("b", nil), true},
		{"the same layers under another config", image("a", nil), image("b", func(i *engine.Image) { i.Cmd = []string{"walk"} }), false},
		{"nothing in common", image("a", digest("m")), image("b", digest("n")), false},
	} {
		entries := join([][]engine.Image{{row.first}, {row.other}})
		if one := len(entries) == 1; one != row.one {
			t.Errorf("%s: %d images", row.what, len(entries))
		}
	}
	// Two images of one store stay two, whatever they share.
	if entries := join([][]engine.Image{{image("a", nil), image("b", nil)}, {image("c", nil), image("d", nil)}}); len(entries) != 2 {
		t.Errorf("%d images", len(entries))
	}
}

func TestWhatIsOnItsWayEndsWithTheSet(t *testing.T) {
	n := newNode(t)
	n.docker.AddImage(enginetest.NewImage(app))
	release := n.docker.Block("ExportImage.half")
	defer release()
	failed := make(chan error, 1)
	go func() {
		_, _, err := n.Ensure(t.Context(), "native", app, "")
		failed <- err
	}()
	for n.docker.Calls("ExportImage") == 0 {
		time.Sleep(time.Millisecond)
	}
	n.Close()
	if err := <-failed; err == nil {
		t.Error("it was carried although the set was closed")
	}
	if list, _ := n.native.ListImages(t.Context()); len(list) > 0 {
		t.Errorf("half an image: %+v", list)
	}
}

// panics is a store with a bug.
type panics struct{ engine.ImageCarrier }

func (panics) ExportImage(context.Context, engine.ImageID, io.Writer) error { panic("boom") }

func (panics) ImportImage(context.Context, io.Reader, *engine.Image) (*engine.Image, error) {
	panic("boom")
}

// Rows: S53 (part)
func TestAPanicOnTheWayIsToldToWhoWaits(t *testing.T) {
	n := newNode(t)
	n.docker.AddImage(enginetest.NewImage(app))
	for i, name := range []string{"docker", "native"} {
		whole := n.stores[i].Images
		n.stores[i].Images = struct {
			engine.Images
			panics
		}{Images: whole}
		if _, _, err := n.Ensure(t.Context(), "native", app, ""); !errdefs.IsInternal(err) {
			t.Errorf("a panic of %s: %v", name, err)
		}
		n.stores[i].Images = whole
	}
	n.ensure(t, "native", app)
}
