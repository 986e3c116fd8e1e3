package image

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine"
)

// names are what an image gets to be called, full names.
type names struct {
	tags    []string
	digests []string
}

// publish records an image whose content is here. From then on it is listed, by these names and those it had.
func (s *Store) publish(f *found, as names) error {
	s.recording.Lock()
	defer s.recording.Unlock()
	s.mu.Lock()
	rec := record{Version: recordVersion, ID: f.id(), DiffIDs: f.config.RootFS.DiffIDs, Pulled: time.Now()}
	if have := s.images[f.id()]; have != nil {
		rec.Tags, rec.Digests = slices.Clone(have.record.Tags), slices.Clone(have.record.Digests)
		rec.Manifests = slices.Clone(have.record.Manifests)
	}
	rec.take(f.manifest, as, s.tagSeq)
	s.tagSeq += uint64(len(as.tags))
	s.mu.Unlock()

	img, err := s.newStored(&rec)
	if err != nil {
		return err
	}
	if err := s.writeRecord(&rec); err != nil {
		return err
	}
	s.mu.Lock()
	s.images[rec.ID] = img
	losers := s.untag(rec.ID, as.tags)
	s.index()
	s.mu.Unlock()
	// The newer tag counts also where the older record still has it, so a failure here loses nothing.
	for _, loser := range losers {
		err = errors.Join(err, s.writeRecord(loser))
	}
	s.changed()
	return err
}

// take adds a manifest and names to a record.
func (r *record) take(m manifest, as names, seq uint64) {
	r.Manifests = slices.DeleteFunc(r.Manifests, func(have manifest) bool {
		return have.Manifest.Digest == m.Manifest.Digest && slices.EqualFunc(have.Indexes, m.Indexes, func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest })
	})
	r.Manifests = append([]manifest{m}, r.Manifests...)
	r.Tags = slices.DeleteFunc(r.Tags, func(t tag) bool { return slices.Contains(as.tags, t.Name) })
	for i, name := range as.tags {
		r.Tags = append(r.Tags, tag{Name: name, Seq: seq + uint64(i) + 1})
	}
	for _, name := range as.digests {
		if !slices.Contains(r.Digests, name) {
			r.Digests = append(r.Digests, name)
		}
	}
}

// untag takes tags from every image but one and returns the records that changed. The caller holds s.mu and s.recording.
func (s *Store) untag(but engine.ImageID, tags []string) (changed []*record) {
	lost := func(t tag) bool { return slices.Contains(tags, t.Name) }
	for id, img := range maps.Clone(s.images) {
		if id == but || !slices.ContainsFunc(img.record.Tags, lost) {
			continue
		}
		without := *img
		without.record.Tags = slices.DeleteFunc(slices.Clone(img.record.Tags), lost)
		without.image.RepoTags = familiar(tagNames(without.record.Tags))
		s.images[id] = &without
		changed = append(changed, &without.record)
	}
	return changed
}

// notFound is the error for an image that is not here.
func notFound(ref string) error {
	return fmt.Errorf("there is no image %.300q: %w", ref, errdefs.ErrNotFound)
}
