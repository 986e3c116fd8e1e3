package imagestore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	dockerregistry "github.com/docker/docker/api/types/registry"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim/engine"
	"crishim/engine/docker/imagestore/pullthrough"
	"crishim/internal/undo"
	"crishim/registry"
	"crishim/registry/hosts"
)

// PullImage implements engine.Images.
//
// Pulls are joined where they name the same image with the same credentials: nobody gets an image by somebody else's
// (docs/reliability.md S40). A registry that cannot be reached is ErrUnavailable, and the text begins with the word that the kubelet
// looks for (k8s.io/cri-api/pkg/errors).
func (s *Store) PullImage(ctx context.Context, spec *engine.PullSpec) (*engine.Image, error) {
	named, err := registry.ParseName(spec.Ref)
	if err != nil {
		return nil, err
	}
	if q, err := registry.ParseQuery(spec.Ref); err != nil || q.ID != "" || isHelperOrHeld(named.Name()) {
		return nil, fmt.Errorf("image reference %.300q is no name that can be pulled: %w", spec.Ref, errdefs.ErrInvalidArgument)
	}
	key, err := spec.JoinKey(named.String())
	if err != nil {
		return nil, err
	}
	img, err := s.pulls.Do(ctx, key, spec.NoProgress, func(ctx context.Context, p *progress) (*engine.Image, error) {
		ref := reference.FamiliarString(named)
		img, err := func() (*engine.Image, error) {
			defer p.logEvery(s.options.LogInterval, ref)() // a pull that panics is not said to go on
			return s.pull(ctx, named, spec, p)
		}()
		if err == nil {
			p.logEnd(ref, img.ID, pulledDigest(s.finished(img), named))
		}
		return img, err
	})
	if err != nil {
		return nil, pullError(named, err)
	}
	return s.finished(img), nil
}

// pulledDigest is that of the name the image was pulled by, "" where none is known.
func pulledDigest(img *engine.Image, named reference.Named) string {
	for _, known := range img.RepoDigests {
		if digest, ok := strings.CutPrefix(known, reference.FamiliarName(named)+"@"); ok {
			return digest
		}
	}
	return ""
}

func pullError(named reference.Named, err error) error {
	name := reference.FamiliarString(named)
	if errors.Is(err, errRegistryDown) {
		return fmt.Errorf("%w: pull %s: %w", crierrors.ErrRegistryUnavailable, name, err)
	}
	return fmt.Errorf("pull %s: %w", name, err)
}

// errRegistryDown marks errors of a registry that cannot be reached or answers 5xx.
var errRegistryDown = fmt.Errorf("the registry cannot be reached or is broken: %w", errdefs.ErrUnavailable)

// pull is the work of one flight.
func (s *Store) pull(ctx context.Context, named reference.Named, spec *engine.PullSpec, p *progress) (*engine.Image, error) {
	domain := reference.Domain(named)
	s.mu.Lock()
	dirs := s.hostDirs
	s.mu.Unlock()
	mirrors, err := hosts.Lookup(dirs, domain)
	if err != nil {
		return nil, err
	}
	credentials, err := s.credentials(ctx, spec.Auth, named)
	if err != nil {
		return nil, err
	}
	d, err := s.docker()
	if err != nil {
		return nil, err
	}
	defer s.Invalidate()
	p.touch()
	// Certificates alone are no reason to come between: dockerd has read them, and what else daemon.json says of the registry.
	if mirrors != nil && !dockersOwn(mirrors) {
		return s.pullThrough(ctx, d, named, registry.Pull{
			Config: mirrors, Repository: reference.Path(named), Credentials: credentials, MirrorCredentials: s.nodeCredentials,
			TokenServers: s.options.TokenServers, Patience: spec.Patience(),
		}, p)
	}
	for tries := 1; ; tries++ {
		if err := dockerPull(ctx, d, named.String(), domain, credentials, p); err != nil {
			return nil, s.classify(ctx, named, credentials, err)
		}
		p.touch()
		img, err := inspect(ctx, d, named.String())
		// One that is not there was removed by somebody since: "not found" would say that the registry has none.
		if !errdefs.IsNotFound(err) || tries == removedTries {
			return img, err
		}
	}
}

// dockerCertificates is where dockerd reads certificates of registries, each in the folder of its name, and nowhere else.
const dockerCertificates = "/etc/docker/certs.d"

// dockersOwn says that a folder has nothing that dockerd does not know by itself.
func dockersOwn(config *hosts.Config) bool {
	tls := config.Endpoints[len(config.Endpoints)-1].TLS
	return config.Certificates && (config.Path == filepath.Join(dockerCertificates, config.Registry) || tls.RootCAs == nil && len(tls.Certificates) == 0)
}

// removedTries are how often an image is pulled that is removed each time before it was looked at.
const removedTries = 3

