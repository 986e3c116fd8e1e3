package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"crishim/registry/hosts"
)

// A pull that is given up leaves no connection open until the registry's end of it closes it: of HTTP/2 one stayed for each, with
// its goroutine.
func TestNoConnectionStaysAfterAPull(t *testing.T) {
	defer func(before time.Duration) { idleTimeout = before }(idleTimeout)
	idleTimeout = time.Millisecond
	const pulls = 10
	var open sync.WaitGroup
	reg := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("it speaks %s", r.Proto)
		}
		_, _ = io.WriteString(w, "some")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-r.Context().Done()
	}))
	reg.EnableHTTP2 = true
	reg.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Done()
		default:
		}
	}
	reg.StartTLS()
	defer reg.Close()
	at, err := url.Parse(reg.URL + "/v2")
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AddCert(reg.Certificate())
	pull := Pull{Config: &hosts.Config{Registry: "reg.example", Endpoints: []hosts.Endpoint{{
		URL: at, Pull: true, Resolve: true, Server: true, TLS: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12},
	}}}, Repository: "app"}
	for range pulls {
		endpoint := pull.Open(DefaultStall)[0]
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := endpoint.Get(ctx, http.MethodGet, Target{Kind: "manifests", Reference: "v1"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = resp.Body.Close()
		endpoint.Close()
	}
	open.Wait() // or this test never ends
}
