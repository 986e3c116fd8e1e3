package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/net/publicsuffix"

	"crishim/registry/hosts"
)

const (
	// authRounds bounds how often one request is repeated with other credentials.
	authRounds = 3
	// maxToken bounds the answer of a token server.
	maxToken = 64 << 10
)

// authorizer answers the challenges of one endpoint (https://distribution.github.io/distribution/spec/auth/token/).
type authorizer struct {
	endpoint    *hosts.Endpoint
	repository  string   // as the endpoint has it
	trusted     []string // Pull.TokenServers
	credentials func(context.Context) (Credentials, error)
	// own is for a token server on the endpoint's own host, other for one elsewhere.
	own, other *http.Client

	mu     sync.Mutex
	header string // the Authorization header in use
	// withheld is why the registry got no credentials: ErrWithheld with its reason, or what a credential helper said.
	withheld error
}

// ErrWithheld says of a refusal that there were credentials, which the token server did not get: it is on another site than the
// registry, and Pull.TokenServers does not name it.
var ErrWithheld = errors.New("no credentials were sent")

// refusal is an error of the registry or its token server, which may be about credentials that neither got.
func (a *authorizer) refusal(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.withheld == nil || !errdefs.IsUnauthorized(err) && !errdefs.IsPermissionDenied(err) && !errdefs.IsNotFound(err) {
		return err
	}
	return fmt.Errorf("%w (%w)", err, a.withheld)
}

func newAuthorizer(pull *Pull, endpoint *hosts.Endpoint, transport *http.Transport, timeout time.Duration) *authorizer {
	a := &authorizer{endpoint: endpoint, repository: nameAt(endpoint, pull.Repository), trusted: pull.TokenServers}
	switch {
	case endpoint.Server:
		a.credentials = func(context.Context) (Credentials, error) { return pull.Credentials, nil }
		if token := pull.Credentials.RegistryToken; token != "" {
			a.header = "Bearer " + token
		}
	case pull.MirrorCredentials != nil:
		var mu sync.Mutex
		var missing *Credentials // a helper that does not answer is waited for once in a pull, and not for each layer
		a.credentials = func(ctx context.Context) (Credentials, error) {
			mu.Lock()
			defer mu.Unlock()
			if missing != nil {
				return *missing, nil
			}
			found, err := pull.MirrorCredentials(ctx, endpoint.URL.Host, mirrored(endpoint, pull.Repository))
			if err == nil && found.Missing != "" {
				missing = &found
			}
			return found, err
		}
	default:
		a.credentials = func(context.Context) (Credentials, error) { return Credentials{}, nil }
	}
	// skip_verify was said of the endpoint, not of whatever host it names as token server.
	verifying := transport.Clone()
	verifying.TLSClientConfig.InsecureSkipVerify = false
	a.own, a.other = tokenClient(transport, timeout), tokenClient(verifying, timeout)
	return a
}

// mirrored is the name of a repository at a mirror, which may keep those of other registries below one of its own.
func mirrored(endpoint *hosts.Endpoint, repository string) string {
	below := strings.TrimSuffix(strings.TrimPrefix(endpoint.URL.Path, "/v2"), "/v2")
	return strings.TrimPrefix(below+"/"+repository, "/")
}

// nameAt is the name of a repository in the endpoint's own API, below whose "/v2/" the endpoint may lie.
func nameAt(endpoint *hosts.Endpoint, repository string) string {
	_, below, _ := strings.Cut(endpoint.URL.Path+"/", "/v2/")
	return below + repository
}

