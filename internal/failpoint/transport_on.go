//go:build failpoint

package failpoint

import (
	"net/http"
	"regexp"
	"strings"
)

// Transport has a failpoint before and after every request that changes something: "docker.POST.containers.start". With
// an error after it the request was done and its answer is lost.
func Transport(base http.RoundTripper) http.RoundTripper { return transport{base} }

type transport struct{ base http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	name := requestName(r.Method, r.URL.Path)
	if name == "" {
		return t.base.RoundTrip(r)
	}
	if err := Hit(name + ".before"); err != nil {
		return nil, err
	}
	reply, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if err := Hit(name + ".after"); err != nil {
		_ = reply.Body.Close()
		return nil, err
	}
	return reply, nil
}

var versionPart = regexp.MustCompile(`^v[0-9.]+$`)

// requestName is the method and the fixed words of the path, "" for a request that changes nothing.
func requestName(method, path string) string {
	if method == http.MethodGet || method == http.MethodHead || strings.HasSuffix(path, "/wait") {
		return ""
	}
	name := "docker." + method
	for i, part := range strings.Split(strings.Trim(path, "/"), "/") {
		switch {
		case i == 0 && versionPart.MatchString(part):
		case part == "containers", part == "images", part == "exec", part == "create", part == "start", part == "kill",
			part == "update", part == "json", part == "load", part == "tag", part == "rename", part == "resize", part == "prune":
			name += "." + part
		}
	}
	return name
}
