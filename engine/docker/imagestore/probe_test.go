package imagestore

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/registry"
)

// Docker sends credentials to any token server, we only to those of the registry's site and those named: that ours were refused
// says nothing of a pull of Docker's then.
func TestARefusalWithoutTheCredentialsIsNone(t *testing.T) {
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"t"}`) }))
	t.Cleanup(tokens.Close)
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`/token",service="reg"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(reg.Close)
	named, err := registry.ParseName(strings.TrimPrefix(reg.URL, "http://") + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	secret := registry.Credentials{Username: "u", Password: "p"}
	if err := (&Store{}).registryRefusal(t.Context(), named, secret); err != nil {
		t.Error(err)
	}
	s := &Store{options: Options{TokenServers: []string{strings.TrimPrefix(tokens.URL, "http://")}}}
	if err := s.registryRefusal(t.Context(), named, secret); !errdefs.IsUnauthorized(err) {
		t.Errorf("with the credentials: %v", err)
	}
}
