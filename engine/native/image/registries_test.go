package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine"
	"crishim/registry"
)

// containerd's usual form: server and [host] are the same registry, whose CA or skip_verify is said of the host.
func TestAHostEntryOfTheRegistryItselfGetsItsCredentials(t *testing.T) {
	inner := newSite(t, nil)
	guard := guarded("secret")(inner.Config.Handler)
	reg := httptest.NewTLSServer(guard)
	t.Cleanup(reg.Close)
	inner.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	host := strings.TrimPrefix(reg.URL, "https://")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n  skip_verify = true\n", reg.URL, reg.URL)
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, func(o *Options) { o.RegistryConfigDirs = []string{dir} })
	pull := func(name, password string) error {
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: host + name, Auth: &engine.Auth{Username: "u", Password: password}})
		return err
	}
	// What the registry answers counts, though its file names it twice and only one of the entries is trusted.
	if err := pull("/app:v1", "wrong"); !errdefs.IsUnauthorized(err) {
		t.Errorf("with a wrong password: %v", err)
	}
	if err := pull("/none:v1", "secret"); !errdefs.IsNotFound(err) {
		t.Errorf("what is not there: %v", err)
	}
	if err := pull("/app:v1", "secret"); err != nil {
		t.Error(err)
	}
}

// A registry may have its token server on another domain: the operator's word is what sends credentials there (S32).
func TestATokenServerOnAnotherSiteThatIsNamed(t *testing.T) {
	tokens := newSite(t, func(http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			token := "nobody's"
			if user, password, _ := r.BasicAuth(); user == "u" && password == "p" {
				token = "u's"
			}
			fmt.Fprintf(w, `{"token":%q}`, token)
		}
	})
	locked := false
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if locked && r.Header.Get("Authorization") != "Bearer u's" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`/token",service="reg"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	ref := reg.push(t, "team/app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	locked = true
	pull := func(trusted ...string) error {
		s := newStore(t, func(o *Options) { o.TokenServers = trusted })
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, Auth: &engine.Auth{Username: "u", Password: "p"}})
		return err
	}
	host := strings.TrimPrefix(tokens.URL, "http://")
	if err := pull("auth.example.com"); !errdefs.IsUnauthorized(err) || !errors.Is(err, registry.ErrWithheld) || !strings.Contains(err.Error(), host) {
		t.Errorf("one that is not named: %v", err)
	}
	if err := pull("auth.example.com", host); err != nil {
		t.Errorf("the one that is named: %v", err)
	}
}

// The distribution API leaves the scope out of a challenge; Docker and containerd ask for the repository's then.
func TestAChallengeWithoutAScope(t *testing.T) {
	locked := false
	var url string
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				fmt.Fprintf(w, `{"token":%q}`, "t:"+r.URL.Query().Get("scope"))
				return
			}
			if locked && r.Header.Get("Authorization") != "Bearer t:repository:team/app:pull" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+url+`/token",service="reg"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	url = reg.URL
	ref := reg.push(t, "team/app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	locked = true
	s := newStore(t, nil)
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); err != nil {
		t.Fatal(err)
	}
}

// A token server may redirect within itself, as frameworks do that want a slash at the end. The credentials go along; they go to no
// other place (S32).
func TestATokenServerThatRedirectsWithinItself(t *testing.T) {
	locked := false
	var url string
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, password, _ := r.BasicAuth()
			switch {
			case r.URL.Path == "/token":
				http.Redirect(w, r, "/token/?"+r.URL.RawQuery, http.StatusMovedPermanently)
			case r.URL.Path == "/circle":
				http.Redirect(w, r, "/circle", http.StatusMovedPermanently)
			case r.URL.Path == "/token/" && password == "p" && r.URL.Query().Get("scope") == "repository:team/app:pull":
				fmt.Fprint(w, `{"token":"u's"}`)
			case r.URL.Path == "/token/":
				w.WriteHeader(http.StatusUnauthorized)
			case locked && r.Header.Get("Authorization") != "Bearer u's":
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+url+`",service="reg"`)
				w.WriteHeader(http.StatusUnauthorized)
			default:
				next.ServeHTTP(w, r)
			}
		}
	})
	ref := reg.push(t, "team/app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	locked = true
	s := newStore(t, nil)
	spec := &engine.PullSpec{Ref: ref, Auth: &engine.Auth{Username: "u", Password: "p"}}
	url = reg.URL + "/token"
	if _, err := s.PullImage(t.Context(), spec); err != nil {
		t.Error(err)
	}
	url = reg.URL + "/circle"
	if _, err := s.PullImage(t.Context(), spec); err == nil || reg.count(http.MethodGet, "/circle") > 20 {
		t.Errorf("in a circle: %v after %d requests", err, reg.count(http.MethodGet, "/circle"))
	}
}

// Docker takes such configs for images (docker/distribution#1621).
func TestConfigsOfOldTypes(t *testing.T) {
	for i, mediaType := range []types.MediaType{"application/octet-stream", "", "text/html", "application/json"} {
		reg := newSite(t, nil)
		img := mutate.ConfigMediaType(mutate.MediaType(imageWith(t, retyped{layerOf(t, file("a", fmt.Sprint(i))), types.DockerLayer}), types.DockerManifestSchema2), mediaType)
		s := newStore(t, nil)
		if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: reg.push(t, "app:v1", img)}); err != nil {
			t.Errorf("%q: %v", mediaType, err)
		}
	}
}

// A proxy may fetch a large blob to itself before it sends the first byte, within what the operator allows.
func TestTheFirstByteMayTakeAsLongAsThePull(t *testing.T) {
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				select {
				case <-time.After(3 * time.Second):
				case <-r.Context().Done():
					return
				}
			}
			next.ServeHTTP(w, r)
		}
	})
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	s := newStore(t, nil)
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: 5 * time.Second}); err != nil {
		t.Fatal(err)
	}
}

// Who joins a pull is not told that the registry has no such image when another one removes it at once.
func TestAPullOfWhatIsBeingRemoved(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	s := newStore(t, nil)
	for range 100 {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				img, err := s.PullImage(context.Background(), &engine.PullSpec{Ref: ref})
				if errdefs.IsAborted(err) { // the others were quicker each time
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.RemoveImage(context.Background(), img.ID); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if t.Failed() {
			return
		}
	}
}

func TestPlatformsByOtherNames(t *testing.T) {
	for _, test := range []struct {
		arch, have string
		variant    string
	}{
		{"arm64", "arm64", "8"}, {"arm64", "aarch64", ""}, {"amd64", "x86_64", ""}, {"amd64", "x86-64", ""}, {"arm64", "arm64", "v8.0"},
	} {
		want := ocispec.Platform{OS: "linux", Architecture: test.arch, Variant: variant(test.arch, "")}
		if fitness(&v1.Platform{OS: "linux", Architecture: test.have, Variant: test.variant}, &want) == 0 {
			t.Errorf("%+v is refused", test)
		}
	}
}
