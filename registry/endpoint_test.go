package registry

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/registry/hosts"
)

// A registry may keep its content where no https is. What is held to a digest comes from there, without a word of what is for
// the registry alone; what a tag means is not asked there.
//
// Rows: S32 (part)
func TestRedirectsToStorageWithoutTLS(t *testing.T) {
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	var stored []*http.Request
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stored = append(stored, r)
		if len(stored) == 1 { // it asks for credentials, too, and gets none
			w.Header().Set("WWW-Authenticate", "Basic realm=reg")
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer storage.Close()
	asked := 0
	reg := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", "Basic realm=reg")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		asked++
		http.SetCookie(w, &http.Cookie{Name: "secret", Value: "canary"})
		to := map[string]string{"own": "http://" + r.Host, "ftp": "ftp://x.example"}[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]
		if to == "" {
			to = storage.URL
		}
		http.Redirect(w, r, to+"/"+r.URL.Path+"?signature=canary", http.StatusTemporaryRedirect)
	}))
	defer reg.Close()
	at, err := url.Parse(reg.URL + "/v2")
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AddCert(reg.Certificate())
	pull := Pull{
		Config: &hosts.Config{Registry: "reg.example", Endpoints: []hosts.Endpoint{{
			URL: at, Pull: true, Resolve: true, Server: true, Header: http.Header{"X-Key": {"canary"}}, TLS: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12},
		}}},
		Repository: "app", Credentials: Credentials{Username: "u", Password: "canary"},
	}
	u := pull.Open(DefaultStall)[0]
	defer u.Close()
	get := func(what Target) error {
		resp, err := u.Get(t.Context(), http.MethodGet, what, http.Header{"Accept": ManifestTypes})
		if err == nil {
			Discard(resp)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("the message has a signature: %v", err)
		}
		return err
	}
	blob, manifest := Target{"blobs", digest, digest}, Target{"manifests", digest, digest}
	if err := get(blob); !errdefs.IsUnauthorized(err) {
		t.Errorf("a storage that asks for credentials: %v", err)
	}
	for _, what := range []Target{blob, manifest} {
		if err := get(what); err != nil {
			t.Errorf("%s by digest: %v", what.Kind, err)
		}
	}
	if len(stored) != 3 {
		t.Errorf("the storage was asked %d times", len(stored))
	}
	for _, r := range stored {
		for _, key := range []string{"Authorization", "X-Key", "Cookie", "Referer"} {
			if r.Header.Get(key) != "" {
				t.Errorf("the storage got %s", key)
			}
		}
	}
	for name, what := range map[string]Target{"a tag": {"manifests", "v1", ""}, "the same host": {"blobs", "own", digest}, "another scheme": {"blobs", "ftp", digest}} {
		before := asked
		if err := get(what); !errdefs.IsFailedPrecondition(err) || errdefs.IsUnavailable(err) || asked != before+1 {
			t.Errorf("%s: %v after %d requests", name, err, asked-before)
		}
	}
	if len(stored) != 3 {
		t.Errorf("the storage was asked for what was refused")
	}
}

// A registry may name its default port where it redirects to itself, as some do behind a proxy: it is not another server.
//
// Rows: S32 (part)
func TestARedirectToTheSameServerKeepsCredentials(t *testing.T) {
	at, err := url.Parse("https://reg.example/v2")
	if err != nil {
		t.Fatal(err)
	}
	u := Endpoint{Spec: &hosts.Endpoint{URL: at}}
	for to, same := range map[string]bool{
		"https://reg.example/x": true, "https://reg.example:443/x": true, "https://Reg.Example/x": true,
		"https://reg.example:8443/x": false, "https://reg.example.test/x": false, "https://a.reg.example:443/x": false, "http://reg.example:443/x": false,
	} {
		req := httptest.NewRequest(http.MethodGet, to, nil)
		req.Header.Set("Authorization", "canary")
		first := httptest.NewRequest(http.MethodGet, at.String(), nil)
		err := u.redirect(Target{Kind: "blobs", Digest: "sha256:00"}, req, []*http.Request{first})
		if kept := req.Header.Get("Authorization") != ""; err == nil && kept != same {
			t.Errorf("%s: kept %t", to, kept)
		}
	}
}

// An endpoint whose refusal never ends is left as one whose refusal does.
//
// Rows: S41 (part)
func TestARefusalThatNeverEndsIsLeft(t *testing.T) {
	hang := make(chan struct{})
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); ok {
			w.WriteHeader(http.StatusNotFound)
		} else {
			w.Header().Set("WWW-Authenticate", "Basic realm=reg")
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = w.Write([]byte("no"))
		_ = http.NewResponseController(w).Flush()
		<-hang
	}))
	defer reg.Close()
	defer close(hang)
	at, err := url.Parse(reg.URL + "/v2")
	if err != nil {
		t.Fatal(err)
	}
	pull := Pull{
		Config:     &hosts.Config{Registry: "reg.example", Endpoints: []hosts.Endpoint{{URL: at, Pull: true, Resolve: true, Server: true}}},
		Repository: "app", Credentials: Credentials{Username: "u", Password: "p"},
	}
	for _, u := range pull.Open(DefaultStall) {
		if _, err := u.Get(t.Context(), http.MethodGet, Target{"manifests", "latest", ""}, nil); !errdefs.IsNotFound(err) {
			t.Errorf("error %v", err)
		}
	}
}
