package imagestore

import (
	"context"

	"github.com/distribution/reference"

	"crishim/engine"
	"crishim/registry"
)

// credentials are what a pull from a registry is made with: the caller's where they are for this registry, else the
// node's.
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
	return s.nodeCredentials(ctx, host, reference.Path(named))
}

// nodeCredentials are what the node's config files have for a repository of a registry; none is no error.
func (s *Store) nodeCredentials(ctx context.Context, host, repository string) (registry.Credentials, error) {
	return registry.NodeAuth(s.options.NodeAuth).Find(ctx, host, repository)
}
