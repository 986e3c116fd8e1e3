package pullthrough

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	testregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"crishim/registry"
	"crishim/registry/hosts"
)

// site is an HTTP server that notes what reaches it.
type site struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
}

func newSite(t *testing.T, handler http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Clone(context.Background()))
		s.mu.Unlock()
		handler(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) host() string { return strings.TrimPrefix(s.URL, "http://") }

// seen are the requests so far.
func (s *site) seen() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// authorizations counts the requests that came with credentials.
func (s *site) authorizations() int {
	n := 0
	for _, r := range s.seen() {
		if r.Header.Get("Authorization") != "" {
			n++
		}
	}
	return n
}

// registrySite is a registry that holds one random image as team/app:v1.
func registrySite(t *testing.T, wrap func(http.Handler) http.HandlerFunc) (*site, v1.Image) {
	t.Helper()
	image, err := random.Image(4096, 2)
	if err != nil {
		t.Fatal(err)
	}
	return registryWith(t, image, wrap), image
}

func registryWith(t *testing.T, image v1.Image, wrap func(http.Handler) http.HandlerFunc) *site {
	t.Helper()
	handler := testregistry.New(testregistry.Logger(log.New(io.Discard, "", 0)))
	filling := httptest.NewServer(handler)
	defer filling.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(filling.URL, "http://") + "/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	if wrap == nil {
		return newSite(t, handler.ServeHTTP)
	}
	return newSite(t, wrap(handler))
}

func endpoint(t *testing.T, raw string, server bool) hosts.Endpoint {
	t.Helper()
	config, err := hosts.Parse([]byte(fmt.Sprintf("server = %q", raw)), "reg.example", t.TempDir(), !server)
	if err != nil {
		t.Fatal(err)
	}
	return config.Endpoints[0]
}

func open(t *testing.T, server *Server, pull registry.Pull) *Session {
	t.Helper()
	pull.Config.Registry = "reg.example"
	pull.Repository = "team/app"
	session, err := server.Open(t.Context(), pull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	return session
}

// pullAll reads an image through a session as a client would.
func pullAll(session *Session) (v1.Hash, error) {
	ref, err := name.ParseReference(session.Name()+":v1", name.Insecure)
	if err != nil {
		return v1.Hash{}, err
	}
	image, err := remote.Image(ref, remote.WithRetryPredicate(func(error) bool { return false }))
	if err != nil {
		return v1.Hash{}, err
	}
	layers, err := image.Layers()
	if err != nil {
		return v1.Hash{}, err
	}
	for _, layer := range layers {
		blob, err := layer.Compressed()
		if err != nil {
			return v1.Hash{}, err
		}
		_, err = io.Copy(io.Discard, blob)
		_ = blob.Close()
		if err != nil {
			return v1.Hash{}, err
		}
	}
	return image.Digest()
}

func TestEndpointsAreTriedInOrder(t *testing.T) {
	image, err := random.Image(4096, 2)
	if err != nil {
		t.Fatal(err)
	}
	want, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deadURL := "http://" + dead.Addr().String()
	_ = dead.Close()
	empty := func(t *testing.T) *site { return newSite(t, http.NotFound) }
	failing := func(t *testing.T) *site {
		return newSite(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	}
	holding := func(t *testing.T) *site { return registryWith(t, image, nil) }
	tests := []struct {
		name          string
		first, second func(*testing.T) *site
		server        func(*testing.T) *site
		served        string
	}{
		{"the first mirror has it", holding, holding, holding, "first"},
		{"the first mirror lacks it", empty, holding, holding, "second"},
		{"the first mirror is broken", failing, holding, holding, "second"},
		{"the first mirror is dead", nil, holding, holding, "second"},
		{"no mirror has it", empty, failing, holding, "server"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sites := map[string]*site{}
			config := &hosts.Config{}
			for _, s := range []struct {
				name string
				make func(*testing.T) *site
			}{{"first", tt.first}, {"second", tt.second}, {"server", tt.server}} {
				raw := deadURL
				if s.make != nil {
					sites[s.name] = s.make(t)
					raw = sites[s.name].URL
				}
				config.Endpoints = append(config.Endpoints, endpoint(t, raw, s.name == "server"))
			}
			session := open(t, &Server{}, registry.Pull{Config: config})
			got, err := pullAll(session)
			if err != nil || got != want {
				t.Fatalf("pulled %v, %v; want %v", got, err, want)
			}
			if err := session.Err(); err != nil {
				t.Fatalf("the session reports %v", err)
			}
			for _, r := range sites[tt.served].seen() {
				if r.URL.Query().Get("ns") != "reg.example" {
					t.Fatalf("%s: %s; who is not the registry itself is told which it is", tt.served, r.URL)
				}
			}
			if len(sites[tt.served].seen()) < 3 {
				t.Fatalf("%s served %d requests only", tt.served, len(sites[tt.served].seen()))
			}
		})
	}
}

func TestCapabilitiesChooseWhoIsAsked(t *testing.T) {
	reg, image := registrySite(t, nil)
	content := registryWith(t, image, nil)
	mirror := endpoint(t, content.URL, false)
	mirror.Resolve = false
	session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{mirror, endpoint(t, reg.URL, true)}}})
	if _, err := pullAll(session); err != nil {
		t.Fatal(err)
	}
	for _, r := range content.seen() {
		if strings.HasSuffix(r.URL.Path, "/manifests/v1") {
			t.Fatal("a mirror that cannot resolve was asked for a tag")
		}
	}
	if n := len(content.seen()); n < 2 {
		t.Fatalf("the mirror got %d requests, want every blob", n)
	}
}

