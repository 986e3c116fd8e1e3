package pullthrough

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine/docker/imagestore/hosts"
)

const (
	// maxManifest is what registries accept at most (distribution's payload limit).
	maxManifest = 4 << 20
	// maxHeader bounds the header of an answer.
	maxHeader = 1 << 20
	// maxRedirects bounds how often one request is sent elsewhere.
	maxRedirects = 5
	// defaultDialTimeout is for one TCP connection.
	defaultDialTimeout = 10 * time.Second
	userAgent          = "crishim"
)

// upstream is one endpoint within one session.
type upstream struct {
	endpoint   *hosts.Endpoint
	registry   string // as references name it: mirrors of many registries tell them apart by it
	repository string
	stall      time.Duration
	client     *http.Client
	transport  *http.Transport
	auth       *authorizer
	// broken is set by an answer that broke off, so that the rest comes from another endpoint.
	broken atomic.Bool
}

func newUpstream(pull *Pull, endpoint *hosts.Endpoint, stall time.Duration) *upstream {
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
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // bytes are passed on as they are: their digest is known
	}
	u := &upstream{
		endpoint: endpoint, registry: pull.Config.Registry, repository: pull.Repository, stall: stall, transport: transport,
	}
	u.client = &http.Client{Transport: transport, CheckRedirect: u.redirect}
	u.auth = newAuthorizer(pull, endpoint, transport, stall)
	return u
}

func (u *upstream) close() {
	u.transport.CloseIdleConnections()
	u.auth.close()
}

// redirect keeps what is for this endpoint from any other host (CVE-2020-15157): registries redirect blobs to storage.
func (u *upstream) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Scheme != "https" && (req.URL.Scheme != "http" || u.endpoint.URL.Scheme == "https") {
		return fmt.Errorf("refused a redirect from https to %s", req.URL.Scheme)
	}
	if req.URL.Scheme != u.endpoint.URL.Scheme || req.URL.Host != u.endpoint.URL.Host {
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

// get asks the endpoint for the target. The answer is 200 or 206; everything else is an error with a class.
func (u *upstream) get(ctx context.Context, method string, what target, header http.Header) (*http.Response, error) {
	location := *u.endpoint.URL
	location.Path += "/" + u.repository + "/" + what.kind + "/" + what.reference
	if !u.endpoint.Server {
		location.RawQuery = url.Values{"ns": {u.registry}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, location.String(), nil)
	if err != nil {
		return nil, u.failed(err)
	}
	for key, values := range u.endpoint.Header {
		req.Header[key] = slices.Clone(values)
	}
	req.Header.Set("User-Agent", userAgent)
	for _, key := range []string{"Accept", "Range"} {
		if values := header.Values(key); len(values) > 0 {
			req.Header[key] = values
		}
	}
	resp, err := u.auth.do(u.client, req)
	if err != nil {
		return nil, u.failed(err)
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
		return resp, nil
	}
	discard(resp)
	return nil, u.failed(statusError(resp.StatusCode))
}

// failed names the endpoint, but no URL: those of redirects hold signatures.
func (u *upstream) failed(err error) error {
	if inner := (*url.Error)(nil); errors.As(err, &inner) {
		err = inner.Err
	}
	if !classed(err) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s://%s: %w", u.endpoint.URL.Scheme, u.endpoint.URL.Host, err)
}

func classed(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) || errdefs.IsUnavailable(err) ||
		errdefs.IsUnknown(err) || errdefs.IsDataLoss(err)
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
	case status == http.StatusTooManyRequests, status >= 500:
		class = errdefs.ErrUnavailable
	}
	return fmt.Errorf("answered %d %s: %w", status, http.StatusText(status), class)
}

func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	_ = resp.Body.Close()
}

// candidates are the endpoints for the target in the order of trying: those whose answers broke off come last.
func (p *Session) candidates(what target) []*upstream {
	var good, broken []*upstream
	for _, u := range p.upstreams {
		able := u.endpoint.Pull
		if what.digest == "" {
			able = u.endpoint.Resolve
		}
		switch {
		case !able:
		case u.broken.Load():
			broken = append(broken, u)
		default:
			good = append(good, u)
		}
	}
	return append(good, broken...)
}

