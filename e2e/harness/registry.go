package harness

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"runtime"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"crishim/e2e/testimage"
)

// Registry is a container registry on loopback, plain HTTP, which a Docker Engine accepts there.
type Registry struct {
	// Host is "127.0.0.1:PORT".
	Host string
	// Username and Password are what it wants; none where empty.
	Username, Password string

	mu        sync.Mutex
	intercept func(http.ResponseWriter, *http.Request) bool
	requests  []string
}

// NewRegistry starts an empty registry, with credentials unless the user name is empty.
func NewRegistry(t T, username, password string) *Registry {
	t.Helper()
	r := &Registry{Username: username, Password: password}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("starting a registry: %v", err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		intercept := r.intercept
		r.requests = append(r.requests, q.Method+" "+q.URL.Path)
		r.mu.Unlock()
		if intercept != nil && intercept(w, q) {
			return
		}
		w.Header().Set("Content-Type", "application/json") // of errors, without which newer engines do not read them
		user, word, _ := q.BasicAuth()
		if r.Username != "" && (user != r.Username || word != r.Password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		store.ServeHTTP(w, q)
	}))
	_ = server.Listener.Close() // httptest's own, on a port of its choice and maybe on IPv6
	server.Listener = listener
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	r.Host = listener.Addr().String()
	return r
}

// Ref is the full reference of a repository, tag or digest included, on this registry.
func (r *Registry) Ref(repository string) string { return r.Host + "/" + repository }

// Intercept sees every request before the registry does and answers it where it returns true; nil ends that.
func (r *Registry) Intercept(f func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// Requests are "METHOD /path" of all requests so far.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.requests...)
}

// Push stores an image under a repository with a tag and returns its manifest digest.
func (r *Registry) Push(t T, repository string, image v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.Ref(repository), name.Insecure)
	if err != nil {
		t.Fatalf("naming an image: %v", err)
	}
	var auth authn.Authenticator = authn.Anonymous
	if r.Username != "" {
		auth = &authn.Basic{Username: r.Username, Password: r.Password}
	}
	if err := remote.Write(ref, image, remote.WithAuth(auth)); err != nil {
		t.Fatalf("pushing %s: %v", ref, err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatalf("digest of %s: %v", ref, err)
	}
	return digest.String()
}

// Build makes an image of the busybox layer, further layers and a configuration.
func Build(t T, config v1.Config, extra ...*testimage.Tree) v1.Image {
	t.Helper()
	if config.Env == nil {
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	layers := []v1.Layer{busyboxLayer(t)}
	for _, tree := range extra {
		layers = append(layers, mustLayer(t, tree))
	}
	image, err := testimage.Image(runtime.GOARCH, config, layers...)
	if err != nil {
		t.Fatalf("building an image: %v", err)
	}
	return image
}

var baseLayer v1.Layer

// busyboxLayer is the root file system of all images: busybox and the test server in /bin.
func busyboxLayer(t T) v1.Layer {
	t.Helper()
	if baseLayer != nil {
		return baseLayer
	}
	tree, err := testimage.Busybox(BusyboxFile(t))
	if err != nil {
		t.Fatalf("building the busybox image: %v", err)
	}
	if err := tree.HostFile("bin/testserver", testServer(t), 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	baseLayer = mustLayer(t, tree)
	return baseLayer
}

func mustLayer(t T, tree *testimage.Tree) v1.Layer {
	t.Helper()
	layer, err := tree.Layer()
	if err != nil {
		t.Fatalf("building a layer: %v", err)
	}
	return layer
}

// Images of the shared registry, to be given to Node.Pull.
const (
	Busybox      = "busybox:latest"      // a shell; Cmd ["sh"]
	Web          = "web:latest"          // testserver http on port 80
	Entrypoint   = "entrypoint:latest"   // Entrypoint ["echo","from-entrypoint"], Cmd ["from-cmd"], WorkingDir /opt, Env IMAGE=yes
	SignalUSR1   = "stopsignal:latest"   // StopSignal SIGUSR1
	UserUID      = "user-uid:latest"     // User "1002"
	UserName     = "user-name:latest"    // User "www-data"
	UserUIDGroup = "user-uid-group:v1"   // User "1003:50000"
	UserInGroup  = "predefined-group:v1" // User "1000", whom /etc/group puts into 50000
	ThreeTags    = "tags:1"              // the same image as tags:2 and tags:3
	Small        = "small:latest"        // a layer of its own, that no other image shares
	Pinned       = "pinned:latest"       // as Small; the harness's configuration has it as pinned
	VolumeFiles  = "volume-files:latest" // /data/file, /data/sub/file for image volumes
	Pause        = "pause:test"          // testserver ignore-term
)

var sharedRegistry *Registry

// SharedRegistry is the registry with all the images above.
func SharedRegistry(t T) *Registry {
	t.Helper()
	if sharedRegistry == nil {
		session.run(t, func() { sharedRegistry = fillRegistry() })
	}
	return sharedRegistry
}

func fillRegistry() *Registry {
	r := NewRegistry(&session, "", "")
	for repository, config := range map[string]v1.Config{
		Busybox:      {Cmd: []string{"sh"}},
		Web:          {Cmd: []string{"/bin/testserver", "http", ":80"}},
		Entrypoint:   {Entrypoint: []string{"echo", "from-entrypoint"}, Cmd: []string{"from-cmd"}, WorkingDir: "/opt", Env: []string{"PATH=/bin", "IMAGE=yes"}},
		SignalUSR1:   {Cmd: []string{"sh"}, StopSignal: "SIGUSR1"},
		UserUID:      {Cmd: []string{"id"}, User: "1002"},
		UserName:     {Cmd: []string{"id"}, User: "www-data"},
		UserUIDGroup: {Cmd: []string{"id"}, User: "1003:50000"},
		UserInGroup:  {Cmd: []string{"id"}, User: "1000"},
		Pause:        {Cmd: []string{"/bin/testserver", "ignore-term"}},
	} {
		r.Push(&session, repository, Build(&session, config))
	}
	three := Build(&session, v1.Config{Cmd: []string{"sh"}, Labels: map[string]string{"image": "tags"}})
	for _, tag := range []string{"1", "2", "3"} {
		r.Push(&session, "tags:"+tag, three)
	}
	for repository, file := range map[string]string{Small: "small", Pinned: "pinned", VolumeFiles: "data/file"} {
		tree := &testimage.Tree{}
		tree.File(file, 0o644, []byte(repository))
		tree.File(path.Join(path.Dir(file), "sub", "file"), 0o644, []byte("in the sub-path"))
		image, err := testimage.Image(runtime.GOARCH, v1.Config{Cmd: []string{"/none"}}, mustLayer(&session, tree))
		if err != nil {
			session.Fatalf("building %s: %v", repository, err)
		}
		r.Push(&session, repository, image)
	}
	return r
}
