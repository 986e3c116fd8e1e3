package image

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine"
	"crishim/registry"
)

// guarded lets in who has the password, by basic credentials.
func guarded(password string) func(http.Handler) http.HandlerFunc {
	return func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if _, got, _ := r.BasicAuth(); got != password && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
				w.Header().Set("WWW-Authenticate", `Basic realm="reg"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
}

// The registry is asked by each puller's own credentials, whatever is here already; and no secret is written anywhere.
//
// Rows: S33 (part), S40 (part)
func TestS40CredentialsAreAskedForAtEachPull(t *testing.T) {
	const canary = "canary-of-a-password"
	locked := false
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		guard := guarded(canary)(next)
		return func(w http.ResponseWriter, r *http.Request) {
			if locked {
				guard(w, r)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	ref := reg.push(t, "private:v1", imageWith(t, layerOf(t, file("a", "1"))))
	locked = true
	s := newStore(t, nil)
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, Auth: &engine.Auth{Username: "u", Password: canary}}); err != nil {
		t.Fatal(err)
	}
	for _, auth := range []*engine.Auth{nil, {Username: "u", Password: canary + "-wrong"}} {
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, Auth: auth})
		if !errdefs.IsUnauthorized(err) || strings.Contains(err.Error(), canary) {
			t.Errorf("%v", err)
		}
	}
	files, _ := left(t, s)
	for _, path := range files {
		if data, err := os.ReadFile(path); err != nil || strings.Contains(string(data), canary) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Credentials go to their registry alone: not to where it redirects.
//
// Rows: S32 (part)
func TestS32CredentialsGoNowhereElse(t *testing.T) {
	storage := newSite(t, nil)
	image := imageWith(t, layerOf(t, file("a", "1")))
	storage.push(t, "app:v1", image)
	locked := false
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if locked && strings.Contains(r.URL.Path, "/blobs/") {
				if _, _, ok := r.BasicAuth(); ok {
					http.Redirect(w, r, storage.URL+r.URL.Path, http.StatusTemporaryRedirect)
					return
				}
			}
			if locked {
				guarded("secret")(next)(w, r)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	ref := reg.push(t, "app:v1", image)
	locked = true
	s := newStore(t, nil)
	before := len(storage.requests)
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, Auth: &engine.Auth{Username: "u", Password: "secret"}}); err != nil {
		t.Fatal(err)
	}
	if len(storage.requests) == before {
		t.Fatal("nothing was redirected")
	}
	for _, r := range storage.requests {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("the storage got credentials for %s", r.URL.Path)
		}
	}
}

// A registry that names a token server on another domain, and other places for a layer, gets neither the credentials.
//
// Rows: S32
func TestS32CredentialsGoToNobodyWhomTheRegistryNames(t *testing.T) {
	const canary = "canary-of-a-password"
	sink := newSite(t, func(http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"token":"anonymous"}`)) }
	})
	elsewhere := strings.Replace(sink.URL, "127.0.0.1", "localhost", 1)
	locked := false
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if locked && r.Header.Get("Authorization") != "Bearer anonymous" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, elsewhere))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	img := imageWith(t, layerOf(t, file("a", "1")))
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	m = m.DeepCopy()
	m.Layers[0].URLs = []string{elsewhere + "/layer"}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	ref := reg.push(t, "app:v1", &forged{img, config, data})
	locked = true
	for name, auth := range map[string]*engine.Auth{
		"a password": {Username: "u", Password: canary}, "an identity token": {IdentityToken: canary},
	} {
		if _, err := newStore(t, nil).PullImage(t.Context(), &engine.PullSpec{Ref: ref, Auth: auth}); err != nil { // it lets anybody in
			t.Errorf("with %s: %v", name, err)
		}
	}
	if n := sink.count(http.MethodGet, "/token"); n == 0 {
		t.Error("the token server was not asked")
	}
	for _, r := range slices.Concat(sink.requests, reg.requests) {
		if user, password, _ := r.BasicAuth(); user != "" || password != "" || strings.Contains(fmt.Sprint(r.URL, r.Header), canary) {
			t.Errorf("%s%s got credentials", r.Host, r.URL.Path)
		}
		if r.Host != reg.host() && r.Method == http.MethodPost {
			t.Errorf("%s%s was sent something", r.Host, r.URL.Path)
		}
	}
	if n := sink.count(http.MethodGet, "/layer"); n != 0 {
		t.Errorf("the layer was looked for %d times where the manifest says", n)
	}
}

