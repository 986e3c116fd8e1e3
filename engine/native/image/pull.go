package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	crierrors "k8s.io/cri-api/pkg/errors"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/registry"
)

// fetchers bounds how many blobs of one image are fetched at once.
const fetchers = 4

// PullImage pulls and returns the image. Pulls are joined where they name the same image with the same credentials:
// nobody gets an image by somebody else's, and the registry is asked for the manifest each time (catalogue S40). A
// registry that cannot be reached is ErrUnavailable, and the text begins with the word that the kubelet looks for.
func (s *Store) PullImage(ctx context.Context, spec *engine.PullSpec) (*engine.Image, error) {
	named, err := registry.ParseName(spec.Ref)
	if err != nil {
		return nil, err
	}
	if q, err := registry.ParseQuery(spec.Ref); err != nil || q.ID != "" {
		return nil, fmt.Errorf("image reference %.300q is no name that can be pulled: %w", spec.Ref, errdefs.ErrInvalidArgument)
	}
	key, err := joinKey(named, spec.Auth)
	if err != nil {
		return nil, err
	}
	id, _, err := s.pulls.do(ctx, key, spec.NoProgress, nil, func(ctx context.Context, at *progress) (engine.ImageID, error) {
		done := s.report(reference.FamiliarString(named), at)
		id, err := s.pull(ctx, named, spec, at)
		done(err)
		return id, err
	})
	if err != nil {
		return nil, pullError(named, err)
	}
	return s.Image(ctx, string(id))
}

// joinKey tells pulls apart; credentials are in it as a hash only.
func joinKey(named reference.Named, auth *engine.Auth) (string, error) {
	data, err := json.Marshal(auth)
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", named, err)
	}
	return fmt.Sprintf("%s %x", named, sha256.Sum256(data)), nil
}

func pullError(named reference.Named, err error) error {
	name := reference.FamiliarString(named)
	if errdefs.IsUnavailable(err) {
		return fmt.Errorf("%w: pull %s: %w", crierrors.ErrRegistryUnavailable, name, err)
	}
	return fmt.Errorf("pull %s: %w", name, err)
}

// credentials are what a pull is made with: the caller's where they are for this registry, else the node's.
func (s *Store) credentials(ctx context.Context, auth *engine.Auth, host string) (registry.Credentials, error) {
	if auth != nil && (auth.ServerAddress == "" || registry.Host(auth.ServerAddress) == registry.Host(host)) {
		given := registry.Credentials{
			Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
		}
		if given != (registry.Credentials{}) {
			return given, nil
		}
	}
	return registry.NodeAuth(s.options.NodeAuth).Find(ctx, host)
}

// pull is the work of one flight.
func (s *Store) pull(ctx context.Context, named reference.Named, spec *engine.PullSpec, at *progress) (engine.ImageID, error) {
	start := time.Now()
	credentials, err := s.credentials(ctx, spec.Auth, reference.Domain(named))
	if err != nil {
		return "", err
	}
	stall := registry.DefaultStall
	if spec.NoProgress > 0 {
		stall = min(stall, spec.NoProgress/2) // a mirror that sends nothing must not be what the pull fails by
	}
	s.mu.Lock()
	dirs := s.hostDirs
	s.mu.Unlock()
	repo, err := openRepository(dirs, named, credentials, s.options.NodeAuth, stall)
	if err != nil {
		return "", err
	}
	defer repo.close()

	found, err := s.resolve(ctx, repo, named, at)
	if err != nil {
		return "", err
	}
	defer found.release()
	if err := s.fetchLayers(ctx, repo, found, at); err != nil {
		return "", err
	}
	names := names{}
	if canonical, ok := named.(reference.Canonical); ok {
		names.digests = []string{canonical.String()}
	} else {
		names.tags = []string{named.String()}
		names.digests = []string{named.Name() + "@" + found.root().String()}
	}
	if err := s.publish(found, names); err != nil {
		return "", err
	}
	fetched, unpacked, _, _ := at.sum()
	klog.InfoS("Pulled image", "image", reference.FamiliarString(named), "id", found.id(), "digest", found.root(),
		"fetched", fetched, "unpacked", unpacked, "duration", time.Since(start))
	return found.id(), nil
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

// resolve follows a name to the manifest for this platform and its config.
func (s *Store) resolve(ctx context.Context, repo *repository, named reference.Named, at *progress) (_ *found, err error) {
	f := &found{}
	defer func() {
		if err != nil {
			f.release()
		}
	}()
	ref, linkedAs := "latest", ""
	var want digest.Digest
	switch named := named.(type) {
	case reference.Canonical:
		want = named.Digest()
		ref = want.String()
		if want.Algorithm() != digest.SHA256 {
			return nil, malformed("digest %s is not a sha256 one, others are not supported", want)
		}
	case reference.Tagged:
		ref = named.Tag()
	}
	for {
		data, sentAs, err := repo.manifest(ctx, ref, s.options.Limits.Manifest)
		if err != nil {
			return nil, err
		}
		at.touch()
		if linkedAs != "" {
			sentAs = linkedAs // what links to it says what it is, and was held to its digest
		}
		doc, err := parseDocument(data, sentAs)
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
			return f, s.resolveConfig(ctx, repo, doc, f, at)
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
func (s *Store) resolveConfig(ctx context.Context, source blobSource, doc *document, f *found, at *progress) (err error) {
	if f.manifest.Config, f.manifest.Layers, err = doc.links(&s.options.Limits); err != nil {
		return err
	}
	f.leases = append(f.leases, s.lease(blobLease(f.manifest.Config.Digest)))
	if err := s.ensureBlob(ctx, source, f.manifest.Config, at); err != nil {
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
func (s *Store) ensureBlob(ctx context.Context, source blobSource, desc ocispec.Descriptor, at *progress) error {
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
		err = s.fill(ctx, p, source, at)
		_ = p.file.Close()
		if try == corruptTries || !errors.Is(err, errCorrupt) {
			return err
		}
	}
}

// fetchLayers brings the layers in, several at once.
func (s *Store) fetchLayers(ctx context.Context, source blobSource, f *found, at *progress) error {
	var total int64
	for _, l := range f.manifest.Layers {
		total += l.Size
	}
	at.total.Store(total + f.manifest.Config.Size)
	at.all.Store(int32(len(f.manifest.Layers)))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchers)
	for i, l := range f.manifest.Layers {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			err := s.ensureLayer(ctx, source, l, f.config.RootFS.DiffIDs[i], at)
			if err != nil {
				return err
			}
			at.ready.Add(1)
			if size := s.sizeOf(f.config.RootFS.DiffIDs); size > s.options.Limits.Bytes {
				return fmt.Errorf("the image's layers are larger than %d bytes: %w", s.options.Limits.Bytes, errdefs.ErrResourceExhausted)
			}
			return nil
		})
	}
	return group.Wait()
}

// sizeOf is the size of those layers that are here, without compression.
func (s *Store) sizeOf(layers []digest.Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum int64
	for _, d := range layers {
		if l := s.content.layers[d]; l != nil {
			sum += l.Size
		}
	}
	return sum
}
