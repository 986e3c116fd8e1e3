package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// dockerProxy stands between the daemon and its Docker Engine, to break single requests or the connection as a whole.
type dockerProxy struct {
	t      *testing.T
	socket string
	engine *httputil.ReverseProxy
	server *http.Server

	mu    sync.Mutex
	hold  func(*http.Request) bool
	freed chan struct{}
	// late is until when events are kept back.
	late time.Time
}

// behindProxy is a node whose daemon reaches its engine through a proxy.
func behindProxy(t *testing.T) (*harness.Node, *dockerProxy) {
	t.Helper()
	harness.Require(t)
	docker := harness.StartDocker(t, harness.DockerOptions{})
	p := newDockerProxy(t, docker.Socket)
	n := &harness.Node{Docker: docker, Registry: harness.SharedRegistry(t), CNI: harness.NewCNI(t, harness.CNIOptions{})}
	n.Shim = harness.StartShim(t, docker, n.CNI, harness.ShimOptions{Settings: map[string]any{"docker": map[string]any{"endpoint": "unix://" + p.socket}}})
	n.Pull(t, harness.Busybox)
	warmUp(t, n)
	n.NoLeaks(t)
	return n, p
}

func newDockerProxy(t *testing.T, engine string) *dockerProxy {
	t.Helper()
	p := &dockerProxy{t: t, socket: filepath.Join(harness.WorkDir(t, "x"), "docker.sock")}
	p.engine = httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "docker"})
	p.engine.FlushInterval = -1
	p.engine.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", engine)
		},
		DisableCompression: true,
	}
	p.engine.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
	p.engine.ModifyResponse = func(r *http.Response) error {
		if strings.HasSuffix(r.Request.URL.Path, "/events") {
			r.Body = &lateBody{ReadCloser: r.Body, proxy: p}
		}
		return nil
	}
	p.Restore()
	t.Cleanup(func() {
		p.Release()
		p.Cut()
	})
	return p
}

func (p *dockerProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	hold, freed := p.hold, p.freed
	p.mu.Unlock()
	if hold != nil && hold(r) {
		select {
		case <-freed:
		case <-r.Context().Done():
			return
		}
	}
	p.engine.ServeHTTP(w, r)
}

// Hold lets matching requests hang until Release or their caller leaves.
func (p *dockerProxy) Hold(match func(*http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold, p.freed = match, make(chan struct{})
}

// Release lets them go on.
func (p *dockerProxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hold != nil {
		close(p.freed)
		p.hold = nil
	}
}

// Late keeps all events back until so long from now.
func (p *dockerProxy) Late(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = time.Now().Add(d)
}

// Cut ends every connection and refuses new ones, until Restore.
func (p *dockerProxy) Cut() { _ = p.server.Close() }

// Restore takes connections again.
func (p *dockerProxy) Restore() {
	p.t.Helper()
	listener, err := net.Listen("unix", p.socket)
	if err != nil {
		p.t.Fatalf("listening for the daemon: %v", err)
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	server := p.server
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			p.t.Errorf("proxy: %v", err)
		}
	}()
}

type lateBody struct {
	io.ReadCloser
	proxy *dockerProxy
}

func (b *lateBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.proxy.mu.Lock()
	late := b.proxy.late
	b.proxy.mu.Unlock()
	time.Sleep(time.Until(late))
	return n, err
}
