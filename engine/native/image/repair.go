package image

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/registry"
)

// Repair brings damaged content, as Verify found it, in anew, and tells of each image that has any of it how that went: layers out of
// sound blobs, damaged blobs from the registry that the image was pulled from, by digest, with the node's credentials. Its names
// stay. A layer that somebody may have mounted is left as it is (ErrFailedPrecondition), and nothing is thrown away before what takes
// its place is on disk: what fails, or is cut off by a crash, leaves the image as damaged as it was. The error is of waiting for
// another repair.
func (s *Store) Repair(ctx context.Context, damaged []Damage, told func(*engine.Image, error)) error {
	unlock, err := s.lockRepairs(ctx)
	if err != nil {
		return err
	}
	images := s.repair(ctx, damaged)
	unlock()
	for _, m := range images {
		told(&m.image, m.err)
	}
	return nil
}

func (s *Store) lockRepairs(ctx context.Context) (unlock func(), err error) {
	unlock, err = s.repairing.Lock(ctx, struct{}{})
	if err != nil {
		return nil, fmt.Errorf("wait for damaged images to be repaired: %w", err)
	}
	return unlock, nil
}

// repair is the work of Repair, whose caller has locked the repairs.
func (s *Store) repair(ctx context.Context, damaged []Damage) []*mending {
	r := &repair{store: s, layers: map[digest.Digest]bool{}, blobs: map[digest.Digest]bool{}, at: newProgress()}
	for _, d := range damaged {
		if d.Layer {
			r.layers[d.Digest] = true
		} else {
			r.blobs[d.Digest] = true
		}
	}
	r.plan(ctx)
	r.replace(ctx)
	r.end()
	return r.images
}

// repair is one call of Repair.
type repair struct {
	store         *Store
	at            *progress
	layers, blobs map[digest.Digest]bool
	images        []*mending
	undo          []func() // leases, locks, connections
}

// mending is an image that is repaired.
type mending struct {
	image  engine.Image
	record record
	damage []digest.Digest // its damaged layers
	// ways are its manifests, in the order of the record, with where their content comes from.
	ways []way
	err  error
}

type way struct {
	from    source
	found   *found
	digests []string // names by digest
}

func (r *repair) end() {
	for _, undo := range slices.Backward(r.undo) {
		undo()
	}
	// What was not replaced is as it was.
	for d := range r.blobs {
		r.store.mu.Lock()
		missing := r.store.content.blobs[d] == nil
		r.store.mu.Unlock()
		if _, err := os.Lstat(r.store.blobPath(d)); missing && err == nil {
			_ = r.store.addBlob(d)
		}
	}
	r.store.changed()
}

// plan finds the images and asks where their content is to come from.
func (r *repair) plan(ctx context.Context) {
	s := r.store
	if err := s.collect(ctx, func(d digest.Digest, _ time.Time) bool { return r.layers[d] || r.blobs[d] }); err != nil {
		klog.ErrorS(err, "Damaged content of no image could not be removed")
	}
	s.mu.Lock()
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		img := s.images[id]
		m := &mending{image: *s.finished(img), record: img.record}
		affected := false
		for _, d := range img.record.DiffIDs {
			if r.layers[d] && !slices.Contains(m.damage, d) {
				m.damage = append(m.damage, d)
			}
		}
		for i := range img.record.Manifests {
			for _, b := range img.record.Manifests[i].blobs() {
				affected = affected || r.blobs[b.Digest]
			}
		}
		if affected || len(m.damage) > 0 {
			r.images = append(r.images, m)
		}
	}
	// From now on they are fetched by whoever wants them.
	for d := range r.blobs {
		delete(s.content.blobs, d)
		delete(s.content.verified, d)
	}
	s.mu.Unlock()
	for _, m := range r.images {
		m.err = r.claim(ctx, m)
	}
	r.spare(ctx)
	for _, m := range r.images {
		if m.err == nil {
			m.err = r.find(ctx, m)
		}
	}
}

// claim keeps an image from being removed, and from being held by anybody new, until the end.
func (r *repair) claim(ctx context.Context, m *mending) error {
	s := r.store
	unlock, err := s.using.Lock(ctx, m.record.ID)
	if err != nil {
		return err
	}
	r.undo = append(r.undo, unlock)
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[m.record.ID]
	if img == nil {
		return notFound(string(m.record.ID))
	}
	m.record = img.record
	return nil
}

