package imagestore

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/flight"
	"crishim/registry"
)

// inspectors bounds how many inspects of one list are under way.
const inspectors = 4

// snapshot is every image at one generation, on one connection. Immutable.
type snapshot struct {
	generation uint64
	from       docker
	images     []*engine.Image
	byID       map[engine.ImageID]*engine.Image
	byName     map[string]*engine.Image // by registry.Query.Name, tags and digests
	// unread are those that Docker lists but cannot read: they have names and a size.
	unread map[engine.ImageID]bool
}

// images returns the snapshot of now. Where nothing changed it costs no call.
func (s *Store) images(ctx context.Context) (*snapshot, error) {
	d, err := s.docker()
	if err != nil {
		return nil, err
	}
	if snap := s.current(d); snap != nil {
		return snap, nil
	}
	select {
	case s.loading <- struct{}{}:
		defer func() { <-s.loading }()
	case <-ctx.Done():
		return nil, fmt.Errorf("list images: %w", ctx.Err())
	}
	if snap := s.current(d); snap != nil {
		return snap, nil
	}
	snap, err := s.load(ctx, d)
	if err != nil {
		return nil, err
	}
	s.cache.Store(snap)
	return snap, nil
}

// current is the cache if it is still true.
func (s *Store) current(d docker) *snapshot {
	snap := s.cache.Load()
	if snap == nil || snap.from != d || snap.generation != s.generation.Load() {
		return nil
	}
	return snap
}

