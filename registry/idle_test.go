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
	pull := pullFrom(t, reg, reg.URL)
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

// pullFrom is a pull from a registry with TLS by way of an address.
func pullFrom(t *testing.T, reg *httptest.Server, address string) Pull {
	t.Helper()
	at, err := url.Parse(address + "/v2")
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AddCert(reg.Certificate())
	return Pull{Config: &hosts.Config{Registry: "reg.example", Endpoints: []hosts.Endpoint{{
		URL: at, Pull: true, Resolve: true, Server: true, TLS: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12},
	}}}, Repository: "app"}
}

// A connection over which nothing comes any more, nor its end, as a firewall leaves it that forgot it, is given up: of HTTP/2 each
// further request of the pull went there, and none was ever answered.
func TestADeadConnectionIsNotUsedAgain(t *testing.T) {
	reg := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("it speaks %s", r.Proto)
		}
		_, _ = io.WriteString(w, "some")
	}))
	reg.EnableHTTP2 = true
	reg.StartTLS()
	defer reg.Close()
	firewall, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = firewall.Close() }()
	forgotten := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			from, err := firewall.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp4", reg.Listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			var until <-chan struct{}
			if first {
				until = forgotten
			}
			t.Cleanup(func() { _, _ = from.Close(), to.Close() })
			go pass(to, from, until)
			go pass(from, to, until)
		}
	}()

	pull := pullFrom(t, reg, "https://"+firewall.Addr().String())
	endpoint := pull.Open(3 * time.Second)[0]
	defer endpoint.Close()
	get := func() error {
		resp, err := endpoint.Get(t.Context(), http.MethodGet, Target{Kind: "manifests", Reference: "v1"}, nil)
		if err == nil {
			Discard(resp)
		}
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	close(forgotten)
	for tries := 1; ; tries++ {
		err := get()
		if err == nil {
			return
		}
		if tries == 5 {
			t.Fatalf("still not answered: %v", err)
		}
	}
}

// pass copies what comes, and drops what comes after until.
func pass(to io.Writer, from io.Reader, until <-chan struct{}) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-until:
		default:
			_, _ = to.Write(buf[:n])
		}
	}
}
