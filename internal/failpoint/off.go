//go:build !failpoint

package failpoint

// Hit does nothing in this build.
func Hit(string) error { return nil }

// Environ is empty in this build.
func Environ() []string { return nil }

// Transport is base, a http.RoundTripper, in this build. So said without net/http, it costs the native engine's helper,
// which has no use for it, neither megabytes nor the time to initialise them.
func Transport[T any](base T) T { return base }
