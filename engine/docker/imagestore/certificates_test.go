package imagestore

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"crishim/engine"
	"crishim/engine/docker/imagestore/pullthrough"
)

// dockerd reads /etc/docker/certs.d only: a CA in another folder of registry_dirs is ours to trust.
func TestCertificatesThatDockerDoesNotRead(t *testing.T) {
	reg := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(reg.Close)
	f := newFakeDocker(t)
	var pulled string
	f.pull = func(_ http.ResponseWriter, _ *http.Request, ref string) {
		pulled = ref
		f.put("a", fakeImage{tags: []string{ref}, size: 9})
	}
	dir := t.TempDir() // such as /etc/crishim/certs.d
	if err := os.Mkdir(filepath.Join(dir, "reg.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reg.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "reg.example", "ca.crt"), ca, 0o644); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, f, func(o *Options) { o.RegistryConfigDirs = []string{dir} })
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "reg.example/app:v1"}); err != nil || !pullthrough.IsHelper(pulled) {
		t.Errorf("Docker pulled %q by itself, without the CA: %v", pulled, err)
	}
}