// The registry speaks https, its storage does not. A redirect that is refused is refused for good.
func TestBlobsAreRedirectedToStorageWithoutTLS(t *testing.T) {
	storage := newSite(t, nil)
	storage.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	own, blobs := false, 0
	reg := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			storage.Config.Handler.ServeHTTP(w, r)
			return
		}
		blobs++
		to := storage.URL
		if own {
			to = "http://" + r.Host
		}
		http.Redirect(w, r, to+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer reg.Close()
	host := strings.TrimPrefix(reg.URL, "https://")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reg.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, host, "ca.crt"), certificate, 0o644); err != nil {
		t.Fatal(err)
	}
	pull(t, newStore(t, func(o *Options) { o.RegistryConfigDirs = []string{dir} }), host+"/app:v1")
	own, blobs = true, 0
	s := newStore(t, func(o *Options) { o.RegistryConfigDirs = []string{dir} })
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: host + "/app:v1"}); !errdefs.IsFailedPrecondition(err) || errdefs.IsUnavailable(err) || blobs != 1 {
		t.Errorf("after %d requests: %v", blobs, err)
	}
}

// Rows: S41 (part)
func TestS41EndlessRegistriesAreLeft(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"redirects": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"?"+r.URL.RawQuery+"x", http.StatusTemporaryRedirect)
		},
		"challenges": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"a body": func(w http.ResponseWriter, _ *http.Request) {
			for range 1 << 20 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		},
		"headers": func(w http.ResponseWriter, _ *http.Request) {
			for i := range 3000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newSite(t, func(http.Handler) http.HandlerFunc { return handler })
			s := newStore(t, nil)
			if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: reg.host() + "/app:v1", Auth: &engine.Auth{Username: "u", Password: "p"}}); err == nil {
				t.Fatal("pulled")
			}
			reg.mu.Lock()
			defer reg.mu.Unlock()
			if n := len(reg.requests); n > 20 {
				t.Errorf("%d requests were sent", n)
			}
		})
	}
}

// Rows: R33 (part)
func TestR33MirrorsAreTriedInOrder(t *testing.T) {
	image := imageWith(t, layerOf(t, file("a", "1")))
	broken := newSite(t, func(http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	})
	mirror := newSite(t, nil)
	mirror.push(t, "app:v1", image)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "reg.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.%q]\n[host.%q]\n", broken.URL, mirror.URL)
	if err := os.WriteFile(filepath.Join(dir, "reg.example", "hosts.toml"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, func(o *Options) { o.RegistryConfigDirs = []string{dir} })
	got := pull(t, s, "reg.example/app:v1")
	if !slices.Equal(got.RepoTags, []string{"reg.example/app:v1"}) || broken.count(http.MethodGet, "/manifests/") != 1 {
		t.Errorf("%v, the first mirror was asked %d times", got.RepoTags, broken.count(http.MethodGet, "/manifests/"))
	}
}

// What a mirror that is down costs, until a connection to it is given up, an image costs once, and not each of its blobs.
func TestAMirrorThatIsDownIsAskedOnce(t *testing.T) {
	down := newSite(t, func(http.Handler) http.HandlerFunc {
		return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	})
	mirror := newSite(t, nil)
	mirror.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("b", "2")), layerOf(t, file("c", "3"))))
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "reg.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := fmt.Sprintf("server = %q\n[host.%q]\n", mirror.URL, down.URL)
	if err := os.WriteFile(filepath.Join(dir, "reg.example", "hosts.toml"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, func(o *Options) { o.RegistryConfigDirs = []string{dir} })
	for pulls := 1; pulls <= 2; pulls++ { // the next one asks it again
		pull(t, s, "reg.example/app:v1")
		if n := down.count(http.MethodGet, "/v2/") + down.count(http.MethodHead, "/v2/"); n != pulls {
			t.Errorf("after %d pulls it was asked %d times", pulls, n)
		}
	}
}