func TestTheRegistrysWordIsTheAnswer(t *testing.T) {
	statuses := map[int]func(error) bool{
		http.StatusNotFound:           errdefs.IsNotFound,
		http.StatusForbidden:          errdefs.IsPermissionDenied,
		http.StatusUnauthorized:       errdefs.IsUnauthorized,
		http.StatusServiceUnavailable: errdefs.IsUnavailable,
	}
	for status, is := range statuses {
		t.Run(http.StatusText(status), func(t *testing.T) {
			mirror := newSite(t, http.NotFound)
			server := newSite(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
			session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, mirror.URL, false), endpoint(t, server.URL, true)}}})
			if _, err := pullAll(session); err == nil {
				t.Fatal("pulled from nowhere")
			}
			if err := session.Err(); !is(err) || !strings.Contains(err.Error(), server.host()) {
				t.Fatalf("the session reports %v", err)
			}
		})
	}
}

func TestOnlyTheSessionsManifestsAndBlobsAreServed(t *testing.T) {
	upstream := newSite(t, http.NotFound)
	server := &Server{}
	session := open(t, server, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, upstream.URL, true)}}})
	addr, path, _ := strings.Cut(session.Name(), "/")
	secret := strings.TrimPrefix(path, helperPath+"/")
	wrong := strings.Repeat("0", 32)
	tests := []struct {
		name, method, path string
		want               int
	}{
		{"the version check", "GET", "/v2/", 200},
		{"a wrong secret", "GET", "/v2/crishim-pull/" + wrong + "/manifests/v1", 404},
		{"no secret", "GET", "/v2/crishim-pull/", 404},
		{"another repository", "GET", "/v2/library/busybox/manifests/v1", 404},
		{"the catalogue", "GET", "/v2/_catalog", 404},
		{"the secret cut short", "GET", "/v2/crishim-pull/" + secret[:31] + "/manifests/v1", 404},
		{"a digest that is none", "GET", "/v2/" + path + "/blobs/sha256:zz", 400},
		{"a digest of another algorithm", "GET", "/v2/" + path + "/blobs/md5:0123456789abcdef0123456789abcdef", 400},
		{"a digest with a path behind it", "GET", "/v2/" + path + "/blobs/sha256:" + strings.Repeat("a", 64) + "/x", 400},
		{"a blob by tag", "GET", "/v2/" + path + "/blobs/v1", 400},
		{"the way up", "GET", "/v2/" + path + "/manifests/%2e%2e", 400},
		{"an encoded slash", "GET", "/v2/" + path + "/manifests/a%2fb", 400},
		{"tags", "GET", "/v2/" + path + "/tags/list", 400},
		{"an upload", "POST", "/v2/" + path + "/blobs/uploads/", 405},
		{"a deletion", "DELETE", "/v2/" + path + "/manifests/v1", 405},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://"+addr+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			registry.Discard(resp)
			if resp.StatusCode != tt.want {
				t.Fatalf("status %d, want %d", resp.StatusCode, tt.want)
			}
		})
	}
	if n := len(upstream.seen()); n != 0 {
		t.Fatalf("%d of these reached the registry", n)
	}
	session.Close()
	if conn, err := net.Dial("tcp", addr); err == nil {
		_ = conn.Close()
		t.Fatal("something still listens after the last session")
	}
}