// tokenClient follows no redirect that would carry the credentials on.
func tokenClient(transport *http.Transport, timeout time.Duration) *http.Client {
	return &http.Client{Transport: transport, Timeout: timeout, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		// To where the credentials have just been, as one that adds a slash to the path does it, and nowhere else.
		if before := via[len(via)-1].URL; len(via) > maxRedirects || !hosts.SameServer(req.URL, before) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
}

func (a *authorizer) close() { a.other.CloseIdleConnections() }

// do sends the request, again with credentials where the endpoint itself asks for them.
func (a *authorizer) do(client *http.Client, req *http.Request) (*http.Response, error) {
	for round := 1; ; round++ {
		a.mu.Lock()
		header := a.header
		a.mu.Unlock()
		attempt := req.Clone(req.Context())
		if header != "" {
			attempt.Header.Set("Authorization", header)
		}
		resp, err := client.Do(attempt)
		if err != nil {
			return nil, err
		}
		asker := resp.Request.URL
		if resp.StatusCode != http.StatusUnauthorized || round == authRounds || !hosts.SameServer(asker, a.endpoint.URL) {
			return resp, nil
		}
		challenges := resp.Header.Values("WWW-Authenticate")
		Discard(resp)
		next, err := a.answer(req.Context(), challenges)
		if err != nil {
			return nil, err
		}
		if next == header {
			return nil, a.refusal(fmt.Errorf("refused the credentials: %w", errdefs.ErrUnauthenticated))
		}
		a.mu.Lock()
		a.header = next
		a.mu.Unlock()
	}
}

// answer makes an Authorization header for the first challenge that it can.
func (a *authorizer) answer(ctx context.Context, challenges []string) (string, error) {
	credentials, err := a.credentials(ctx)
	if err != nil {
		return "", err
	}
	if credentials.Missing != "" {
		a.mu.Lock()
		a.withheld = errors.New(credentials.Missing)
		a.mu.Unlock()
	}
	basic := false
	for _, line := range challenges {
		for _, c := range parseChallenges(line) {
			switch strings.ToLower(c.scheme) {
			case "bearer":
				token, err := a.token(ctx, c.params, credentials)
				if err != nil {
					return "", fmt.Errorf("get a token: %w", err)
				}
				return "Bearer " + token, nil
			case "basic":
				basic = true
			}
		}
	}
	if !basic || credentials.Username == "" {
		return "", a.refusal(fmt.Errorf("asks for credentials and there are none for this host: %w", errdefs.ErrUnauthenticated))
	}
	req := &http.Request{Header: http.Header{}}
	req.SetBasicAuth(credentials.Username, credentials.Password)
	return req.Header.Get("Authorization"), nil
}

// token asks the challenge's token server, with credentials only where it belongs to the endpoint's site (S32) or the
// operator trusts it.
func (a *authorizer) token(ctx context.Context, params map[string]string, credentials Credentials) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Hostname() == "" || realm.User != nil || (realm.Scheme != "https" && realm.Scheme != "http") {
		return "", fmt.Errorf("the challenge names no token server: %w", errdefs.ErrUnauthenticated)
	}
	if realm.Scheme == "http" && a.endpoint.URL.Scheme == "https" {
		return "", fmt.Errorf("the token server %s is not on https: %w", realm.Host, errdefs.ErrUnauthenticated)
	}
	if params["scope"] == "" { // it is optional, and clients know what they want
		params["scope"] = "repository:" + a.repository + ":pull"
	}
	if !sameSite(a.endpoint.URL, realm) && !a.trusts(realm) {
		if credentials.Some() {
			a.mu.Lock()
			a.withheld = fmt.Errorf("%w: %s is on another domain than %s, and images.token_servers does not name it", ErrWithheld, realm.Host, a.endpoint.URL.Host)
			a.mu.Unlock()
		}
		credentials = Credentials{}
	}
	req, err := tokenRequest(ctx, realm, params, credentials)
	if err != nil {
		return "", err
	}
	client := a.other
	if hosts.SameHost(a.endpoint.URL, realm) {
		client = a.own
	}
	resp, err := client.Do(req)
	if inner := (*url.Error)(nil); errors.As(err, &inner) {
		err = inner.Err // or it would be told as the registry's own
	}
	if err != nil {
		return "", fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("token server %s: %w", realm.Host, a.refusal(statusError(resp.StatusCode)))
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	var reply struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if len(data) > maxToken || json.Unmarshal(data, &reply) != nil {
		return "", fmt.Errorf("token server %s: not a token of at most %d bytes: %w", realm.Host, maxToken, errdefs.ErrUnauthenticated)
	}
	if reply.Token == "" {
		reply.Token = reply.AccessToken
	}
	if reply.Token == "" || strings.ContainsAny(reply.Token, "\r\n\x00 ") {
		return "", fmt.Errorf("token server %s gave no token: %w", realm.Host, errdefs.ErrUnauthenticated)
	}
	return reply.Token, nil
}

// trusts says whether the operator has named a token server.
func (a *authorizer) trusts(realm *url.URL) bool {
	return slices.ContainsFunc(a.trusted, func(host string) bool { return hosts.SameServer(&url.URL{Scheme: realm.Scheme, Host: host}, realm) })
}

func tokenRequest(ctx context.Context, realm *url.URL, params map[string]string, credentials Credentials) (*http.Request, error) {
	query := url.Values{}
	for _, key := range []string{"service", "scope"} {
		if params[key] != "" {
			query.Set(key, params[key])
		}
	}
	if credentials.IdentityToken != "" {
		query.Set("grant_type", "refresh_token")
		query.Set("client_id", userAgent)
		query.Set("refresh_token", credentials.IdentityToken)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(query.Encode()))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("User-Agent", userAgent)
		return req, nil
	}
	location := *realm
	own := location.Query()
	for key, values := range query {
		own[key] = values
	}
	own["scope"] = strings.Fields(query.Get("scope")) // here each is a parameter, and one list of words in the form above
	location.RawQuery = own.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent)
	if credentials.Username != "" {
		req.SetBasicAuth(credentials.Username, credentials.Password)
	}
	return req, nil
}

