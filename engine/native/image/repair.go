package image

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/registry"
)

// Repair brings damaged content, as Verify found it, in anew, and tells of each image that has any of it how that went: layers out of
// sound blobs, damaged blobs from the registry that the image was pulled from, by digest, with the node's credentials. Its names
// stay. A layer of an image that is in use is left as it is (ErrFailedPrecondition), and nothing is thrown away before what takes its
// place is on disk: what fails, or is cut off by a crash, leaves the image as damaged as it was.
func (s *Store) Repair(ctx context.Context, damaged []Damage, told func(*engine.Image, error)) {
	s.repairing.Lock()
	defer s.repairing.Unlock()
	r := &repair{store: s, layers: map[digest.Digest]bool{}, blobs: map[digest.Digest]bool{}, old: map[digest.Digest]*layer{}, at: newProgress()}
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
	for _, m := range r.images {
		told(&m.image, m.err)
	}
}

// repair is one call of Repair.
type repair struct {
	store         *Store
	at            *progress
	layers, blobs map[digest.Digest]bool
	images        []*mending
	// old are damaged layers that lie in their places until new ones take these.
	old  map[digest.Digest]*layer
	undo []func() // leases, locks, connections
}

// mending is an image that is repaired.
type mending struct {
	image  engine.Image
	record record
	damage []digest.Digest // its damaged layers
	hidden *stored         // it, while nobody finds it as its layers are not there
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
		if m.err == nil {
			m.err = r.find(ctx, m)
		}
	}
	r.spare()
}

// claim keeps an image with damaged layers from being used until the end, where nobody does.
func (r *repair) claim(ctx context.Context, m *mending) error {
	if len(m.damage) == 0 {
		return nil
	}
	unlock, err := r.store.using.Lock(ctx, m.record.ID)
	if err != nil {
		return err
	}
	r.undo = append(r.undo, unlock)
	mounted := r.store.options.Mounted
	if mounted == nil {
		mounted = r.store.options.InUse
	}
	return r.store.refuse(ctx, m.record.ID, mounted)
}

// spare leaves layers alone that an image has which cannot be repaired, and so the images that share them.
func (r *repair) spare() {
	kept := map[digest.Digest]error{}
	for range r.images {
		for _, m := range r.images {
			for _, d := range m.damage {
				if m.err == nil && kept[d] != nil {
					m.err = fmt.Errorf("it shares layer %s: %w", d, kept[d])
				}
			}
			for _, d := range m.damage {
				if m.err != nil && kept[d] == nil {
					kept[d] = m.err
				}
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
	credentials, err := r.store.credentials(ctx, nil, reference.Domain(named))
	if err != nil {
		return nil, err
	}
	r.store.mu.Lock()
	dirs := r.store.hostDirs
	r.store.mu.Unlock()
	repo, err := openRepository(dirs, named, credentials, r.store.options.NodeAuth, registry.DefaultStall)
	if err != nil {
		return nil, err
	}
	r.undo = append(r.undo, repo.close)
	return repo, nil
}

// replace brings everything in, new layers into the places of damaged ones. The records stay on disk all the while.
func (r *repair) replace(ctx context.Context) {
	for _, m := range r.images {
		if m.err == nil && len(m.damage) > 0 {
			r.hide(m)
		}
	}
	r.drop()
	for _, m := range r.images {
		// The first manifest of the record is the one that was taken last.
		for _, w := range slices.Backward(m.ways) {
			if m.err == nil {
				m.err = r.store.fetchLayers(ctx, w.from, w.found, r.at)
			}
		}
	}
	r.keep()
	for _, m := range r.images {
		r.show(m)
		for _, w := range slices.Backward(m.ways) {
			if m.err == nil {
				m.err = r.store.publish(w.found, names{tags: r.freeTags(m), digests: w.digests})
			}
		}
	}
}

// hide keeps an image from being found while layers of it are not there. A crash meanwhile finds its record, and each layer new or
// as it was.
func (r *repair) hide(m *mending) {
	s := r.store
	s.recording.Lock() // or a record that is being written would put it back
	defer s.recording.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	m.hidden = s.images[m.record.ID]
	if m.hidden != nil {
		s.hidden[m.record.ID] = m.hidden
	}
	delete(s.images, m.record.ID)
	s.index()
}

// keep takes the damaged layers in again that no new one has replaced.
func (r *repair) keep() {
	s := r.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, l := range r.old {
		if s.content.layers[d] == nil {
			s.content.layers[d] = l
			s.content.verified[l.Blob] = d
		}
	}
}

// show undoes hide, unless who pulled the image meanwhile has done so.
func (r *repair) show(m *mending) {
	s := r.store
	s.recording.Lock()
	defer s.recording.Unlock()
	free := r.freeTags(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.hidden, m.record.ID)
	if m.hidden == nil || s.images[m.record.ID] != nil {
		return
	}
	img := *m.hidden
	img.record.Tags = slices.DeleteFunc(slices.Clone(img.record.Tags), func(t tag) bool { return !slices.Contains(free, t.Name) })
	img.image.RepoTags = familiar(tagNames(img.record.Tags))
	s.images[m.record.ID] = &img
	s.index()
}

// freeTags are those that no other image got meanwhile.
func (r *repair) freeTags(m *mending) []string {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return slices.DeleteFunc(tagNames(m.record.Tags), func(tag string) bool {
		id, taken := r.store.byName[tag]
		return taken && id != m.record.ID
	})
}

// drop has the damaged layers be unpacked anew, and removes those of no image.
func (r *repair) drop() {
	s := r.store
	s.placing.Lock()
	defer s.placing.Unlock()
	for d := range r.layers {
		s.mu.Lock()
		old := s.content.layers[d]
		delete(s.content.layers, d)
		s.mu.Unlock()
		if old != nil && slices.ContainsFunc(r.images, func(m *mending) bool { return m.hidden != nil && slices.Contains(m.damage, d) }) {
			r.old[d] = old
			continue
		}
		if err := s.discard(s.layerPath(d)); err != nil && !os.IsNotExist(err) {
			klog.ErrorS(err, "A damaged layer of no image could not be removed", "layer", d)
		}
	}
}