func TestHelperNamesAreRecognised(t *testing.T) {
	secret := strings.Repeat("a", 32)
	for ref, want := range map[string]bool{
		"127.0.0.1:4000/crishim-pull/" + secret:                                        true,
		"127.0.0.1:4000/crishim-pull/" + secret + ":v1":                                true,
		"127.0.0.1:4000/crishim-pull/" + secret + "@sha256:" + strings.Repeat("b", 64): true,
		"127.0.0.1:4000/crishim-pull/short:v1":                                         false,
		"127.0.0.1:4000/team/app:v1":                                                   false,
		"example.org/crishim-pull/" + secret:                                           false,
		"example.org/127.0.0.1/crishim-pull/" + secret:                                 false,
		"busybox":       false,
		"<none>:<none>": false,
		"127.0.0.1:4000/crishim-pull/" + secret + "/more:v1": false,
	} {
		if got := IsHelper(ref); got != want {
			t.Errorf("IsHelper(%s) = %v", ref, got)
		}
	}
}

// challenged guards a registry with tokens of a realm.
func challenged(realm string) func(http.Handler) http.HandlerFunc {
	return func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer good" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="reg",scope="repository:team/app:pull"`, realm))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
}

func TestTokenIsGotWithTheRegistrysCredentials(t *testing.T) {
	tests := []struct {
		name        string
		credentials registry.Credentials
		check       func(*http.Request) bool
	}{
		{"user and password", registry.Credentials{Username: "u", Password: "p"}, func(r *http.Request) bool {
			user, password, ok := r.BasicAuth()
			return ok && user == "u" && password == "p" && r.Method == http.MethodGet && r.URL.Query().Get("scope") == "repository:team/app:pull"
		}},
		{"an identity token", registry.Credentials{Username: "<token>", IdentityToken: "refresh"}, func(r *http.Request) bool {
			return r.Method == http.MethodPost && r.PostFormValue("refresh_token") == "refresh" && r.PostFormValue("service") == "reg"
		}},
		{"nobody", registry.Credentials{}, func(r *http.Request) bool { return r.Header.Get("Authorization") == "" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			var reg *site
			wrap := func(next http.Handler) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/token" {
						asked++
						if !tt.check(r) {
							w.WriteHeader(http.StatusForbidden)
							return
						}
						_ = json.NewEncoder(w).Encode(map[string]string{"access_token": "good"})
						return
					}
					challenged(reg.URL+"/token")(next)(w, r)
				}
			}
			reg, _ = registrySite(t, wrap)
			session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, reg.URL, true)}}, Credentials: tt.credentials})
			if _, err := pullAll(session); err != nil {
				t.Fatal(err)
			}
			if asked != 1 {
				t.Fatalf("%d tokens were got, want 1 for the whole pull", asked)
			}
		})
	}
	t.Run("a registry token is used as it is", func(t *testing.T) {
		reg, _ := registrySite(t, challenged("http://127.0.0.1:1/none"))
		session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, reg.URL, true)}}, Credentials: registry.Credentials{RegistryToken: "good"}})
		if _, err := pullAll(session); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("basic", func(t *testing.T) {
		reg, _ := registrySite(t, func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
					w.Header().Set("WWW-Authenticate", `Basic realm="reg"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				next.ServeHTTP(w, r)
			}
		})
		for password, ok := range map[string]bool{"p": true, "wrong": false} {
			session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, reg.URL, true)}}, Credentials: registry.Credentials{Username: "u", Password: password}})
			if _, err := pullAll(session); (err == nil) != ok {
				t.Fatalf("password %s: %v", password, err)
			}
			if err := session.Err(); !ok && (!errdefs.IsUnauthorized(err) || strings.Contains(err.Error(), "wrong")) {
				t.Fatalf("the session reports %v", err)
			}
		}
	})
}

// Docker is told that it is refused: anything else it would try again.
func TestARefusedRedirectIsNotTriedAgain(t *testing.T) {
	reg := httptest.NewTLSServer(http.RedirectHandler("http://127.0.0.1:1/", http.StatusTemporaryRedirect))
	defer reg.Close()
	server := endpoint(t, reg.URL, true)
	server.TLS.InsecureSkipVerify = true
	session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{server}}})
	_, err := pullAll(session)
	var answer *transport.Error
	if !errors.As(err, &answer) || answer.StatusCode != http.StatusForbidden || !errdefs.IsFailedPrecondition(session.Err()) {
		t.Errorf("Docker is told %v, and the pull fails by %v", err, session.Err())
	}
}

// Catalogue S32: whatever the registry names as realm, redirect or mirror, its credentials go nowhere else.
func TestS32CredentialsStayWithTheirHost(t *testing.T) {
	secret := registry.Credentials{Username: "canary", Password: "canary", IdentityToken: ""}
	sink := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "good"})
	})
	t.Run("a realm on another host", func(t *testing.T) {
		reg, _ := registrySite(t, challenged(sink.URL+"/token"))
		session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, reg.URL, true)}}, Credentials: secret})
		if _, err := pullAll(session); err != nil {
			t.Fatalf("an anonymous token is still worth a try: %v", err)
		}
	})
	t.Run("a mirror", func(t *testing.T) {
		mirror, image := registrySite(t, challenged(sink.URL+"/token"))
		reg := registryWith(t, image, nil)
		session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, mirror.URL, false), endpoint(t, reg.URL, true)}}, Credentials: secret})
		if _, err := pullAll(session); err != nil {
			t.Fatal(err)
		}
		for _, r := range mirror.seen() {
			if _, _, ok := r.BasicAuth(); ok {
				t.Fatal("the mirror got the registry's credentials")
			}
		}
	})
	t.Run("a redirect", func(t *testing.T) {
		storage, image := registrySite(t, nil)
		reg := registryWith(t, image, func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if _, _, ok := r.BasicAuth(); !ok {
					w.Header().Set("WWW-Authenticate", "Basic realm=reg")
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				if strings.Contains(r.URL.Path, "/blobs/") {
					http.Redirect(w, r, storage.URL+r.URL.Path+"?signature=canary", http.StatusTemporaryRedirect)
					return
				}
				next.ServeHTTP(w, r)
			}
		})
		server := endpoint(t, reg.URL, true)
		server.Header.Set("X-Key", "canary")
		session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{server}}, Credentials: secret})
		if _, err := pullAll(session); err != nil {
			t.Fatal(err)
		}
		if len(storage.seen()) < 2 || storage.authorizations() != 0 {
			t.Fatalf("storage got %d requests, %d with credentials", len(storage.seen()), storage.authorizations())
		}
		for _, r := range storage.seen() {
			if r.Header.Get("X-Key") != "" {
				t.Fatal("storage got the endpoint's header")
			}
		}
		storage.Close()
		if _, err := pullAll(session); err == nil || strings.Contains(fmt.Sprint(err, session.Err()), "canary") {
			t.Fatalf("the messages show a secret: %v, %v", err, session.Err())
		}
	})
	t.Run("a redirecting token server", func(t *testing.T) {
		var reg *site
		reg, _ = registrySite(t, func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/token" {
					http.Redirect(w, r, sink.URL, http.StatusTemporaryRedirect)
					return
				}
				challenged(reg.URL+"/token")(next)(w, r)
			}
		})
		session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, reg.URL, true)}}, Credentials: secret})
		if _, err := pullAll(session); err == nil {
			t.Fatal("pulled")
		}
	})
	if n := sink.authorizations(); n != 0 {
		t.Fatalf("%d requests with credentials reached the sink", n)
	}
	for _, r := range sink.seen() {
		if strings.Contains(r.URL.String(), "canary") {
			t.Fatalf("the sink saw %s", r.URL)
		}
	}
}

// Rows: S32 (part)
func TestMirrorGetsTheNodesCredentialsForItself(t *testing.T) {
	mirror, image := registrySite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if user, _, _ := r.BasicAuth(); user != "node" {
				w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	reg := registryWith(t, image, nil)
	var asked []string
	session := open(t, &Server{}, registry.Pull{
		Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, mirror.URL, false), endpoint(t, reg.URL, true)}},
		MirrorCredentials: func(_ context.Context, host, repository string) (registry.Credentials, error) {
			asked = append(asked, host+"/"+repository)
			return registry.Credentials{Username: "node", Password: "x"}, nil
		},
	})
	if _, err := pullAll(session); err != nil {
		t.Fatal(err)
	}
	if len(reg.seen()) != 0 || !slices.Equal(slices.Compact(asked), []string{mirror.host() + "/team/app"}) {
		t.Fatalf("the server got %d requests, credentials were asked for %v", len(reg.seen()), asked)
	}
}

// A mirror that stalls or breaks off inside a blob is left for the next one, which goes on where it ended.
func TestBrokenBlobGoesOnElsewhere(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(content))
	for _, fault := range []string{"stalls", "breaks off"} {
		t.Run(fault, func(t *testing.T) {
			mirror := newSite(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				_, _ = w.Write(content[:len(content)/2])
				w.(http.Flusher).Flush()
				if fault == "stalls" {
					<-r.Context().Done()
				}
				panic(http.ErrAbortHandler)
			})
			reg := newSite(t, func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
			})
			session := open(t, &Server{StallTimeout: 2 * time.Second}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, mirror.URL, false), endpoint(t, reg.URL, true)}}})
			addr, path, _ := strings.Cut(session.Name(), "/")
			blob := "http://" + addr + "/v2/" + path + "/blobs/" + digest
			resp, err := http.Get(blob)
			if err != nil {
				t.Fatal(err)
			}
			head, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err == nil {
				t.Fatal("a broken answer ended as a whole one")
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, blob, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(head)))
			if resp, err = http.DefaultClient.Do(req); err != nil {
				t.Fatal(err)
			}
			tail, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusPartialContent || !bytes.Equal(append(head, tail...), content) {
				t.Fatalf("status %d, %v, %d+%d bytes of %d", resp.StatusCode, err, len(head), len(tail), len(content))
			}
		})
	}
}

// A mirror that has a blob damaged does not fail each pull: what is small is passed over, and of what is large Docker gets no end, which
// it asks for again, elsewhere. Docker begins a layer anew that was right in part only.
func TestADamagedBlobOfAMirrorIsGotElsewhere(t *testing.T) {
	for name, size := range map[string]int{"small": 1000, "large": 3_000_000} {
		t.Run(name, func(t *testing.T) {
			content := bytes.Repeat([]byte("0123456789"), size/10)
			damaged := slices.Clone(content)
			damaged[size/2] = 'x'
			serving := func(content []byte) *site {
				return newSite(t, func(w http.ResponseWriter, r *http.Request) {
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
				})
			}
			mirror, reg := serving(damaged), serving(content)
			session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, mirror.URL, false), endpoint(t, reg.URL, true)}}})
			addr, path, _ := strings.Cut(session.Name(), "/")
			blob := fmt.Sprintf("http://%s/v2/%s/blobs/sha256:%x", addr, path, sha256.Sum256(content))
			get := func() ([]byte, error) {
				resp, err := http.Get(blob)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = resp.Body.Close() }()
				return io.ReadAll(resp.Body)
			}
			if got, err := get(); err == nil && !bytes.Equal(got, content) {
				t.Error("a damaged answer ended as a whole one")
			} else if err != nil && name == "small" {
				t.Error(err)
			} else if err != nil && !errdefs.IsDataLoss(session.Err()) {
				t.Errorf("the session says %v", session.Err())
			}
			if got, err := get(); err != nil || !bytes.Equal(got, content) {
				t.Errorf("asked again: %d bytes, %v", len(got), err)
			}
			if session.Err() != nil {
				t.Error(session.Err())
			}
		})
	}
}

func TestMirrorWithAnotherManifestIsPassedOver(t *testing.T) {
	reg, image := registrySite(t, nil)
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for fault, body := range map[string]string{"other bytes": "{}", "endless": strings.Repeat("x", registry.MaxManifest+2)} {
		t.Run(fault, func(t *testing.T) {
			mirror := newSite(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
			session := open(t, &Server{}, registry.Pull{Config: &hosts.Config{Endpoints: []hosts.Endpoint{endpoint(t, mirror.URL, false), endpoint(t, reg.URL, true)}}})
			addr, path, _ := strings.Cut(session.Name(), "/")
			resp, err := http.Get("http://" + addr + "/v2/" + path + "/manifests/" + digest.String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			data, err := io.ReadAll(resp.Body)
			if want, _ := image.RawManifest(); err != nil || !bytes.Equal(data, want) {
				t.Fatalf("got %.60s (%v), want the registry's", data, err)
			}
		})
	}
}

func TestCAOfTheFileIsTrustedAndOthersAreNot(t *testing.T) {
	reg, _ := registrySite(t, nil)
	tlsSite := httptest.NewUnstartedServer(reg.Config.Handler)
	tlsSite.Config.ErrorLog = log.New(io.Discard, "", 0)
	tlsSite.StartTLS()
	t.Cleanup(tlsSite.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tlsSite.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o644); err != nil {
		t.Fatal(err)
	}
	for file, ok := range map[string]bool{"ca = \"ca.crt\"": true, "skip_verify = true": true, "": false} {
		config, err := hosts.Parse([]byte(fmt.Sprintf("server = %q\n%s", tlsSite.URL, file)), "reg.example", dir, false)
		if err != nil {
			t.Fatal(err)
		}
		session := open(t, &Server{}, registry.Pull{Config: config})
		if _, err := pullAll(session); (err == nil) != ok {
			t.Errorf("%q: %v", file, err)
		}
	}
}
