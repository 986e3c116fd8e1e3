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
	"strings"
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
	address, forget := behindFirewall(t, reg)
	pull := pullFrom(t, reg, "https://"+address)
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
	forget()
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

// behindFirewall is the address of a firewall before a registry, which passes no more on, nor its end, over connections that it was made
// to forget.
func behindFirewall(t *testing.T, reg *httptest.Server) (address string, forget func()) {
	t.Helper()
	firewall, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = firewall.Close() })
	var mu sync.Mutex
	forgotten := make(chan struct{})
	go func() {
		for {
			from, err := firewall.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp4", reg.Listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _, _ = from.Close(), to.Close() })
			mu.Lock()
			until := forgotten
			mu.Unlock()
			go pass(to, from, until)
			go pass(from, to, until)
		}
	}()
	return firewall.Addr().String(), func() {
		mu.Lock()
		defer mu.Unlock()
		close(forgotten)
		forgotten = make(chan struct{})
	}
}

// Where one connection is dead, others that wait to be used again mostly are, too: what broke off is asked for over a new one. The last
// endpoint's answer is waited for as long as the pull may take.
func TestConnectionsThatWaitAreNotUsedAfterADeadOne(t *testing.T) {
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "some")
		if strings.HasSuffix(r.URL.Path, "/endless") {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(func() {
		reg.CloseClientConnections()
		reg.Close()
	})
	address, forget := behindFirewall(t, reg)
	at, err := url.Parse("http://" + address + "/v2")
	if err != nil {
		t.Fatal(err)
	}
	pull := Pull{Config: &hosts.Config{Registry: "reg.example", Endpoints: []hosts.Endpoint{{URL: at, Pull: true, Resolve: true, Server: true, TLS: &tls.Config{MinVersion: tls.VersionTLS12}}}}, Repository: "app", Patience: time.Hour}
	endpoint := pull.Open(time.Second)[0]
	defer endpoint.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	get := func(tag string) io.ReadCloser {
		t.Helper()
		resp, err := endpoint.Get(ctx, http.MethodGet, Target{Kind: "manifests", Reference: tag}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Body
	}
	stuck := get("endless")
	if _, err := io.Copy(io.Discard, get("v1")); err != nil { // over another one, which waits then
		t.Fatal(err)
	}
	forget()
	body := NewStallReader(stuck, time.Second, func() { _ = stuck.Close() })
	if _, err := io.Copy(io.Discard, body); err == nil {
		t.Fatal("it came to its end")
	}
	endpoint.Break()
	_ = get("v2").Close()
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
