//go:build !failpoint

package failpoint

import "net/http"

// Hit does nothing in this build.
func Hit(string) error { return nil }

// Transport is base in this build.
func Transport(base http.RoundTripper) http.RoundTripper { return base }