// spare leaves images alone of which somebody may have a damaged layer mounted, by whatever image.
func (r *repair) spare(ctx context.Context) {
	s := r.store
	having := map[engine.ImageID][]digest.Digest{}
	s.mu.Lock()
	for id, img := range s.images {
		for _, d := range img.record.DiffIDs {
			if r.layers[d] {
				having[id] = append(having[id], d)
			}
		}
	}
	s.mu.Unlock()
	kept := map[digest.Digest]error{}
	for id, layers := range having {
		if err := s.refuse(ctx, id, s.options.Mounted); err != nil {
			for _, d := range layers {
				kept[d] = err
			}
		}
	}
	unrecorded, err := s.spared(ctx, s.options.Mounted)
	for d := range r.layers {
		switch {
		case err != nil:
			kept[d] = err
		case unrecorded[d]:
			kept[d] = fmt.Errorf("an image of which no record can be read is in use: %w", errdefs.ErrFailedPrecondition)
		}
	}
	for _, m := range r.images {
		for _, d := range m.damage {
			if m.err == nil && kept[d] != nil {
				m.err = fmt.Errorf("layer %s stays as it is: %w", d, kept[d])
			}
		}
	}
	for d := range kept {
		delete(r.layers, d)
	}
}

// find resolves the manifests of an image: in the store, where the blobs are sound, else by the names that it was pulled by.
func (r *repair) find(ctx context.Context, m *mending) error {
	for i := range m.record.Manifests {
		known := &m.record.Manifests[i]
		w := way{from: &incoming{store: r.store, at: r.at}}
		root := known.root()
		for _, name := range m.record.Digests {
			if strings.HasSuffix(name, "@"+string(root.Digest)) {
				w.digests = append(w.digests, name)
			}
		}
		for _, b := range known.blobs() {
			if !r.blobs[b.Digest] {
				continue
			}
			var err error
			if w.from, err = r.registry(ctx, w.digests); err != nil {
				return err
			}
			break
		}
		var err error
		if w.found, err = r.store.resolve(ctx, w.from, root.Digest.String(), root.MediaType, r.at); err != nil {
			return err
		}
		r.undo = append(r.undo, w.found.release)
		if w.found.id() != m.record.ID {
			return fmt.Errorf("%s is image %s by now: %w", root.Digest, w.found.id(), errdefs.ErrFailedPrecondition)
		}
		m.ways = append(m.ways, w)
	}
	return nil
}

// registry opens the repository that one of the names is of.
func (r *repair) registry(ctx context.Context, names []string) (source, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("it was imported, and no registry is known that has it: remove the image and import it again: %w", errdefs.ErrFailedPrecondition)
	}
	named, err := registry.ParseName(names[0])
	if err != nil {
		return nil, err
	}
	credentials, err := r.store.credentials(ctx, nil, named)
	if err != nil {
		return nil, err
	}
	r.store.mu.Lock()
	dirs := r.store.hostDirs
	r.store.mu.Unlock()
	repo, err := openRepository(dirs, named, credentials, r.store.options, registry.DefaultStall, 0)
	if err != nil {
		return nil, err
	}
	r.undo = append(r.undo, repo.close)
	return repo, nil
}

// replace brings everything in, new layers into the places of damaged ones. The records stay on disk all the while: a crash finds
// each layer new or as it was.
func (r *repair) replace(ctx context.Context) {
	r.take(ctx)
	for _, m := range r.images {
		// The first manifest of the record is the one that was taken last.
		for _, w := range slices.Backward(m.ways) {
			if m.err == nil {
				m.err = r.store.fetchLayers(ctx, w.from, w.found, r.at)
			}
		}
	}
	r.giveBack()
	for _, m := range r.images {
		for _, w := range slices.Backward(m.ways) {
			if m.err == nil {
				m.err = r.store.publish(w.found, names{digests: w.digests})
			}
		}
	}
}

// take has the damaged layers be unpacked anew. LayerDirs names none of them any more, so that it can be told for good who may have
// one mounted; that one is not replaced.
func (r *repair) take(ctx context.Context) {
	s := r.store
	s.placing.Lock()
	defer s.placing.Unlock()
	s.mu.Lock()
	for _, m := range r.images {
		for _, d := range m.damage {
			if l := s.content.layers[d]; l != nil && m.err == nil {
				s.content.replaced[d] = l
				delete(s.content.layers, d)
			}
		}
	}
	s.mu.Unlock()
	r.spare(ctx)
	for _, m := range r.images {
		if m.err == nil && len(m.damage) > 0 {
			m.err = s.dropInherited(m.record.ID) // it was made of damaged ones
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, l := range s.content.replaced {
		if !r.layers[d] {
			s.content.layers[d] = l
			delete(s.content.replaced, d)
		}
	}
}

// giveBack takes damaged layers in again whose places no new ones have got.
func (r *repair) giveBack() {
	s := r.store
	s.placing.Lock() // or one may be about to
	defer s.placing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, l := range s.content.replaced {
		if s.content.layers[d] == nil {
			s.content.layers[d] = l
		}
	}
	clear(s.content.replaced)
}
