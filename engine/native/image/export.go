package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine"
	"crishim/registry"
)

// nameAnnotation is where containerd and Docker look for an image's full name in an index.json.
const nameAnnotation = "io.containerd.image.name"

// dockerManifestFile and its siblings are the files of archives.
const (
	dockerManifestFile = "manifest.json"
	indexFile          = ocispec.ImageIndexFile
	layoutFile         = ocispec.ImageLayoutFile
)

// dockerManifest is one image in the manifest.json of docker save.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Export writes images as one tar archive that both `docker load` and readers of OCI layouts take. Content is as it was
// pulled, so that digests stay the same; of an index, only this platform's image is in it. An image is named by any
// reference: a tag exports that name, an id all of them.
func (s *Store) Export(ctx context.Context, w io.Writer, refs []string) error {
	archive := tar.NewWriter(w)
	err := s.export(ctx, refs, func(name string, size int64, content io.Reader) error {
		header := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if size >= 8<<30 { // what USTAR can say
			header.Format = tar.FormatPAX
		}
		if err := archive.WriteHeader(&header); err != nil {
			return err
		}
		_, err := io.Copy(archive, content)
		return err
	})
	if err != nil {
		return err
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	return nil
}

// ExportDir writes images as an OCI layout into a folder, which is made and must be empty or absent.
func (s *Store) ExportDir(ctx context.Context, dir string, refs []string) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("export images: %s is not empty: %w", dir, errdefs.ErrFailedPrecondition)
	}
	return s.export(ctx, refs, func(name string, _ int64, content io.Reader) error {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return err
		}
		path := filepath.Join(dir, name) // names are ours
		folder := dir
		for _, part := range strings.Split("./"+filepath.Dir(name), "/") {
			folder = filepath.Join(folder, part)
			if err := makeReadable(folder); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Chmod(0o644), f.Close()) // whatever our umask
	})
}

// makeReadable makes a folder that everybody may read, whatever our umask. One that is there stays as it is.
func makeReadable(path string) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return errors.Join(err, os.Chmod(path, 0o755))
}

// exported is what one export holds.
type exported struct {
	index  ocispec.Index
	docker []dockerManifest
	blobs  []ocispec.Descriptor
}

func (s *Store) export(ctx context.Context, refs []string, put func(name string, size int64, content io.Reader) error) error {
	if len(refs) == 0 {
		return fmt.Errorf("export: name at least one image: %w", errdefs.ErrInvalidArgument)
	}
	const owner = "an export"
	out := exported{index: ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}}
	for _, ref := range refs {
		img, err := s.Image(ctx, ref)
		if err != nil {
			return err
		}
		if err := s.Hold(ctx, img.ID, owner); err != nil {
			return err
		}
		defer s.Release(img.ID, owner)
		if err := s.plan(&out, img.ID, ref); err != nil {
			return err
		}
	}
	documents := []struct {
		name  string
		value any
	}{
		{layoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}, {indexFile, out.index}, {dockerManifestFile, out.docker},
	}
	for _, d := range documents {
		data, err := json.Marshal(d.value)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		if err := put(d.name, int64(len(data)), bytes.NewReader(data)); err != nil {
			return diskError("export "+d.name, err)
		}
	}
	for _, b := range out.blobs {
		if err := s.exportBlob(ctx, b, put); err != nil {
			return diskError("export blob "+string(b.Digest), err)
		}
	}
	return nil
}

// plan adds an image to an export.
func (s *Store) plan(out *exported, id engine.ImageID, ref string) error {
	s.mu.Lock()
	img := s.images[id]
	s.mu.Unlock()
	if img == nil {
		return notFound(ref)
	}
	q, err := registry.ParseQuery(ref)
	if err != nil {
		return err
	}
	m := &img.record.Manifests[0]
	tags := tagNames(img.record.Tags)
	if slices.Contains(tags, q.Name) {
		tags = []string{q.Name}
	}
	if _, d, ok := strings.Cut(q.Name, "@"); ok {
		tags = nil
		for i := range img.record.Manifests {
			if img.record.Manifests[i].root().Digest == digest.Digest(d) {
				m = &img.record.Manifests[i]
			}
		}
	}
	names := tags
	if len(names) == 0 {
		names = []string{""}
		for _, name := range img.record.Digests {
			if strings.HasSuffix(name, "@"+string(m.root().Digest)) {
				names = []string{name}
			}
		}
	}
	for _, name := range names {
		desc := m.root()
		if name != "" {
			desc.Annotations = map[string]string{nameAnnotation: name}
			if _, version, ok := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ":"); ok && !strings.Contains(name, "@") {
				desc.Annotations[ocispec.AnnotationRefName] = version
			}
		}
		out.index.Manifests = append(out.index.Manifests, desc)
	}
	docker := dockerManifest{Config: blobName(m.Config.Digest), RepoTags: familiar(tags), Layers: []string{}}
	for _, l := range m.Layers {
		docker.Layers = append(docker.Layers, blobName(l.Digest))
	}
	out.docker = append(out.docker, docker)
	for _, b := range m.blobs() {
		if !slices.ContainsFunc(out.blobs, func(have ocispec.Descriptor) bool { return have.Digest == b.Digest }) {
			out.blobs = append(out.blobs, b)
		}
	}
	return nil
}

// root is what names the image in its registry.
func (m *manifest) root() ocispec.Descriptor {
	if len(m.Indexes) > 0 {
		return m.Indexes[0]
	}
	return m.Manifest
}

// blobName is a blob's file in an archive.
func blobName(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + string(d.Algorithm()) + "/" + d.Encoded()
}

func (s *Store) exportBlob(ctx context.Context, b ocispec.Descriptor, put func(string, int64, io.Reader) error) error {
	f, err := os.Open(s.blobPath(b.Digest))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	verifier := b.Digest.Verifier()
	content := io.TeeReader(io.LimitReader(&contextReader{ctx, f}, b.Size), verifier)
	if err := put(blobName(b.Digest), b.Size, content); err != nil {
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("it is damaged on disk, remove the image and pull it again: %w", errdefs.ErrDataLoss)
	}
	return nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// fullTag is a familiar name with its tag in full, "" when it is none.
func fullTag(name string) string {
	named, err := registry.ParseName(name)
	if err != nil {
		return ""
	}
	if _, ok := named.(reference.Tagged); !ok {
		return ""
	}
	return named.String()
}