// dockerPull lets Docker pull ref, following its progress.
func dockerPull(ctx context.Context, d docker, ref, domain string, credentials registry.Credentials, p *progress) error {
	options := image.PullOptions{}
	if credentials.Some() {
		address := domain
		if domain == "docker.io" {
			address = registry.DockerHubKey
		}
		encoded, err := dockerregistry.EncodeAuthConfig(dockerregistry.AuthConfig{
			Username: credentials.Username, Password: credentials.Password, ServerAddress: address,
			IdentityToken: credentials.IdentityToken, RegistryToken: credentials.RegistryToken,
		})
		if err != nil {
			return fmt.Errorf("encode credentials: %w", err)
		}
		options.RegistryAuth = encoded
	}
	stream, err := d.ImagePull(ctx, ref, options)
	if err != nil {
		return dockerError("ask Docker", err)
	}
	defer func() { _ = stream.Close() }()
	return p.follow(stream)
}

// classify finds the class of an error of Docker's that has none of its own: for a registry that is away or refuses, some
// engines answer 500 as for anything else, so the registry is asked.
func (s *Store) classify(ctx context.Context, named reference.Named, credentials registry.Credentials, err error) error {
	if DiskFull(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	if in := (*streamError)(nil); ctx.Err() != nil || (!errors.As(err, &in) && !errdefs.IsInternal(err)) {
		return err
	}
	if registryDown(ctx, hosts.ServerURL(reference.Domain(named))) {
		return fmt.Errorf("%w: %w", err, errRegistryDown)
	}
	if refusal := s.registryRefusal(ctx, named, credentials); refusal != nil {
		// Docker's own class, "internal", would be one too many.
		return fmt.Errorf("%v: the registry %w", err, refusal)
	}
	return err
}

// pullThrough pulls over the endpoints of a hosts.toml: Docker pulls a helper's name from loopback, which then gives way to
// the asked one.
func (s *Store) pullThrough(ctx context.Context, d docker, named reference.Named, pull registry.Pull, p *progress) (*engine.Image, error) {
	session, err := s.mirrors.Open(ctx, pull)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	helper := session.Name() + strings.TrimPrefix(named.String(), named.Name()) // with ":tag" or "@digest"
	if err := dockerPull(ctx, d, helper, reference.Domain(named), registry.Credentials{}, p); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, mirrorError(err, session, named, pull.Config.Path)
	}
	p.touch()

	var undone undo.Stack
	undone.Push("helper name", func(ctx context.Context) error { return removeName(ctx, d, helper) })
	img, err := s.adopt(ctx, d, named, helper)
	// The helper's name goes in either case. One that stays, Run removes.
	if uerr := undone.Run(ctx); err == nil && uerr != nil {
		err = uerr
	}
	if err != nil {
		return nil, err
	}
	p.touch()
	return inspect(ctx, d, string(img))
}

// adopt gives the image under the helper's name its own: first the record of its digest, then the tag, so that what is
// tagged always has its digest.
func (s *Store) adopt(ctx context.Context, d docker, named reference.Named, helper string) (engine.ImageID, error) {
	in, err := d.ImageInspect(ctx, helper)
	if err != nil {
		return "", fmt.Errorf("inspect what was pulled: %s: %w", strings.ReplaceAll(err.Error(), helper, named.String()), errdefs.ErrUnavailable)
	}
	digest := helperDigest(in.RepoDigests)
	target := named.String()
	if canonical, ok := named.(reference.Canonical); ok {
		digest = canonical.Digest().String()
		target = heldRepository + ":" + canonical.Digest().Encoded()
	}
	id := engine.ImageID(in.ID)
	if digest != "" {
		if err := s.records.add(id, reference.FamiliarName(named)+"@"+digest); err != nil {
			return "", err
		}
	}
	if err := d.ImageTag(ctx, in.ID, target); err != nil {
		return "", dockerError("tag the pulled image", err)
	}
	return id, nil
}

// helperDigest is the digest of what was pulled under a helper's name.
func helperDigest(repoDigests []string) string {
	for _, ref := range repoDigests {
		if pullthrough.IsHelper(ref) {
			_, digest, _ := strings.Cut(ref, "@")
			return digest
		}
	}
	return ""
}

// mirrorError is a failed pull in the words of the endpoints, which Docker did not talk to, without the helper's name.
func mirrorError(err error, session *pullthrough.Session, named reference.Named, path string) error {
	if upstream := session.Err(); upstream != nil {
		err = fmt.Errorf("by %s: %w", path, upstream)
		if errdefs.IsUnavailable(upstream) {
			return fmt.Errorf("%w: %w", err, errRegistryDown)
		}
		return err
	}
	class := error(errdefs.ErrUnknown)
	for _, known := range []error{errdefs.ErrUnavailable, errdefs.ErrNotFound, errdefs.ErrInternal, errdefs.ErrResourceExhausted} {
		if errors.Is(err, known) {
			class = known
		}
	}
	return fmt.Errorf("by %s: %s: %w", path, strings.ReplaceAll(err.Error(), session.Name(), named.Name()), class)
}
