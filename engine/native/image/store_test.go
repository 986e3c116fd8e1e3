package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	testregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"crishim/engine"
)

// needRoot skips where layers cannot be made: owners, devices and trusted attributes are root's.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
}

// newStore is an empty store; change edits its options.
func newStore(t testing.TB, change func(*Options)) *Store {
	t.Helper()
	needRoot(t)
	return reopen(t, filepath.Join(t.TempDir(), "images"), change)
}

func reopen(t testing.TB, root string, change func(*Options)) *Store {
	t.Helper()
	options := Options{Root: root}
	if change != nil {
		change(&options)
	}
	s, err := Open(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// site is a registry on loopback that notes what it is asked for.
type site struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
}

// newSite wraps a registry's handler; wrap may be nil.
func newSite(t testing.TB, wrap func(http.Handler) http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	var handler http.Handler = testregistry.New(testregistry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		handler = wrap(handler)
	}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Clone(context.Background()))
		s.mu.Unlock()
		handler.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return s
}

func (s *site) host() string { return strings.TrimPrefix(s.URL, "http://") }

// count counts requests of a method whose path contains part.
func (s *site) count(method, part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if r.Method == method && strings.Contains(r.URL.Path, part) {
			n++
		}
	}
	return n
}

// push stores an image or index under path:tag and returns the full reference.
func (s *site) push(t testing.TB, ref string, what any) string {
	t.Helper()
	full := s.host() + "/" + ref
	parsed, err := name.ParseReference(full)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(parsed, what)
	case v1.ImageIndex:
		err = remote.WriteIndex(parsed, what)
	default:
		t.Fatalf("%T cannot be pushed", what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return full
}

// entry is one entry of a layer's archive.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1000, 0)}, content}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1000, 0)}, ""}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerOf is a gzip layer with the entries.
func layerOf(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	data := archive(t, entries...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// imageWith is an image of layers for this machine's platform.
func imageWith(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	platform := hostPlatform()
	config.OS, config.Architecture = platform.OS, platform.Architecture
	config.Config.Env = []string{"A=b"}
	config.Config.User = "1000:5"
	config.Config.Entrypoint = []string{"/app"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func pull(t testing.TB, s *Store, ref string) *engine.Image {
	t.Helper()
	img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// read is a file of an image's layer.
func read(t testing.TB, s *Store, id engine.ImageID, layer int, path string) string {
	t.Helper()
	dirs, err := s.LayerDirs(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dirs[layer], path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func hexOf(h v1.Hash, err error) string {
	if err != nil {
		panic(err)
	}
	return h.String()
}
