package pullthrough

import (
	"context"
	"net/http"

	"crishim/registry"
	"crishim/registry/hosts"
)

// Ask asks the registry's own server (the last endpoint) whether it has a manifest, by tag or digest, as a pull would. It
// returns nil where it has, else an error with the class of the answer: ErrNotFound, ErrUnauthenticated,
// ErrPermissionDenied, or ErrUnavailable where there is none, as from a server whose certificate is not trusted here.
func Ask(ctx context.Context, pull registry.Pull, reference string) error {
	what, err := registry.ParseTarget("manifests/" + reference)
	if err != nil {
		return err
	}
	pull.Config = &hosts.Config{Registry: pull.Config.Registry, Endpoints: pull.Config.Endpoints[len(pull.Config.Endpoints)-1:]}
	u := pull.Open(registry.DefaultStall)[0]
	defer u.Close()
	resp, err := u.Get(ctx, http.MethodHead, what, http.Header{"Accept": registry.ManifestTypes})
	if err != nil {
		return err
	}
	registry.Discard(resp)
	return nil
}
