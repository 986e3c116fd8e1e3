package pullthrough

import (
	"context"
	"net/http"
)

// manifestTypes are the kinds of manifests that Docker takes.
var manifestTypes = []string{
	"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
}

// Ask asks the registry's own server (the last endpoint) whether it has a manifest, by tag or digest, as a pull would. It
// returns nil where it has, else an error with the class of the answer: ErrNotFound, ErrUnauthenticated,
// ErrPermissionDenied, or ErrUnavailable where there is none, as from a server whose certificate is not trusted here.
func Ask(ctx context.Context, pull Pull, reference string) error {
	what, err := parseTarget("manifests/" + reference)
	if err != nil {
		return err
	}
	u := newUpstream(&pull, &pull.Config.Endpoints[len(pull.Config.Endpoints)-1], defaultStallTimeout)
	defer u.close()
	resp, err := u.get(ctx, http.MethodHead, what, http.Header{"Accept": manifestTypes})
	if err != nil {
		return err
	}
	discard(resp)
	return nil
}
