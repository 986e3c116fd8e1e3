package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/registry"
)

var _ engine.ImageCarrier = (*Store)(nil)

// ExportImage implements engine.ImageCarrier.
func (s *Store) ExportImage(ctx context.Context, id engine.ImageID, w io.Writer) error {
	d, err := s.docker()
	if err != nil {
		return err
	}
	// Saved by id, an image that is absent is an internal error of Docker's.
	if _, err := inspect(ctx, d, string(id)); err != nil {
		if errdefs.IsNotFound(err) {
			return absent(string(id))
		}
		return err
	}
	archive, err := d.ImageSave(ctx, []string{string(id)})
	if err != nil {
		return dockerError("save image "+string(id), err)
	}
	defer func() { _ = archive.Close() }()
	if _, err := io.Copy(w, archive); err != nil {
		// Docker ends a failed save without a word: what was missing, the reader of the archive says.
		return dockerError("save image "+string(id), err)
	}
	return nil
}

// ImportImage implements engine.ImageCarrier. Docker checks the layers against the config, and gives the image the id that
// its content has; a tag that another image has moves over.
func (s *Store) ImportImage(ctx context.Context, r io.Reader, image *engine.Image) (*engine.Image, error) {
	d, err := s.docker()
	if err != nil {
		return nil, err
	}
	defer s.Invalidate()
	if err := failpoint.Around("image.load", func() error { return load(ctx, d, r) }); err != nil {
		return nil, err
	}
	loaded, err := s.loaded(ctx, d, image)
	if err != nil {
		return nil, err
	}
	if err := s.name(ctx, d, loaded, image); err != nil {
		return nil, fmt.Errorf("name the loaded image %s: %w", loaded.ID, err)
	}
	s.Invalidate()
	return s.Image(ctx, string(loaded.ID))
}

func load(ctx context.Context, d docker, r io.Reader) error {
	resp, err := d.ImageLoad(ctx, r)
	if err != nil {
		return dockerError("load an image", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := newProgress().follow(resp.Body); err != nil {
		if said := (*streamError)(nil); errors.As(err, &said) && !DiskFull(err) {
			return fmt.Errorf("load an image: %w: %w", err, errdefs.ErrDataLoss)
		}
		return dockerError("load an image", err)
	}
	return nil
}

// loaded finds what was loaded. Docker says its id only in words, and a store that takes manifests for ids has another one.
func (s *Store) loaded(ctx context.Context, d docker, image *engine.Image) (*engine.Image, error) {
	img, err := inspect(ctx, d, string(image.ID))
	if !errdefs.IsNotFound(err) {
		return img, err
	}
	s.Invalidate()
	snap, err := s.images(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range snap.images {
		if img.SameContent(image) {
			return img, nil
		}
	}
	return nil, fmt.Errorf("what Docker loaded is not image %s: %w", image.ID, errdefs.ErrDataLoss)
}

// name gives the loaded image the names of image. One that has no tag is held under one of its digest, as a pull does.
func (s *Store) name(ctx context.Context, d docker, loaded, image *engine.Image) error {
	for _, ref := range image.RepoDigests {
		name := registry.FullName(ref)
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil || !strings.Contains(name, "@") || slices.Contains(loaded.RepoDigests, reference.FamiliarString(named)) {
			continue
		}
		if err := s.records.add(loaded.ID, reference.FamiliarString(named)); err != nil {
			return err
		}
	}
	tags := slices.Clone(image.RepoTags)
	if len(tags) == 0 && len(image.RepoDigests) > 0 {
		if _, digest, ok := strings.Cut(image.RepoDigests[0], "@sha256:"); ok {
			tags = []string{heldRepository + ":" + digest}
		}
	}
	for _, tag := range tags {
		if slices.Contains(loaded.RepoTags, tag) {
			continue
		}
		if err := d.ImageTag(ctx, string(loaded.ID), tag); err != nil {
			return dockerError("tag it "+tag, err)
		}
	}
	return nil
}
