package imagestore

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"crishim/engine/docker/imagestore/pullthrough"
	"crishim/registry"
	"crishim/registry/hosts"
)

// probeTimeout bounds asking a registry whether it lives, after a pull failed.
const probeTimeout = 5 * time.Second

// registryDown asks the registry's base (distribution-spec end-1): it is down when nothing can be connected to or the
// answer is 5xx. No credentials are sent and nothing that is received is used.
func registryDown(ctx context.Context, server string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	down, err := probe(ctx, server)
	// Docker tries http too where it may.
	if plain, ok := strings.CutPrefix(server, "https://"); ok && errors.Is(err, http.ErrSchemeMismatch) {
		down, _ = probe(ctx, "http://"+plain)
	}
	return down
}

func probe(ctx context.Context, server string) (down bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/v2/", nil)
	if err != nil {
		return false, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		// Whether the certificate is good is Docker's to judge; that one is shown means that the registry lives.
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		var opError *net.OpError
		var dnsError *net.DNSError
		dial := errors.As(err, &opError) && opError.Op == "dial"
		return dial || errors.As(err, &dnsError) || errors.Is(err, context.DeadlineExceeded), err
	}
	_ = resp.Body.Close()
	return resp.StatusCode >= http.StatusInternalServerError, nil
}

// registryRefusal asks the registry for the image of a failed pull: an error where it has none (ErrNotFound) or does not give
// it to these credentials (ErrUnauthenticated, ErrPermissionDenied), else nil. Credentials go where they would by hosts.toml:
// to a server with a good certificate, or on loopback.
func (s *Store) registryRefusal(ctx context.Context, named reference.Named, credentials registry.Credentials) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	config, err := hosts.Parse(nil, reference.Domain(named), "", false) // the registry alone
	if err != nil {
		return nil
	}
	version := ""
	switch named := named.(type) {
	case reference.Canonical:
		version = named.Digest().String()
	case reference.Tagged:
		version = named.Tag()
	}
	err = pullthrough.Ask(ctx, registry.Pull{
		Config: config, Repository: reference.Path(named), Credentials: credentials, TokenServers: s.options.TokenServers,
	}, version)
	if errors.Is(err, registry.ErrWithheld) { // Docker sent them
		return nil
	}
	if errdefs.IsNotFound(err) || errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
		return err
	}
	return nil // it has the image, or did not answer: Docker's error says more
}
