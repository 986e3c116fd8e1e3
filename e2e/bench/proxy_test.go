package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"crishim/e2e/harness"
)

// proxy stands between crishim and dockerd: it counts requests and keeps the bodies of creations. It is out of the way
// whenever time is measured.
type proxy struct {
	socket string

	mu     sync.Mutex
	counts map[string]int
	// bodies are the last creations of a pod ("podsandbox") and of a container ("container").
	bodies map[string]createBody
}

// createBody is the body of POST /containers/create.
type createBody map[string]any

func startProxy(t harness.T, backend string) *proxy {
	t.Helper()
	p := &proxy{socket: filepath.Join(harness.WorkDir(t, "x"), "docker.sock"), counts: map[string]int{}, bodies: map[string]createBody{}}
	listener, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatalf("listening for crishim: %v", err)
	}
	reverse := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", backend)
		}},
		FlushInterval: -1, // events
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		p.note(q)
		reverse.ServeHTTP(w, q)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return p
}

var (
	versionPart = regexp.MustCompile(`^/v[0-9.]+`)
	idPart      = regexp.MustCompile(`[0-9a-f]{64}|sha256:[0-9a-f]+`)
	createPath  = "POST /containers/create"
)

func (p *proxy) note(q *http.Request) {
	key := q.Method + " " + idPart.ReplaceAllString(versionPart.ReplaceAllString(q.URL.Path, ""), "ID")
	var body createBody
	if key == createPath {
		data, err := io.ReadAll(q.Body)
		if err == nil {
			err = json.Unmarshal(data, &body)
		}
		if err != nil {
			body = nil // dockerd will say so
		}
		q.Body = io.NopCloser(bytes.NewReader(data))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[key]++
	if labels, ok := body["Labels"].(map[string]any); ok {
		if kind, ok := labels["io.kubernetes.docker.type"].(string); ok {
			p.bodies[kind] = body
		}
	}
}

// take returns the requests since the last take as sorted "NUMBER × METHOD /path", but for pings.
func (p *proxy) take() (total int, requests []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, n := range p.counts {
		if key == "GET /_ping" || key == "HEAD /_ping" || key == "GET /events" {
			continue
		}
		total += n
		requests = append(requests, fmt.Sprintf("%d × %s", n, key))
	}
	clear(p.counts)
	slices.Sort(requests)
	return total, requests
}