// serve answers with what the first able endpoint has.
func (p *Session) serve(w http.ResponseWriter, r *http.Request, what target) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()

	last := p.upstreams[len(p.upstreams)-1]
	verdict := fmt.Errorf("%s serves neither tags nor content of %s: %w", last.endpoint.URL.Host, last.registry, errdefs.ErrUnavailable)
	for i, u := range p.candidates(what) {
		err := p.copyFrom(ctx, w, r, u, what)
		if err == nil {
			p.setFailure(nil)
			return
		}
		if ctx.Err() != nil {
			panic(http.ErrAbortHandler) // nobody listens any more
		}
		// A mirror that lacks something says nothing of the registry: the last endpoint's word is the answer.
		if i == 0 || u == last {
			verdict = err
		}
	}
	p.setFailure(verdict)
	switch {
	case errdefs.IsNotFound(verdict) && what.kind == "blobs":
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", verdict.Error())
	case errdefs.IsNotFound(verdict):
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", verdict.Error())
	case errdefs.IsUnauthorized(verdict), errdefs.IsPermissionDenied(verdict):
		fail(w, http.StatusForbidden, "DENIED", verdict.Error())
	default:
		fail(w, http.StatusBadGateway, "UNAVAILABLE", verdict.Error())
	}
}

func (p *Session) setFailure(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failure = err
}

// passedOn are the headers of an answer that Docker needs.
var passedOn = []string{"Content-Type", "Content-Range", "Accept-Ranges", "Docker-Content-Digest", "Etag", "Last-Modified"}

// copyFrom answers from one endpoint. An error means that nothing was written yet.
func (p *Session) copyFrom(ctx context.Context, w http.ResponseWriter, r *http.Request, u *upstream, what target) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := u.get(ctx, r.Method, what, r.Header)
	if err != nil {
		return err
	}
	body := newStallReader(resp.Body, u.stall, cancel)
	defer body.Close()
	var content io.Reader = body
	if what.kind == "manifests" && r.Method == http.MethodGet {
		data, err := readManifest(body, what)
		if err != nil {
			return u.failed(err)
		}
		resp.ContentLength = int64(len(data))
		content = bytes.NewReader(data)
	}
	for _, key := range passedOn {
		if value := resp.Header.Get(key); value != "" {
			w.Header().Set(key, value)
		}
	}
	if resp.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.WriteHeader(resp.StatusCode)
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := io.Copy(w, content); err != nil {
		if r.Context().Err() == nil && p.ctx.Err() == nil {
			// Docker asks again from where this broke off.
			u.broken.Store(true)
			p.setFailure(u.failed(fmt.Errorf("the answer broke off: %w", err)))
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}

// readManifest reads a whole manifest and holds it to the digest that was asked for, so that a mirror with other bytes is
// passed over and does not fail the pull.
func readManifest(r io.Reader, what target) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	if len(data) > maxManifest {
		return nil, fmt.Errorf("the manifest is larger than %d bytes: %w", maxManifest, errdefs.ErrDataLoss)
	}
	if what.digest != "" && what.digest.Algorithm().FromBytes(data) != what.digest {
		return nil, fmt.Errorf("the manifest is not the one of %s: %w", what.digest, errdefs.ErrDataLoss)
	}
	return data, nil
}

var errStalled = errors.New("no byte came for too long")

// stallReader ends a body that sends nothing for a while by cancelling its request.
type stallReader struct {
	body    io.ReadCloser
	timeout time.Duration
	timer   *time.Timer

	mu      sync.Mutex
	stalled bool
}

func newStallReader(body io.ReadCloser, timeout time.Duration, cancel context.CancelFunc) *stallReader {
	r := &stallReader{body: body, timeout: timeout}
	r.timer = time.AfterFunc(timeout, func() {
		r.mu.Lock()
		r.stalled = true
		r.mu.Unlock()
		cancel()
	})
	return r
}

func (r *stallReader) Read(p []byte) (int, error) {
	// The timer runs only while waiting for the endpoint: a Docker that takes its time is no stall.
	r.timer.Reset(r.timeout)
	n, err := r.body.Read(p)
	r.timer.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && r.stalled {
		err = errStalled
	}
	return n, err
}

func (r *stallReader) Close() error {
	r.timer.Stop()
	return r.body.Close()
}
