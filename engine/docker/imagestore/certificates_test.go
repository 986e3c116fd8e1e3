package imagestore

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"crishim/engine"
	"crishim/engine/docker/imagestore/pullthrough"
	"crishim/registry/hosts"
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

// Of its own folder dockerd reads the one that is named as the registry, and none of containerd's further names.
func TestFoldersThatDockerDoesNotRead(t *testing.T) {
	for folder, want := range map[string]bool{"reg.example:5000": true, "reg.example_5000_": false, "_default": false} {
		config := &hosts.Config{
			Registry: "reg.example:5000", Path: filepath.Join(dockerCertificates, folder), Certificates: true,
			Endpoints: []hosts.Endpoint{{TLS: &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}}},
		}
		if got := dockersOwn(config); got != want {
			t.Errorf("certificates in %s are Docker's own: %v", config.Path, got)
		}
	}
}