// Registries limit how often manifests are got, as Docker Hub does, and let ask whether they are others by now: a pod whose image is
// always pulled would have its turn used up by its restarts.
func TestAManifestThatIsHereIsNotGotAgain(t *testing.T) {
	var deaf atomic.Bool
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if deaf.Load() && r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	first, second := imageWith(t, layerOf(t, file("a", "1"))), imageWith(t, layerOf(t, file("a", "2")))
	ref := reg.push(t, "app:v1", indexOf(t, first))
	s := newStore(t, nil)
	expect := func(ref string, want v1.Image, more int) {
		t.Helper()
		before := reg.count(http.MethodGet, "/manifests/")
		if got := pull(t, s, ref); string(got.ID) != hexOf(want.ConfigName()) {
			t.Errorf("got %s", got.ID)
		}
		if n := reg.count(http.MethodGet, "/manifests/") - before; n != more {
			t.Errorf("%d manifests were got, not %d", n, more)
		}
	}
	expect(ref, first, 2)
	expect(ref, first, 0)
	expect(pull(t, s, ref).RepoDigests[0], first, 0)
	reg.push(t, "app:v1", indexOf(t, second))
	expect(ref, second, 2)
	expect(ref, second, 0)
	deaf.Store(true)
	expect(ref, second, 1) // what an index that was got links to is here
	if err := s.RemoveImage(t.Context(), pull(t, s, ref).ID); err != nil {
		t.Fatal(err)
	}
	expect(ref, second, 2)
	deaf.Store(false)
	// Who may pull it by this name may not by another.
	expect(reg.push(t, "other:v1", indexOf(t, second)), second, 2)
}

func TestImageForThisPlatformIsChosen(t *testing.T) {
	reg := newSite(t, nil)
	want := imageWith(t, layerOf(t, file("a", "1")))
	ref := reg.push(t, "multi:v1", indexOf(t, want))
	s := newStore(t, nil)
	got := pull(t, s, ref)
	if string(got.ID) != hexOf(want.ConfigName()) {
		t.Fatalf("%s", got.ID)
	}
	foreign := newStore(t, func(o *Options) { o.Platform.OS, o.Platform.Architecture = "linux", "riscv64" })
	if _, err := foreign.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "s390x") {
		t.Fatal(err)
	}
}

func TestTheBestPlatformIsChosen(t *testing.T) {
	for _, test := range []struct {
		want, offered string
		best          int // -1 for none
	}{
		{"amd64", "386,amd64", 1},
		{"amd64", "amd64,386", 0},
		{"amd64", "arm/v7,386", 1},
		{"amd64", "amd64/v3,386", 1},
		{"amd64", "unsaid,386", 1},
		{"amd64", "s390x,unsaid", 1},
		{"386", "amd64", -1},
		{"arm64", "arm/v6,arm/v7,arm/v5", 1},
		{"arm64", "arm", 0},
		{"arm64", "arm/v7,arm/v8", 1},
		{"arm64", "arm/v8,arm64/v8", 1},
		{"arm64", "arm64,arm/v8", 0},
		{"arm64", "386,amd64", -1},
		{"arm/v7", "arm/v5,arm/v6,arm/v8,arm64", 1},
		{"arm/v7", "arm64", -1},
	} {
		index := &v1.IndexManifest{}
		for _, name := range strings.Split(test.offered, ",") {
			architecture, variant, _ := strings.Cut(name, "/")
			m := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%064x", len(index.Manifests))}, Size: 1}
			if name != "unsaid" {
				m.Platform = &v1.Platform{OS: "linux", Architecture: architecture, Variant: variant}
			}
			index.Manifests = append(index.Manifests, m)
		}
		architecture, variant, _ := strings.Cut(test.want, "/")
		got, err := (&document{index: index}).choose(&ocispec.Platform{OS: "linux", Architecture: architecture, Variant: variant}, 10)
		if test.best < 0 {
			if !errdefs.IsNotFound(err) {
				t.Errorf("%s of %s: %v, %v", test.want, test.offered, got.Digest, err)
			}
			continue
		}
		if err != nil || got.Digest.String() != index.Manifests[test.best].Digest.String() {
			t.Errorf("%s of %s: %v, %v", test.want, test.offered, got.Digest, err)
		}
	}
}

// retyped is a layer with another media type.
type retyped struct {
	v1.Layer
	mediaType types.MediaType
}

func (r retyped) MediaType() (types.MediaType, error) { return r.mediaType, nil }

