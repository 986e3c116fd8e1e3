// Package registry is what every engine needs to talk to registries: names of images, credentials of the node, and
// endpoints (package hosts says which) that are asked as the distribution API says.
//
// A caller parses a name (ParseName, ParseQuery), finds credentials (NodeAuth) and the endpoints (hosts.Lookup), opens a
// Pull, and asks Candidates in their order. Credentials go to the site they belong to and nowhere else, whatever the
// registry names as token server or redirects to (CVE-2020-15157), but for token servers that the node's operator named.
package registry

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"crishim/registry/hosts"
)

// DefaultStall is how long an endpoint may send nothing, header or body, before it counts as broken.
const DefaultStall = 30 * time.Second

// Credentials are for one registry host. The zero value is anonymous.
type Credentials struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token, RegistryToken a bearer token.
	IdentityToken, RegistryToken string
	// Missing is why there may be none although there should: the words of a credential helper that failed.
	Missing string
}

// Some says whether there are any.
func (c *Credentials) Some() bool {
	return c.Username != "" || c.Password != "" || c.IdentityToken != "" || c.RegistryToken != ""
}

// Pull says what is pulled, from where, with which credentials.
type Pull struct {
	Config *hosts.Config
	// Repository is the path in the registry ("library/busybox").
	Repository string
	// Credentials belong to the registry: its own server gets them, mirrors do not.
	Credentials Credentials
	// MirrorCredentials finds what the node has for a repository of a mirror's host. It may be nil.
	MirrorCredentials func(ctx context.Context, host, repository string) (Credentials, error)
	// TokenServers (HOST or HOST:PORT) get the credentials also of registries on other domains.
	TokenServers []string
	// Patience is how long the last endpoint, after which there is no other, may take to begin an answer: a proxy may fetch all of a
	// large blob first. What is less than an endpoint may be silent does not count.
	Patience time.Duration
}

// Open makes the endpoints of a pull, in the order of its config. stall is how long one may send nothing. Each must be closed.
func (p *Pull) Open(stall time.Duration) []*Endpoint {
	endpoints := make([]*Endpoint, len(p.Config.Endpoints))
	for i := range p.Config.Endpoints {
		endpoints[i] = newEndpoint(p, &p.Config.Endpoints[i], stall)
	}
	last := endpoints[len(endpoints)-1]
	last.last = true
	if p.Patience > stall {
		last.transport.ResponseHeaderTimeout = p.Patience
	}
	return endpoints
}

var tagPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// Target is a manifest or a blob of the repository.
type Target struct {
	Kind      string // "manifests" or "blobs"
	Reference string // a tag or a valid digest
	// Digest is that of Reference, "" when it is a tag.
	Digest digest.Digest
}

var errNoTarget = errors.New("not a manifest or blob")

// ParseTarget accepts KIND/REFERENCE only: what it returns may become part of a path.
func ParseTarget(path string) (Target, error) {
	kind, ref, _ := strings.Cut(path, "/")
	what := Target{Kind: kind, Reference: ref}
	if d, err := digest.Parse(ref); err == nil {
		what.Digest = d
	}
	switch {
	case kind == "manifests" && (what.Digest != "" || tagPattern.MatchString(ref)):
		return what, nil
	case kind == "blobs" && what.Digest != "":
		return what, nil
	}
	return Target{}, errNoTarget
}

// Candidates are the endpoints for the target in the order of trying: those whose answers broke off or did not come are last.
func Candidates(endpoints []*Endpoint, what Target) []*Endpoint {
	var good, broken []*Endpoint
	for _, u := range endpoints {
		able := u.Spec.Pull
		if what.Digest == "" {
			able = u.Spec.Resolve
		}
		switch {
		case !able:
		case u.Broken.Load():
			broken = append(broken, u)
		default:
			good = append(good, u)
		}
	}
	return append(good, broken...)
}