// load lists the images and inspects those that the last snapshot does not know: an image's content never changes under
// its id, its names and size do.
func (s *Store) load(ctx context.Context, d docker) (*snapshot, error) {
	snap := &snapshot{
		generation: s.generation.Load(), from: d,
		byID: map[engine.ImageID]*engine.Image{}, byName: map[string]*engine.Image{}, unread: map[engine.ImageID]bool{},
	}
	list, err := d.ImageList(ctx, image.ListOptions{})
	if err != nil {
		return nil, dockerError("list images", err)
	}
	known := map[engine.ImageID]*engine.Image{}
	if last := s.cache.Load(); last != nil && last.from == d {
		known = maps.Clone(last.byID)
		maps.DeleteFunc(known, func(id engine.ImageID, _ *engine.Image) bool { return last.unread[id] })
	}
	images, unread := make([]*engine.Image, len(list)), make([]bool, len(list))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(inspectors)
	for i := range list {
		summary := &list[i]
		if onlyHelpers(summary.RepoTags, summary.RepoDigests) {
			continue
		}
		if img := known[engine.ImageID(summary.ID)]; img != nil {
			images[i] = withNames(img, summary)
			continue
		}
		group.Go(func() (err error) {
			defer flight.Caught(&err)
			img, err := inspect(ctx, d, summary.ID)
			if errdefs.IsNotFound(err) {
				return nil // removed since
			}
			if errdefs.IsInternal(err) {
				// One whose files are broken must not hide all others; the kubelet can still remove it.
				klog.ErrorS(err, "An image that Docker cannot read is listed by its names", "id", summary.ID)
				img, unread[i], err = &engine.Image{ID: engine.ImageID(summary.ID)}, true, nil
			}
			if err == nil {
				images[i] = withNames(img, summary)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, img := range images {
		if img != nil {
			snap.add(img, s.records.digests(img.ID))
			if unread[i] {
				snap.unread[img.ID] = true
			}
		}
	}
	return snap, nil
}

// lookAgain asks for the images that Docker could not read: that may have been of a moment, whose end no event tells.
func (s *Store) lookAgain(ctx context.Context, d docker) {
	snap := s.current(d)
	if snap == nil {
		return
	}
	for id := range snap.unread {
		if _, err := inspect(ctx, d, string(id)); err == nil {
			s.generation.Add(1)
			return
		}
	}
}

func withNames(img *engine.Image, summary *image.Summary) *engine.Image {
	out := *img
	out.RepoTags, out.RepoDigests = namesOf(summary.ID, summary.RepoTags, summary.RepoDigests)
	out.Size = size(summary.Size)
	return &out
}

func (p *snapshot) add(img *engine.Image, recorded []string) {
	if p.byID[img.ID] != nil {
		return
	}
	p.images = append(p.images, img)
	p.byID[img.ID] = img
	for _, refs := range [][]string{img.RepoTags, img.RepoDigests, recorded} {
		for _, ref := range refs {
			if name := registry.FullName(ref); name != "" && p.byName[name] == nil {
				p.byName[name] = img
			}
		}
	}
}

// find looks an image up as Docker does: by id, then by name, then by the start of an id.
func (p *snapshot) find(q *registry.Query) *engine.Image {
	if q.ID != "" {
		return p.byID[engine.ImageID(q.ID)]
	}
	if img := p.byName[q.Name]; img != nil || q.Prefix == "" {
		return img
	}
	var found *engine.Image
	for _, img := range p.images {
		if queryMatches(q, img) {
			if found != nil {
				return nil // ambiguous
			}
			found = img
		}
	}
	return found
}

func inspect(ctx context.Context, d docker, ref string) (*engine.Image, error) {
	in, err := d.ImageInspect(ctx, ref)
	if err != nil {
		return nil, dockerError("inspect image "+ref, err)
	}
	img := fromInspect(&in)
	return &img, nil
}

// ListImages implements engine.Images.
func (s *Store) ListImages(ctx context.Context) ([]engine.Image, error) {
	snap, err := s.images(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]engine.Image, len(snap.images))
	for i, img := range snap.images {
		out[i] = *s.finished(img)
	}
	return out, nil
}

// Image implements engine.Images.
func (s *Store) Image(ctx context.Context, ref string) (*engine.Image, error) {
	q, err := registry.ParseQuery(ref)
	if err != nil {
		return nil, err
	}
	if q.Name != "" && isHelperOrHeld(q.Name) {
		return nil, absent(ref)
	}
	snap, err := s.images(ctx)
	if err != nil {
		return nil, err
	}
	if img := snap.find(&q); img != nil && !snap.unread[img.ID] {
		return s.finished(img), nil
	}
	return s.imageUnlisted(ctx, snap.from, ref, &q)
}

// toRemove is Image, or what the list has of one that Docker cannot read.
func (s *Store) toRemove(ctx context.Context, ref string) (*engine.Image, error) {
	img, err := s.Image(ctx, ref)
	if !errdefs.IsInternal(err) {
		return img, err
	}
	q, qerr := registry.ParseQuery(ref)
	if snap := s.cache.Load(); qerr == nil && snap != nil {
		if listed := snap.find(&q); listed != nil {
			return listed, nil
		}
	}
	return nil, err
}

// imageUnlisted asks Docker for what the list does not show: an intermediate image, one whose event is still to come, or one that
// could not be read.
func (s *Store) imageUnlisted(ctx context.Context, d docker, ref string, q *registry.Query) (*engine.Image, error) {
	asked := q.ID
	if asked == "" {
		asked = q.Name
	}
	if id := s.records.find(q.Name); id != "" {
		asked = string(id)
	}
	img, err := inspect(ctx, d, asked)
	if errdefs.IsNotFound(err) && q.Prefix != "" {
		img, err = inspect(ctx, d, q.Prefix)
	}
	if errdefs.IsNotFound(err) {
		return nil, absent(ref)
	}
	if err != nil {
		return nil, err
	}
	out := s.finished(img)
	// Docker takes short hexadecimal names for the start of an id; the kubelet must not be told that such an image is here.
	if !queryMatches(q, out) {
		return nil, absent(ref)
	}
	return out, nil
}

func absent(ref string) error {
	return fmt.Errorf("there is no image %.300q: %w", ref, errdefs.ErrNotFound)
}
