package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"crishim/registry/hosts"
)

const (
	// MaxManifest is what registries accept at most (distribution's payload limit).
	MaxManifest = 4 << 20
	// maxHeader bounds the header of an answer.
	maxHeader = 1 << 20
	// maxRedirects bounds how often one request is sent elsewhere.
	maxRedirects = 5
	// defaultDialTimeout is for one TCP connection.
	defaultDialTimeout = 10 * time.Second
	userAgent          = "crishim"
)

// idleTimeout ends a connection that nobody uses. Close cannot, where an answer that was just given up still counts as under way (HTTP/2),
// and none comes back to a transport that is gone. Tests shorten it.
var idleTimeout = 30 * time.Second

// ManifestTypes are the kinds of manifests of images that engines take.
var ManifestTypes = []string{
	"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
}

// Endpoint is one place that serves a repository, within one pull. Its methods may be called from any goroutine.
type Endpoint struct {
	// Spec is what the hosts.toml says of it.
	Spec       *hosts.Endpoint
	registry   string // as references name it: mirrors of many registries tell them apart by it
	repository string
	stall      time.Duration
	transport  *http.Transport
	auth       *authorizer
	// Broken is set by an answer that broke off or did not come, so that the rest comes from another endpoint.
	Broken atomic.Bool

	// last says that there is no other that could be asked in place of waiting.
	last bool
	mu   sync.Mutex
	busy time.Time // since when it wants to be asked later, and has answered nothing else
}

func newEndpoint(pull *Pull, endpoint *hosts.Endpoint, stall time.Duration) *Endpoint {
	dial := endpoint.DialTimeout
	if dial == 0 {
		dial = defaultDialTimeout
	}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dial}).DialContext,
		TLSClientConfig:        endpoint.TLS.Clone(), // net/http writes into it
		TLSHandshakeTimeout:    dial,
		ResponseHeaderTimeout:  stall,
		MaxResponseHeaderBytes: maxHeader,
		IdleConnTimeout:        idleTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // bytes are passed on as they are: their digest is known
		// One connection of HTTP/2 is for all requests, and stays it where those before were never answered. One that is dead is to be
		// gone before they are given up: what is asked for again then goes over another.
		HTTP2: &http.HTTP2Config{SendPingTimeout: stall / 3, PingTimeout: stall / 3},
	}
	u := &Endpoint{
		Spec: endpoint, registry: pull.Config.Registry, repository: pull.Repository, stall: stall, transport: transport,
	}
	u.auth = newAuthorizer(pull, endpoint, transport, stall)
	return u
}

// Break notes that an answer broke off or did not come. Connections that wait to be used again may be as dead as its own.
func (u *Endpoint) Break() {
	u.Broken.Store(true)
	u.transport.CloseIdleConnections()
}

// Registry is the host as references name it.
func (u *Endpoint) Registry() string { return u.registry }

// Close drops idle connections.
func (u *Endpoint) Close() {
	u.transport.CloseIdleConnections()
	u.auth.close()
}

// redirect keeps what is for this endpoint from any other host (CVE-2020-15157): registries redirect blobs to storage. That may
// be without https where the answer is held to a digest: nobody on the way can make it another one, and no secret goes there.
func (u *Endpoint) redirect(what Target, req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	switch {
	case req.URL.Scheme == "https":
	case req.URL.Scheme != "http":
		return fmt.Errorf("refused a redirect to %.20q, which is neither https nor http: %w", req.URL.Scheme, errdefs.ErrFailedPrecondition)
	case u.Spec.URL.Scheme == "http":
	case what.Digest == "":
		return fmt.Errorf("refused a redirect of a tag from https to http, where anybody on the way can answer with another image: let the registry redirect to https, or pull by digest: %w",
			errdefs.ErrFailedPrecondition)
	case req.URL.Host == u.Spec.URL.Host:
		return fmt.Errorf("refused a redirect from https to http on the same host: correct the address that the registry gives as its own: %w", errdefs.ErrFailedPrecondition)
	}
	if !hosts.SameServer(req.URL, u.Spec.URL) {
		kept := http.Header{"User-Agent": {userAgent}}
		for _, key := range []string{"Accept", "Range"} {
			if values := via[0].Header.Values(key); len(values) > 0 {
				kept[key] = values
			}
		}
		req.Header = kept
	}
	return nil
}

