package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine"
	"crishim/engine/native/image/unpack"
	"crishim/registry"
)

// ImportOptions say how images are taken in.
type ImportOptions struct {
	// Name is the tag that the archive's only image gets in place of its own names. "" keeps those.
	Name string
	// Of, if set, is the archive's only image: its tags and repository digests take the place of the archive's names.
	Of *engine.Image
	// Source is what progress and errors call the archive ("stdin", a path).
	Source string
}

// Import reads an archive to its end, of docker save or with an OCI layout, plain, gzip or zstd, and stores its images.
// Nothing is fetched from anywhere. An archive of several images is imported as far as it is good: the images so far are
// returned beside the error.
func (s *Store) Import(ctx context.Context, r io.Reader, options ImportOptions) ([]engine.Image, error) {
	return s.importFrom(ctx, options, func(in *incoming) error {
		plain, closePlain, err := unpack.Decompress(&contextReader{ctx, r}, s.options.Limits.Layer.ZstdWindow)
		if err != nil {
			return err
		}
		defer closePlain()
		return in.readTar(ctx, plain)
	})
}

// ImportDir is Import of an OCI layout, or an unpacked archive, in a folder.
func (s *Store) ImportDir(ctx context.Context, dir string, options ImportOptions) ([]engine.Image, error) {
	return s.importFrom(ctx, options, func(in *incoming) error {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer func() { _ = root.Close() }()
		return in.readDir(ctx, root)
	})
}

func (s *Store) importFrom(ctx context.Context, options ImportOptions, receive func(*incoming) error) (images []engine.Image, err error) {
	at := newProgress()
	done := s.report(options.Source, at, 0) // whoever asked for it is told
	defer func() { done(err) }()
	in := &incoming{store: s, at: at, files: map[string]ocispec.Descriptor{}, links: map[string]string{}}
	defer in.clear()
	if err := receive(in); err != nil {
		if !errdefs.IsResourceExhausted(err) && !errdefs.IsDataLoss(err) && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		return nil, fmt.Errorf("import from %s: %w", options.Source, err)
	}
	wanted, err := in.images()
	if err != nil {
		return nil, fmt.Errorf("import from %s: %w", options.Source, err)
	}
	if options.Name != "" {
		name := fullTag(options.Name)
		if name == "" || len(wanted) != 1 {
			return nil, fmt.Errorf("import from %s: the name %.300q must be one with a tag, and for one image (there are %d): %w",
				options.Source, options.Name, len(wanted), errdefs.ErrInvalidArgument)
		}
		wanted[0].names = names{tags: []string{name}}
	}
	if options.Of != nil {
		if len(wanted) != 1 {
			return nil, fmt.Errorf("import from %s: it holds %d images, not one: %w", options.Source, len(wanted), errdefs.ErrInvalidArgument)
		}
		wanted[0].names = namesOf(options.Of)
	}
	for _, w := range wanted {
		id, err := s.importOne(ctx, in, w, at)
		if err != nil {
			return images, fmt.Errorf("import %s from %s: %w", strings.Join(w.names.tags, ", "), options.Source, err)
		}
		img, err := s.Image(ctx, string(id))
		if err != nil {
			return images, err
		}
		images = append(images, *img)
	}
	return images, nil
}

// namesOf are the full names of an image of another store.
func namesOf(image *engine.Image) names {
	var as names
	for _, tag := range image.RepoTags {
		if name := fullTag(tag); name != "" {
			as.tags = append(as.tags, name)
		}
	}
	for _, ref := range image.RepoDigests {
		if name := registry.FullName(ref); name != "" && strings.Contains(name, "@") {
			as.digests = append(as.digests, name)
		}
	}
	return as
}

// ExportImage implements engine.ImageCarrier.
func (s *Store) ExportImage(ctx context.Context, id engine.ImageID, w io.Writer) error {
	return s.Export(ctx, w, []string{string(id)})
}

// ImportImage implements engine.ImageCarrier.
func (s *Store) ImportImage(ctx context.Context, r io.Reader, image *engine.Image) (*engine.Image, error) {
	images, err := s.Import(ctx, r, ImportOptions{Of: image, Source: "another engine"})
	if err != nil {
		return nil, err
	}
	return &images[0], nil
}

func (s *Store) importOne(ctx context.Context, in *incoming, w wanted, at *progress) (engine.ImageID, error) {
	found, err := s.resolve(ctx, in, w.root.Digest.String(), w.root.MediaType, at)
	if err != nil {
		return "", err
	}
	defer found.release()
	if err := s.fetchLayers(ctx, in, found, at); err != nil {
		return "", err
	}
	return found.id(), s.publish(found, w.names)
}