func TestLayersOfEachTypeArePulled(t *testing.T) {
	reg := newSite(t, nil)
	s := newStore(t, nil)
	for i, mediaType := range []types.MediaType{types.OCILayer, types.OCILayerZStd, types.DockerLayer, dockerZstdLayer} {
		content := fmt.Sprint(i)
		img := pull(t, s, reg.push(t, "app:v"+content, imageWith(t, retyped{layerOf(t, file("a", content)), mediaType})))
		if got := read(t, s, img.ID, 0, "a"); got != content {
			t.Errorf("%s has %q", mediaType, got)
		}
	}
	// The type is not what tells: these are gzip, whatever they are called. One that is zstd as its type says:
	data := archive(t, file("a", "zstd"))
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	if err != nil {
		t.Fatal(err)
	}
	compressed, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	magic := make([]byte, 4)
	if _, err := io.ReadFull(compressed, magic); err != nil || string(magic) != "\x28\xb5\x2f\xfd" {
		t.Fatalf("the layer is no zstd but begins with %x, %v", magic, err)
	}
	_ = compressed.Close()
	img := pull(t, s, reg.push(t, "app:zstd", imageWith(t, layer)))
	if got := read(t, s, img.ID, 0, "a"); got != "zstd" {
		t.Errorf("the zstd layer has %q", got)
	}
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: reg.push(t, "chart:v1", imageWith(t, retyped{layerOf(t, file("a", "")), "application/vnd.cncf.helm.chart.content.v1.tar+gzip"}))}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an artifact: %v", err)
	}
}

func TestMovedTagLeavesTheOtherImageItsDigest(t *testing.T) {
	reg := newSite(t, nil)
	s := newStore(t, nil)
	first := pull(t, s, reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1")))))
	second := pull(t, s, reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "2")))))
	check := func(s *Store) {
		t.Helper()
		found, err := s.Image(t.Context(), reg.host()+"/app:v1")
		if err != nil || found.ID != second.ID {
			t.Errorf("the tag is that of %v (%v)", found, err)
		}
		old, err := s.Image(t.Context(), string(first.ID))
		if err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
			t.Errorf("%+v %v", old, err)
		}
	}
	check(s)
	_ = s.Close()
	check(reopen(t, s.root, nil))
}

func TestProgressIsTold(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", noise(100_000)))))
	var told []Progress
	s := newStore(t, func(o *Options) { o.Progress = func(p Progress) { told = append(told, p) } })
	pull(t, s, ref)
	last := told[len(told)-1]
	if told[0].Phase != phaseResolving || last.Phase != phaseDone || last.Ready != 1 || last.Fetched != last.Total || last.Unpacked < 100_000 {
		t.Errorf("%+v", told)
	}
	told = nil
	_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: reg.host() + "/none:v1"})
	if last := told[len(told)-1]; last.Phase != phaseFailed || !errors.Is(err, errdefs.ErrNotFound) || last.Err == nil {
		t.Errorf("%+v %v", last, err)
	}
}

// FuzzDocument reads manifests and configs that no honest registry sends.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseConfig(data)
		doc, err := parseDocument(data, "")
		if err != nil {
			return
		}
		if (doc.index == nil) == (doc.image == nil) {
			t.Fatal("a document is both or neither")
		}
		limits := DefaultLimits
		if doc.index != nil {
			platform := hostPlatform()
			if d, err := doc.choose(&platform, limits.Manifest); err == nil && d.Digest.Validate() != nil {
				t.Fatal("a digest that is none")
			}
			return
		}
		if config, layers, err := doc.links(&limits); err == nil {
			for _, d := range append(layers, config) {
				if d.Digest.Validate() != nil || d.Size < 0 {
					t.Fatalf("%+v", d)
				}
			}
		}
	})
}

// A registry without ranges sends all of a blob again, of which what is here is thrown away: as long as that comes, the pull does not
// end for want of progress. It would be begun anew at the same place, and never be done.
func TestWhatComesAgainIsProgress(t *testing.T) {
	const here = 600_000
	content := []byte(noise(1_000_000))
	at := newProgress()
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before := at.last.Load()
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:here/2])
		w.(http.Flusher).Flush()
		for at.last.Load() == before && r.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		_, _ = w.Write(content[here/2:])
	}))
	defer reg.Close()
	s := newStore(t, nil)
	named, err := registry.ParseName(strings.TrimPrefix(reg.URL, "http://") + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := openRepository(nil, named, registry.Credentials{}, s.options, 2*time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.close()
	desc := ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
	if err := os.WriteFile(s.partPath(desc.Digest), content[:here], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.ensureBlob(t.Context(), repo, desc, at); err != nil {
		t.Error(err)
	}
}