// Get asks the endpoint for the target. The answer is 200 or 206; everything else is an error with a class.
func (u *Endpoint) Get(ctx context.Context, method string, what Target, header http.Header) (*http.Response, error) {
	location := *u.Spec.URL
	location.Path += "/" + u.repository + "/" + what.Kind + "/" + what.Reference
	// As containerd has it: a server, too, that is not the registry's own may hold several registries.
	if host := u.Spec.URL.Host; host != u.registry && hosts.ServerURL(u.registry) != "https://"+host {
		location.RawQuery = url.Values{"ns": {u.registry}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, location.String(), nil)
	if err != nil {
		return nil, u.Failed(err)
	}
	for key, values := range u.Spec.Header {
		req.Header[key] = slices.Clone(values)
	}
	req.Header.Set("User-Agent", userAgent)
	for _, key := range []string{"Accept", "Range"} {
		if values := header.Values(key); len(values) > 0 {
			req.Header[key] = values
		}
	}
	client := &http.Client{Transport: u.transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		return u.redirect(what, req, via)
	}}
	for {
		resp, err := u.auth.do(client, req)
		if err != nil {
			if !classed(err) && ctx.Err() == nil {
				u.Break() // or each further request waited as long for a connection, or for an answer
			}
			return nil, u.Failed(err)
		}
		later, busy := retryAfter(resp)
		if !busy {
			u.mu.Lock()
			u.busy = time.Time{}
			u.mu.Unlock()
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			return resp, nil
		}
		Discard(resp)
		if busy && u.await(ctx, later) {
			continue
		}
		err = statusError(resp.StatusCode)
		if busy {
			err = fmt.Errorf("%w (it wants to be asked again after %v)", err, later)
		}
		return nil, u.Failed(u.auth.refusal(err))
	}
}

// retryAfter is how long an answer wants to be left alone before it is asked for again, where it says so.
func retryAfter(resp *http.Response) (later time.Duration, said bool) {
	value := resp.Header.Get("Retry-After")
	if value == "" || resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0, false
	}
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	at, err := http.ParseTime(value)
	return max(0, time.Until(at)).Round(time.Second), err == nil
}

// await waits before the endpoint is asked again, and says whether that is worth it: nobody else could be asked, the caller has as
// long, and it wants no more than half of what an endpoint may be silent, all that it wanted since its last answer together.
func (u *Endpoint) await(ctx context.Context, later time.Duration) bool {
	if !u.last {
		return false
	}
	later = max(later, time.Second) // or it would be asked all the time
	u.mu.Lock()
	if u.busy.IsZero() {
		u.busy = time.Now()
	}
	until := u.busy.Add(u.stall / 2)
	u.mu.Unlock()
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	if time.Until(until) < later {
		return false
	}
	select {
	case <-time.After(later):
		return true
	case <-ctx.Done():
		return false
	}
}

// Failed names the endpoint, but no URL: those of redirects hold signatures.
func (u *Endpoint) Failed(err error) error {
	if inner := (*url.Error)(nil); errors.As(err, &inner) {
		err = inner.Err
	}
	if !classed(err) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s://%s: %w", u.Spec.URL.Scheme, u.Spec.URL.Host, err)
}

func classed(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) || errdefs.IsUnavailable(err) ||
		errdefs.IsUnknown(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsDataLoss(err) || errdefs.IsOutOfRange(err)
}

// statusError gives the class of an HTTP status of the distribution API.
func statusError(status int) error {
	var class error = errdefs.ErrUnknown
	switch {
	case status == http.StatusNotFound:
		class = errdefs.ErrNotFound
	case status == http.StatusUnauthorized:
		class = errdefs.ErrUnauthenticated
	case status == http.StatusForbidden:
		class = errdefs.ErrPermissionDenied
	case status == http.StatusRequestedRangeNotSatisfiable:
		class = errdefs.ErrOutOfRange
	case status == http.StatusTooManyRequests, status >= 500:
		class = errdefs.ErrUnavailable
	}
	return fmt.Errorf("answered %d %s: %w", status, http.StatusText(status), class)
}

// discardLimit is for what comes of a body that is not wanted: reading it saves a connection at most.
const discardLimit = time.Second

// Discard ends an answer whose body is not wanted, also one that never ends: the next endpoint waits.
func Discard(resp *http.Response) {
	timer := time.AfterFunc(discardLimit, func() { _ = resp.Body.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	_ = resp.Body.Close()
}

// ReadManifest reads a whole manifest, or a blob as small, and holds it to the digest that was asked for, so that a mirror with other
// bytes is passed over and does not fail the pull.
func ReadManifest(r io.Reader, what Target) ([]byte, error) {
	kind := strings.TrimSuffix(what.Kind, "s")
	data, err := io.ReadAll(io.LimitReader(r, MaxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read the %s: %w", kind, err)
	}
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("the %s is larger than %d bytes: %w", kind, MaxManifest, errdefs.ErrDataLoss)
	}
	if what.Digest != "" && what.Digest.Algorithm().FromBytes(data) != what.Digest {
		return nil, fmt.Errorf("the %s is not the one of %s: %w", kind, what.Digest, errdefs.ErrDataLoss)
	}
	return data, nil
}
