package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/flight"
	"crishim/registry"
)

// fetchers bounds how many blobs of one image are fetched at once.
const fetchers = 4

// PullImage pulls and returns the image. Pulls are joined where they name the same image with the same credentials:
// nobody gets an image by somebody else's, and the registry is asked for the manifest each time (docs/reliability.md S40). A
// registry that cannot be reached is ErrUnavailable, and the text begins with the word that the kubelet looks for.
func (s *Store) PullImage(ctx context.Context, spec *engine.PullSpec) (*engine.Image, error) {
	named, err := registry.ParseName(spec.Ref)
	if err != nil {
		return nil, err
	}
	if q, err := registry.ParseQuery(spec.Ref); err != nil || q.ID != "" {
		return nil, fmt.Errorf("image reference %.300q is no name that can be pulled: %w", spec.Ref, errdefs.ErrInvalidArgument)
	}
	key, err := spec.JoinKey(named.String())
	if err != nil {
		return nil, err
	}
	for tries := 1; ; tries++ {
		id, err := s.pulls.Do(ctx, key, spec.NoProgress, func(ctx context.Context, at *progress) (id engine.ImageID, err error) {
			done := s.report(reference.FamiliarString(named), at, s.options.LogInterval)
			defer func() { done(err) }()
			defer flight.Caught(&err) // or it would be told of for ever
			return s.pull(ctx, named, spec, at)
		})
		if err != nil {
			return nil, pullError(named, err)
		}
		img, err := s.Image(ctx, string(id))
		switch {
		case !errdefs.IsNotFound(err):
			return img, err
		case tries == removedTries:
			// Not "not found", which would say that the registry has none.
			return nil, fmt.Errorf("pull %s: image %s was removed right after it had come, try again: %w", reference.FamiliarString(named), id, errdefs.ErrAborted)
		}
	}
}

// removedTries are how often an image is pulled that is removed each time before its caller is told of it.
const removedTries = 3

func pullError(named reference.Named, err error) error {
	name := reference.FamiliarString(named)
	if errdefs.IsUnavailable(err) {
		return fmt.Errorf("%w: pull %s: %w", crierrors.ErrRegistryUnavailable, name, err)
	}
	return fmt.Errorf("pull %s: %w", name, err)
}

// credentials are what a pull is made with: the caller's where they are for this registry, else the node's.
func (s *Store) credentials(ctx context.Context, auth *engine.Auth, named reference.Named) (registry.Credentials, error) {
	host := reference.Domain(named)
	if auth != nil && (auth.ServerAddress == "" || registry.Host(auth.ServerAddress) == registry.Host(host)) {
		given := registry.Credentials{
			Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
		}
		if given.Some() {
			return given, nil
		}
	}
	return registry.NodeAuth(s.options.NodeAuth).Find(ctx, host, reference.Path(named))
}

// pull is the work of one flight.
func (s *Store) pull(ctx context.Context, named reference.Named, spec *engine.PullSpec, at *progress) (engine.ImageID, error) {
	start := time.Now()
	credentials, err := s.credentials(ctx, spec.Auth, named)
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
	repo, err := openRepository(dirs, named, credentials, s.options, stall, spec.Patience())
	if err != nil {
		return "", err
	}
	defer repo.close()

	ref, err := version(named)
	if err != nil {
		return "", err
	}
	repo.known, repo.root, repo.read = s.documents(named), ref, s.readBlob
	found, err := s.resolve(ctx, repo, ref, "", at)
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

// documents are the manifests and indexes by which a name means the image that it means here. Only what was pulled by this name counts:
// who may pull it may have them.
func (s *Store) documents(named reference.Named) map[digest.Digest]ocispec.Descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[s.byName[named.String()]]
	if img == nil {
		return nil
	}
	known := map[digest.Digest]ocispec.Descriptor{}
	for i := range img.record.Manifests {
		m := &img.record.Manifests[i]
		if slices.Contains(img.record.Digests, named.Name()+"@"+string(m.root().Digest)) {
			for _, desc := range append(slices.Clone(m.Indexes), m.Manifest) {
				known[desc.Digest] = desc
			}
		}
	}
	return known
}
