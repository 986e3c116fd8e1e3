package registry

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"crishim/registry/hosts"
)

// A cache of several registries tells them apart by the parameter ns. containerd sends it to every host that is not the registry's
// own, also where server names it; the registry itself gets a plain request.
func TestWhoIsNotTheRegistryIsToldWhichItIs(t *testing.T) {
	asked := ""
	site := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = r.URL.RequestURI() }))
	defer site.Close()
	own := site.Listener.Addr().String()
	for _, tt := range []struct{ name, registry, file, want string }{
		{"a server elsewhere", "reg.example", "server = \"" + site.URL + "\"\n", "/v2/app/manifests/v1?ns=reg.example"},
		{"a mirror", "reg.example", "[host.\"" + site.URL + "\"]\n", "/v2/app/manifests/v1?ns=reg.example"},
		{"the registry itself", own, "", "/v2/app/manifests/v1"},
		{"the registry itself as server", own, "server = \"" + site.URL + "\"\n", "/v2/app/manifests/v1"},
		{"the registry itself as host", own, "[host.\"" + site.URL + "\"]\n", "/v2/app/manifests/v1"},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, tt.registry), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, tt.registry, hosts.FileName), []byte(tt.file), 0o600); err != nil {
			t.Fatal(err)
		}
		config, err := hosts.Lookup([]string{dir}, tt.registry)
		if err != nil {
			t.Fatal(err)
		}
		pull := Pull{Config: config, Repository: "app"}
		asked = ""
		endpoint := pull.Open(DefaultStall)[0]
		resp, err := endpoint.Get(t.Context(), http.MethodGet, Target{Kind: "manifests", Reference: "v1"}, nil)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		Discard(resp)
		endpoint.Close()
		if asked != tt.want {
			t.Errorf("%s: asked for %s, want %s", tt.name, asked, tt.want)
		}
	}
}
