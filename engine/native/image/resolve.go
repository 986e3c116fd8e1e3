package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/space"
	"crishim/internal/flight"
)

// version is the tag or digest of a name.
func version(named reference.Named) (string, error) {
	switch named := named.(type) {
	case reference.Canonical:
		if named.Digest().Algorithm() != digest.SHA256 {
			return "", malformed("digest %s is not a sha256 one, others are not supported", named.Digest())
		}
		return named.Digest().String(), nil
	case reference.Tagged:
		return named.Tag(), nil
	}
	return "", malformed("%s has neither a tag nor a digest", named)
}

// found is an image whose manifest and config are in the store and leased, with its layers still to come.
type found struct {
	manifest manifest
	config   *ocispec.Image
	leases   []func()
}

func (f *found) id() engine.ImageID { return engine.ImageID(f.manifest.Config.Digest) }

// root is the digest that names the image in its registry.
func (f *found) root() digest.Digest {
	if len(f.manifest.Indexes) > 0 {
		return f.manifest.Indexes[0].Digest
	}
	return f.manifest.Manifest.Digest
}

func (f *found) release() {
	for _, release := range f.leases {
		release()
	}
}

// source is where the content of an image comes from.
type source interface {
	blobSource
	// manifest gets a manifest or index by tag or digest, held to its digest, with what it was sent as if that is known.
	manifest(ctx context.Context, ref string, limit int64) (data []byte, mediaType string, err error)
}

// resolve follows a tag or digest to the manifest for this platform and its config. linkedAs is the media type that a link
// gave it, if any.
func (s *Store) resolve(ctx context.Context, from source, ref, linkedAs string, at *progress) (_ *found, err error) {
	f := &found{}
	defer func() {
		if err != nil {
			f.release()
		}
	}()
	for {
		data, sentAs, err := from.manifest(ctx, ref, s.options.Limits.Manifest)
		if err != nil {
			return nil, err
		}
		at.touch()
		parse := parseDocument
		if linkedAs != "" {
			parse, sentAs = parseLinked, linkedAs // what links to it says what it is, and was held to its digest
		}
		doc, err := parse(data, sentAs)
		if err != nil {
			return nil, err
		}
		desc := ocispec.Descriptor{MediaType: doc.mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		f.leases = append(f.leases, s.lease(blobLease(desc.Digest)))
		if err := at.onDisk(func() error { return s.writeBlob(desc.Digest, data) }); err != nil {
			return nil, err
		}
		if doc.image != nil {
			f.manifest.Manifest = desc
			return f, s.resolveConfig(ctx, from, doc, f, at)
		}
		if f.manifest.Indexes = append(f.manifest.Indexes, desc); len(f.manifest.Indexes) > s.options.Limits.IndexDepth {
			return nil, fmt.Errorf("indexes lie more than %d deep in each other: %w", s.options.Limits.IndexDepth, errdefs.ErrInvalidArgument)
		}
		next, err := doc.choose(&s.options.Platform, s.options.Limits.Manifest)
		if err != nil {
			return nil, err
		}
		ref, linkedAs = next.Digest.String(), next.MediaType
	}
}

// resolveConfig gets what a manifest links to, but the layers.
func (s *Store) resolveConfig(ctx context.Context, from blobSource, doc *document, f *found, at *progress) (err error) {
	if f.manifest.Config, f.manifest.Layers, err = doc.links(&s.options.Limits); err != nil {
		return err
	}
	s.mu.Lock()
	known := s.images[f.id()] != nil // with as many as were allowed when it came
	s.mu.Unlock()
	if n := len(f.manifest.Layers); n > s.options.Limits.Layers && !known {
		return fmt.Errorf("the image has %d layers, more than %d: %w", n, s.options.Limits.Layers, errdefs.ErrResourceExhausted)
	}
	f.leases = append(f.leases, s.lease(blobLease(f.manifest.Config.Digest)))
	if err := s.ensureBlob(ctx, from, f.manifest.Config, at); err != nil {
		return err
	}
	if f.config, err = s.readConfig(f.id()); err != nil {
		return err
	}
	if len(f.config.RootFS.DiffIDs) != len(f.manifest.Layers) {
		return malformed("the manifest has %d layers, the config %d", len(f.manifest.Layers), len(f.config.RootFS.DiffIDs))
	}
	if p := s.options.Platform; f.config.Architecture != "" && f.config.Architecture != p.Architecture {
		klog.InfoS("The image is for another architecture and may not run here", "id", f.id(), "architecture", f.config.Architecture)
	}
	var keys []string
	for i, l := range f.manifest.Layers {
		keys = append(keys, blobLease(l.Digest), layerLease(f.config.RootFS.DiffIDs[i]))
	}
	f.leases = append(f.leases, s.lease(keys...))
	return nil
}

// ensureBlob brings a blob into the store that is no layer.
func (s *Store) ensureBlob(ctx context.Context, from blobSource, desc ocispec.Descriptor, at *progress) error {
	unlock, err := s.fetching.Lock(ctx, desc.Digest)
	if err != nil {
		return fmt.Errorf("wait for another pull of blob %s: %w", desc.Digest, err)
	}
	defer unlock()
	for try := 1; ; try++ {
		p, err := s.openPart(desc)
		if err != nil {
			return err
		}
		err = s.fill(ctx, p, from, at)
		_ = p.file.Close()
		if try == corruptTries || !errors.Is(err, errCorrupt) {
			return err
		}
	}
}

// fetchLayers brings the layers in, several at once.
func (s *Store) fetchLayers(ctx context.Context, from blobSource, f *found, at *progress) error {
	if err := s.checkRoom(f.manifest.Layers); err != nil {
		return err
	}
	var total int64
	for _, l := range f.manifest.Layers {
		total += l.Size
	}
	at.total.Store(total + f.manifest.Config.Size)
	at.all.Store(int32(len(f.manifest.Layers)))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchers)
	for i, l := range f.manifest.Layers {
		group.Go(func() (err error) {
			defer flight.Caught(&err)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			err = s.ensureLayer(ctx, from, l, f.config.RootFS.DiffIDs[i], at)
			if err != nil {
				return err
			}
			at.ready.Add(1)
			return nil
		})
	}
	return group.Wait()
}

// checkRoom fails where the blobs of layers that are not here yet are more than the disk has left, before any is fetched.
// Unpacked they take about as much again or more, which nobody knows before.
func (s *Store) checkRoom(layers []ocispec.Descriptor) error {
	missing := map[digest.Digest]int64{}
	for _, l := range layers {
		s.mu.Lock()
		have := s.content.blobs[l.Digest]
		s.mu.Unlock()
		if have != nil && have.size == l.Size {
			continue
		}
		missing[l.Digest] = l.Size
		if info, err := os.Lstat(s.partPath(l.Digest)); err == nil {
			missing[l.Digest] = max(0, l.Size-info.Size())
		}
	}
	var sum int64
	for _, size := range missing {
		if sum += size; sum < 0 {
			return malformed("the layers are together larger than any disk")
		}
	}
	if sum == 0 {
		return nil
	}
	parts, err := os.Open(s.path(partsDir))
	if err != nil {
		return diskError("look for the room of the layers", err)
	}
	defer func() { _ = parts.Close() }()
	left, size, err := space.On(parts, s.options.Limits.Layer.Reserve).Left()
	if err != nil {
		return err
	}
	if sum > left {
		return fmt.Errorf("its layers are %s to be fetched, and their disk of %s has %s left for images: free some space: %w",
			space.Text(sum), space.Text(size), space.Text(max(0, left)), errdefs.ErrResourceExhausted)
	}
	return nil
}
