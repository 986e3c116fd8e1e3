// Package imageset owns the images of a node as one set over the stores of its engines: what is listed, found and
// removed, and what is carried from one store to another when an engine needs it.
//
// A caller makes a Set of the stores, the default engine's first. What two stores hold of one content is one image: it is
// joined by its id, else by the digest of a manifest, else by its layers and config (see join), and is told under the id
// that the first store has for it, with the names of all; each store's own id is accepted too. A store that cannot be
// asked is left out: what the others have is served. With one store a Set adds nothing to it.
package imageset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// Store is one engine's images.
type Store struct {
	// Engine is the engine's name.
	Engine string
	engine.Images
	// Ready says why the store cannot be asked now (ErrUnavailable); nil is for one that always can.
	Ready func() error
}

// Set is the images of all stores. Make it with New, and Close it when done. Its methods may be called at once from many
// goroutines.
type Set struct {
	stores   []Store
	progress func(Progress)

	life    context.Context
	endLife context.CancelFunc
	carries sync.WaitGroup
	mu      sync.Mutex
	flights map[carryKey]*carry
}

// New makes a set of stores, of which the first is the default one. progress is told of images on their way, from
// several goroutines; nil tells nobody.
func New(stores []Store, progress func(Progress)) *Set {
	if progress == nil {
		progress = func(Progress) {}
	}
	s := &Set{stores: stores, progress: progress, flights: map[carryKey]*carry{}}
	s.life, s.endLife = context.WithCancel(context.Background())
	return s
}

// Close ends what is on its way and waits for it: a later Ensure begins it anew.
func (s *Set) Close() {
	s.endLife()
	s.carries.Wait()
}

// List is every image once. ErrUnavailable where no store can be asked.
func (s *Set) List(ctx context.Context) ([]engine.Image, error) {
	if len(s.stores) == 1 {
		return s.stores[0].ListImages(ctx)
	}
	entries, err := s.entries(ctx)
	if err != nil {
		return nil, err
	}
	images := make([]engine.Image, 0, len(entries))
	for _, e := range entries {
		images = append(images, e.told())
	}
	return images, nil
}

// Find finds by any store's id, by tag, digest or familiar name. The named engine's store is asked first, "" is for the
// default one's. ErrNotFound when no store has it, ErrUnavailable where one that cannot be asked may have it.
func (s *Set) Find(ctx context.Context, ref, engineName string) (*engine.Image, error) {
	if len(s.stores) == 1 {
		return s.stores[0].Image(ctx, ref)
	}
	e, err := s.find(ctx, ref, engineName)
	if err != nil {
		return nil, err
	}
	told := e.told()
	return &told, nil
}

// Remove removes the image, with every tag, from every store. OK when absent. A store that cannot be asked makes it
// ErrUnavailable, after the others have removed theirs: it may still have the image.
func (s *Set) Remove(ctx context.Context, ref string) error {
	ids, err := s.IDs(ctx, ref)
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) && !errdefs.IsInternal(err) {
		return err
	}
	var errs []error
	for i := range s.stores {
		store := &s.stores[i]
		if err := store.ready(); err != nil {
			errs = append(errs, fmt.Errorf("image %.300q may be left there: %w", ref, err))
			continue
		}
		// By the reference too: the other store may have another image under this tag, which would come forth.
		own, err := store.Image(ctx, ref)
		switch {
		case err == nil && !slices.Contains(ids[i], own.ID):
			ids[i] = append(ids[i], own.ID)
		case errdefs.IsInternal(err):
			// A store may remove what it lists and cannot read, as Docker does, and knows what this names.
			ids[i] = append(ids[i], engine.ImageID(ref))
		case err != nil && !errdefs.IsNotFound(err):
			errs = append(errs, err)
		}
		for _, id := range ids[i] {
			if err := store.RemoveImage(ctx, id); err != nil {
				errs = append(errs, fmt.Errorf("engine %s: %w", store.Engine, err))
			}
		}
	}
	return errors.Join(errs...)
}

// IDs are the ids that the stores, in their order, have for the image that ref names.
func (s *Set) IDs(ctx context.Context, ref string) ([][]engine.ImageID, error) {
	ids := make([][]engine.ImageID, len(s.stores))
	e, err := s.find(ctx, ref, "")
	if err != nil {
		return ids, err
	}
	for i, img := range e {
		if img != nil {
			ids[i] = append(ids[i], img.ID)
		}
	}
	return ids, nil
}

// find is Find with all that the stores have of the image.
func (s *Set) find(ctx context.Context, ref, engineName string) (entry, error) {
	var away error
	for _, i := range s.order(engineName) {
		store := &s.stores[i]
		if err := store.ready(); err != nil {
			away = errors.Join(away, err)
			continue
		}
		img, err := store.Image(ctx, ref)
		switch {
		case errdefs.IsNotFound(err):
			continue
		case errdefs.IsUnavailable(err):
			away = errors.Join(away, err)
			continue
		case err != nil:
			return nil, err
		}
		return s.joined(ctx, i, img)
	}
	if away != nil {
		return nil, fmt.Errorf("image %.300q may be in a store that cannot be asked: %w", ref, away)
	}
	return nil, fmt.Errorf("there is no image %.300q: %w", ref, errdefs.ErrNotFound)
}

// joined is the entry of a store's image.
func (s *Set) joined(ctx context.Context, at int, img *engine.Image) (entry, error) {
	if len(s.stores) > 1 {
		entries, err := s.entries(ctx)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e[at] != nil && e[at].ID == img.ID {
				return e, nil
			}
		}
	}
	alone := make(entry, len(s.stores)) // in no list: an intermediate image, or one whose event is still to come
	alone[at] = img
	return alone, nil
}

// entries are all images of the stores that can be asked.
func (s *Set) entries(ctx context.Context) ([]entry, error) {
	lists := make([][]engine.Image, len(s.stores))
	asked := 0
	var away error
	for i := range s.stores {
		err := s.stores[i].ready()
		if err == nil {
			lists[i], err = s.stores[i].ListImages(ctx)
		}
		switch {
		case err == nil:
			asked++
		case errdefs.IsUnavailable(err):
			away = errors.Join(away, err)
		default:
			return nil, fmt.Errorf("engine %s: %w", s.stores[i].Engine, err)
		}
	}
	if asked == 0 {
		return nil, away
	}
	return join(lists), nil
}

// order is the indexes of the stores, the named one's first.
func (s *Set) order(engineName string) []int {
	order := make([]int, 0, len(s.stores))
	if i := s.index(engineName); i > 0 {
		order = append(order, i)
	}
	for i := range s.stores {
		if !slices.Contains(order, i) {
			order = append(order, i)
		}
	}
	return order
}

// index is that of the named engine's store, -1 for none.
func (s *Set) index(engineName string) int {
	return slices.IndexFunc(s.stores, func(store Store) bool { return store.Engine == engineName })
}

func (s *Store) ready() error {
	if s.Ready == nil {
		return nil
	}
	return s.Ready()
}