// sameSite says whether a token server may see the credentials of an endpoint: it is the same host, or one under the
// same registrable domain (registry-1.docker.io and auth.docker.io). Addresses and "localhost" have no domain.
func sameSite(endpoint, realm *url.URL) bool {
	if hosts.SameHost(endpoint, realm) {
		return true
	}
	a, b := strings.ToLower(endpoint.Hostname()), strings.ToLower(realm.Hostname())
	if net.ParseIP(a) != nil || net.ParseIP(b) != nil || a == "localhost" || b == "localhost" {
		return false
	}
	if a == b {
		return true
	}
	siteA, errA := publicsuffix.EffectiveTLDPlusOne(a)
	siteB, errB := publicsuffix.EffectiveTLDPlusOne(b)
	return errA == nil && errB == nil && siteA == siteB
}

// challenge is one way in which a server lets itself be asked: a scheme with its parameters.
type challenge struct {
	scheme string
	params map[string]string
}

// parseChallenges reads a WWW-Authenticate value, which may have several challenges (RFC 9110, 11.6.1): a word that no "=" follows
// begins the next one.
func parseChallenges(line string) (all []challenge) {
	for {
		line = strings.TrimLeft(line, " \t,")
		if line == "" {
			return all
		}
		end := strings.IndexAny(line, " \t,=\"")
		if end < 0 {
			end = len(line)
		}
		word, rest := line[:end], strings.TrimLeft(line[end:], " \t")
		switch value, isParam := strings.CutPrefix(rest, "="); {
		case isParam:
			value, line = challengeValue(strings.TrimLeft(value, " \t"))
			if len(all) > 0 {
				all[len(all)-1].params[strings.ToLower(word)] = value
			}
		case word == "": // a text that is nobody's
			_, line = challengeValue(rest)
		default:
			all, line = append(all, challenge{word, map[string]string{}}), rest
		}
	}
}

// challengeValue takes a token or a quoted string off the front.
func challengeValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		value, rest, _ = strings.Cut(s, ",")
		return strings.TrimSpace(value), rest
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
