package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine"
	"crishim/engine/native/image/unpack"
)

// Damage is one piece of content that is not what it was when it was pulled.
type Damage struct {
	// Digest is a blob's, or the DiffID where Layer says that it is an unpacked layer.
	Digest digest.Digest
	Layer  bool
	// What is wrong, in words.
	What string
}

func (d *Damage) String() string {
	kind := "blob"
	if d.Layer {
		kind = "layer"
	}
	return fmt.Sprintf("%s %s: %s", kind, d.Digest, d.What)
}

// Verified counts what Verify looked at; what several images share counts once.
type Verified struct {
	Images, Blobs, Layers int
	// Bytes are those of the blobs.
	Bytes int64
}

// Verify reads all content of images, all of them without refs, and tells of each what of it is damaged, nil where it is whole: every
// blob is held to its digest and the manifests to what they link, and every layer is unpacked anew beside the store's own and
// compared with it, file by file (see difference). That takes the space of one layer at a time. Nothing is changed, and
// containers may use the images meanwhile.
func (s *Store) Verify(ctx context.Context, refs []string, told func(*engine.Image, []Damage)) (Verified, error) {
	v := &verification{store: s, blobs: map[digest.Digest]string{}, layers: map[digest.Digest]string{}}
	images, err := s.ListImages(ctx)
	if err != nil {
		return v.Verified, err
	}
	if len(refs) > 0 {
		images = nil
		for _, ref := range refs {
			img, err := s.Image(ctx, ref)
			if err != nil {
				return v.Verified, err
			}
			if !slices.ContainsFunc(images, func(have engine.Image) bool { return have.ID == img.ID }) {
				images = append(images, *img)
			}
		}
	}
	for i := range images {
		damaged, err := v.image(ctx, images[i].ID)
		if errdefs.IsNotFound(err) && len(refs) == 0 {
			continue // removed meanwhile
		}
		if err != nil {
			return v.Verified, fmt.Errorf("verify image %s: %w", images[i].ID, err)
		}
		v.Images++
		told(&images[i], damaged)
	}
	return v.Verified, nil
}

// verification keeps what it knows already: "" is sound.
type verification struct {
	Verified
	store         *Store
	blobs, layers map[digest.Digest]string
}

func (v *verification) image(ctx context.Context, id engine.ImageID) (damaged []Damage, err error) {
	const owner = "a verification"
	s := v.store
	if err := s.Hold(ctx, id, owner); err != nil {
		return nil, err
	}
	defer s.Release(id, owner)
	if _, err := s.placedDirs(ctx, id); err != nil { // none of them is replaced from here on
		return nil, err
	}
	s.mu.Lock()
	rec := s.images[id].record
	s.mu.Unlock()
	for i := range rec.Manifests {
		m := &rec.Manifests[i]
		for _, b := range m.blobs() {
			what, err := v.blob(ctx, b)
			if err != nil {
				return nil, err
			}
			if what != "" && !slices.ContainsFunc(damaged, func(d Damage) bool { return d.Digest == b.Digest }) {
				damaged = append(damaged, Damage{Digest: b.Digest, What: what})
			}
		}
		if what := v.links(&rec, m); what != "" && len(damaged) == 0 {
			damaged = append(damaged, Damage{Digest: m.Manifest.Digest, What: what})
		}
	}
	for i, d := range rec.DiffIDs {
		what, err := v.layer(ctx, &rec, i)
		if err != nil {
			return nil, err
		}
		if what != "" && !slices.ContainsFunc(damaged, func(have Damage) bool { return have.Digest == d }) {
			damaged = append(damaged, Damage{Digest: d, Layer: true, What: what})
		}
	}
	return damaged, nil
}

// blob says what is wrong with a blob.
func (v *verification) blob(ctx context.Context, desc ocispec.Descriptor) (string, error) {
	if what, known := v.blobs[desc.Digest]; known {
		return what, nil
	}
	what, err := v.readWhole(ctx, desc)
	if err != nil {
		return "", err
	}
	v.blobs[desc.Digest] = what
	v.Blobs++
	v.Bytes += desc.Size
	return what, nil
}

func (v *verification) readWhole(ctx context.Context, desc ocispec.Descriptor) (string, error) {
	f, err := os.Open(v.store.blobPath(desc.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return "it is absent", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	found, err := digest.SHA256.FromReader(&contextReader{ctx, f})
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return fmt.Sprintf("it cannot be read: %v", err), nil
	case found != desc.Digest:
		return fmt.Sprintf("its content is %s", found), nil
	}
	return "", nil
}

// links says whether a record has what its manifest and config link to; both are sound.
func (v *verification) links(rec *record, m *manifest) string {
	s := v.store
	data, err := s.readBlob(m.Manifest.Digest, s.options.Limits.Manifest)
	if err != nil {
		return err.Error()
	}
	doc, err := parseDocument(data, m.Manifest.MediaType)
	if err != nil || doc.image == nil {
		return fmt.Sprintf("it is no manifest of an image: %v", err)
	}
	config, layers, err := doc.links(&s.options.Limits)
	if err != nil {
		return err.Error()
	}
	same := func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest && a.Size == b.Size }
	if !same(config, m.Config) || !slices.EqualFunc(layers, m.Layers, same) {
		return "it links to other content than the image's record"
	}
	parsed, err := s.readConfig(rec.ID)
	if err != nil {
		return err.Error()
	}
	if !slices.Equal(parsed.RootFS.DiffIDs, rec.DiffIDs) {
		return "the config has other layers than the image's record"
	}
	return ""
}

// layer says what is wrong with an image's nth layer. One that no sound blob is left of cannot be told: the blob's damage counts.
func (v *verification) layer(ctx context.Context, rec *record, n int) (string, error) {
	d := rec.DiffIDs[n]
	if what, known := v.layers[d]; known {
		return what, nil
	}
	for i := range rec.Manifests {
		from := rec.Manifests[i].Layers[n].Digest
		if v.blobs[from] != "" {
			continue
		}
		what, err := v.store.compareLayer(ctx, d, from)
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", d, err)
		}
		v.layers[d] = what
		v.Layers++
		return what, nil
	}
	return "", nil
}

// compareLayer unpacks a sound blob and says what the layer of it, as it is in the store, has otherwise.
func (s *Store) compareLayer(ctx context.Context, d, from digest.Digest) (what string, err error) {
	if info, err := os.Lstat(s.layerTree(d)); err != nil || !info.IsDir() {
		return "it is absent", nil //nolint:nilerr // that is the finding
	}
	select {
	case s.unpackers <- struct{}{}:
		defer func() { <-s.unpackers }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	temp := s.tempPath()
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	tree, err := makeTree(temp)
	if err != nil {
		return "", diskError("make a folder to unpack it into", err)
	}
	defer func() { _ = tree.Close() }()
	blob, err := os.Open(s.blobPath(from))
	if err != nil {
		return "", err
	}
	defer func() { _ = blob.Close() }()
	fresh, err := unpack.Unpack(ctx, tree, blob, s.options.Limits.Layer, nil)
	if err != nil {
		return "", err
	}
	if fresh.DiffID != d {
		return fmt.Sprintf("its blob %s unpacks to %s", from, fresh.DiffID), nil
	}
	return difference(ctx, filepath.Join(temp, layerTree), s.layerTree(d))
}
