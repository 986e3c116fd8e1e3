package docker

import (
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
)

// readOnly is the connection of an engine that only observes (Options.Observe): whatever the callers do, dockerd is told to
// change nothing.
type readOnly struct{ next http.RoundTripper }

func (r readOnly) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Method != http.MethodGet && request.Method != http.MethodHead {
		return nil, fmt.Errorf("%s %s would change the Docker Engine, which this process only observes: %w", request.Method, request.URL.Path, errdefs.ErrFailedPrecondition)
	}
	return r.next.RoundTrip(request)
}
