package imagestore

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"crishim/registry"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	dockerregistry "github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/client"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fakeDocker is a Docker Engine's image API that works, over HTTP: images with names, and pulls as a test wants them.
type fakeDocker struct {
	*httptest.Server
	root   string // DockerRootDir
	driver string

	mu     sync.Mutex
	images map[string]*fakeImage // by id
	calls  map[string]int        // by "METHOD what"
	users  []container.Summary
	auths  []dockerregistry.AuthConfig // of pulls
	// pull answers a pull of NAME:TAG or NAME@DIGEST; nil answers with an empty stream.
	pull func(w http.ResponseWriter, r *http.Request, ref string)
	// remove may answer a removal instead; it returns whether it did.
	remove func(w http.ResponseWriter, ref string) bool
}

type fakeImage struct {
	tags, digests []string
	user          string
	size          int64
	hidden        bool // not in lists: an intermediate image
	broken        bool // cannot be read: a blob is damaged
}

func newFakeDocker(t *testing.T) *fakeDocker {
	t.Helper()
	f := &fakeDocker{root: t.TempDir(), driver: "overlay2", images: map[string]*fakeImage{}, calls: map[string]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1.41/images/json", f.list)
	mux.HandleFunc("POST /v1.41/images/create", f.create)
	mux.HandleFunc("GET /v1.41/images/{rest...}", f.inspect)
	mux.HandleFunc("POST /v1.41/images/{rest...}", f.tag)
	mux.HandleFunc("DELETE /v1.41/images/{ref...}", f.delete)
	mux.HandleFunc("GET /v1.41/containers/json", f.listContainers)
	mux.HandleFunc("GET /v1.41/info", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"DockerRootDir": f.root, "Driver": f.driver})
	})
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeDocker) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.NewClientWithOpts(client.WithHost("tcp://"+strings.TrimPrefix(f.URL, "http://")), client.WithVersion("1.41"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func reply(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": text})
}

// put adds an image, id being a letter that is repeated, and returns its id.
func (f *fakeDocker) put(letter string, img fakeImage) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := fakeID(letter)
	f.images[id] = &img
	return id
}

func fakeID(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }

func (f *fakeDocker) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

// total counts all calls.
func (f *fakeDocker) total() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		n += c
	}
	return n
}

func (f *fakeDocker) called(call string) { f.calls[call]++ }

func (f *fakeDocker) list(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("list")
	out := []image.Summary{}
	for id, img := range f.images {
		if img.hidden {
			continue
		}
		s := image.Summary{ID: id, RepoTags: img.tags, RepoDigests: img.digests, Size: img.size}
		if len(s.RepoTags) == 0 {
			s.RepoTags = []string{"<none>:<none>"}
		}
		if len(s.RepoDigests) == 0 {
			s.RepoDigests = []string{"<none>@<none>"}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b image.Summary) int { return strings.Compare(a.ID, b.ID) })
	reply(w, out)
}

// listContainers has the containers of all images where it is asked for an image's.
func (f *fakeDocker) listContainers(w http.ResponseWriter, r *http.Request) {
	asked, err := filters.FromJSON(r.URL.Query().Get("filters"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	reply(w, slices.DeleteFunc(slices.Clone(f.users), func(c container.Summary) bool {
		return asked.Contains("volume") && !slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool { return asked.ExactMatch("volume", m.Name) })
	}))
}

// find works as Docker's: by id, name, or the start of an id however short. The caller holds f.mu.
func (f *fakeDocker) find(ref string) (string, *fakeImage) {
	for id, img := range f.images {
		if id == ref || slices.ContainsFunc(slices.Concat(img.tags, img.digests), func(have string) bool { return registry.FullName(have) == registry.FullName(ref) }) {
			return id, img
		}
	}
	short, _, _ := strings.Cut(strings.TrimPrefix(ref, "docker.io/library/"), ":")
	for id, img := range f.images {
		if short != "" && strings.HasPrefix(id, "sha256:"+short) {
			return id, img
		}
	}
	return "", nil
}

func (f *fakeDocker) inspect(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("inspect")
	ref := strings.TrimSuffix(r.PathValue("rest"), "/json")
	id, img := f.find(ref)
	if img == nil {
		refuse(w, http.StatusNotFound, "No such image: "+ref)
		return
	}
	if img.broken {
		refuse(w, http.StatusInternalServerError, "failed to read image config: unexpected end of JSON input")
		return
	}
	reply(w, image.InspectResponse{
		ID: id, RepoTags: img.tags, RepoDigests: img.digests, Size: img.size, Created: "2024-01-02T03:04:05Z",
		Config: &dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{User: img.user, Env: []string{"A=b"}, Cmd: []string{"/run"}, StopSignal: "SIGINT"}},
	})
}

func (f *fakeDocker) create(w http.ResponseWriter, r *http.Request) {
	ref, tag := r.URL.Query().Get("fromImage"), r.URL.Query().Get("tag")
	if strings.Contains(tag, ":") {
		ref += "@" + tag
	} else {
		ref += ":" + tag
	}
	var auth dockerregistry.AuthConfig
	if header := r.Header.Get(dockerregistry.AuthHeader); header != "" {
		data, err := base64.URLEncoding.DecodeString(header)
		if err != nil || json.Unmarshal(data, &auth) != nil {
			refuse(w, http.StatusBadRequest, "bad X-Registry-Auth")
			return
		}
	}
	f.mu.Lock()
	f.called("pull")
	f.auths = append(f.auths, auth)
	pull := f.pull
	f.mu.Unlock()
	if pull != nil {
		pull(w, r, ref)
	}
}

func (f *fakeDocker) tag(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.PathValue("rest") == "load" {
		f.called("load")
		_, _ = io.Copy(io.Discard, r.Body)
		f.images[fakeID("f")] = &fakeImage{tags: []string{"crishim.invalid/pause:1"}, size: 5}
		reply(w, map[string]string{"stream": "Loaded image: crishim.invalid/pause:1"})
		return
	}
	f.called("tag")
	ref := strings.TrimSuffix(r.PathValue("rest"), "/tag")
	_, img := f.find(ref)
	if img == nil {
		refuse(w, http.StatusNotFound, "No such image")
		return
	}
	name := fmt.Sprintf("%s:%s", r.URL.Query().Get("repo"), r.URL.Query().Get("tag"))
	for _, other := range f.images {
		other.tags = slices.DeleteFunc(other.tags, func(have string) bool { return registry.FullName(have) == registry.FullName(name) })
	}
	img.tags = append(img.tags, name)
	w.WriteHeader(http.StatusCreated)
}

func (f *fakeDocker) delete(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("remove")
	ref := r.PathValue("ref")
	if f.remove != nil && f.remove(w, ref) {
		return
	}
	id, img := f.find(ref)
	switch {
	case img == nil:
		refuse(w, http.StatusNotFound, "No such image")
		return
	case ref == id && len(img.tags) > 1 && r.URL.Query().Get("force") == "":
		refuse(w, http.StatusConflict, "image is referenced in multiple repositories")
		return
	case ref == id:
		delete(f.images, id)
	default:
		img.tags = slices.DeleteFunc(img.tags, func(have string) bool { return registry.FullName(have) == registry.FullName(ref) })
		name, _, _ := strings.Cut(ref, "@")
		if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
			name = name[:i]
		}
		img.digests = slices.DeleteFunc(img.digests, func(have string) bool { return strings.HasPrefix(have, name+"@") })
		if len(img.tags) == 0 {
			delete(f.images, id)
		}
	}
	reply(w, []map[string]string{{"Deleted": id}})
}
