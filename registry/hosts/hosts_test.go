package hosts

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

// describe writes an endpoint in one line: URL, capabilities, whether it is the server.
func describe(e Endpoint) string {
	s := e.URL.String()
	if e.Pull {
		s += " pull"
	}
	if e.Resolve {
		s += " resolve"
	}
	if e.Server {
		s += " server"
	}
	if e.TLS.InsecureSkipVerify {
		s += " insecure"
	}
	return s
}

func TestEndpoints(t *testing.T) {
	tests := []struct {
		name, registry, file string
		isDefault            bool
		want                 []string
	}{
		{"an empty file leaves the registry itself", "reg.example.org", "", false, []string{"https://reg.example.org/v2 pull resolve server"}},
		{"docker.io is at registry-1", "docker.io", "", false, []string{"https://registry-1.docker.io/v2 pull resolve server"}},
		{"a registry on loopback speaks http", "127.0.0.1:5000", "", false, []string{"http://127.0.0.1:5000/v2 pull resolve server"}},
		{
			"mirrors keep the order of the file, not of the alphabet", "docker.io",
			"server = \"https://registry-1.docker.io\"\n[host.\"https://z.example\"]\n capabilities = [\"pull\", \"resolve\"]\n" +
				"[host.\"https://a.example\"]\n capabilities = [\"pull\"]\n[host.\"http://m.example:30020\"]\n skip_verify = true\n",
			false,
			[]string{"https://z.example/v2 pull resolve", "https://a.example/v2 pull", "http://m.example:30020/v2 pull resolve insecure", "https://registry-1.docker.io/v2 pull resolve server"},
		},
		{
			"a header table does not become a host", "docker.io", "[host.\"https://m\"]\n[host.\"https://m\".header]\n x-a = [\"1\", \"2\"]\n", false,
			[]string{"https://m/v2 pull resolve", "https://registry-1.docker.io/v2 pull resolve server"},
		},
		{
			"a path gets /v2 behind it unless it is overridden", "r.example", "[host.\"https://m/proxy/\"]\n[host.\"https://n/v2/cache\"]\noverride_path = true\n[host.\"https://o/x/v2\"]\n", false,
			[]string{"https://m/proxy/v2 pull resolve", "https://n/v2/cache pull resolve", "https://o/x/v2 pull resolve", "https://r.example/v2 pull resolve server"},
		},
		{"inline tables are hosts too", "r.example", "[host]\n\"https://b\" = {capabilities = [\"pull\"]}\n\"https://a\" = {}\n", false, []string{"https://b/v2 pull", "https://a/v2 pull resolve", "https://r.example/v2 pull resolve server"}},
		{"the server of one registry is that registry", "r.example", "server = \"10.0.0.1:5000\"\ncapabilities = [\"pull\"]\n", false, []string{"https://10.0.0.1:5000/v2 pull server"}},
		{"the server of all registries is none of them", "r.example", "server = \"https://all.example\"\n", true, []string{"https://all.example/v2 pull resolve"}},
		{"nor is it as a mirror of them", "r.example", "server = \"https://all.example\"\n[host.\"https://all.example\"]\n", true, []string{"https://all.example/v2 pull resolve", "https://all.example/v2 pull resolve"}},
		{"the server of one registry is that as a mirror, too", "r.example", "server = \"https://its.example\"\n[host.\"https://its.example\"]\n", false, []string{"https://its.example/v2 pull resolve server", "https://its.example/v2 pull resolve server"}},
		{"the registry with its port named, or in other letters, is the registry", "r.example", "[host.\"https://r.example:443\"]\n[host.\"https://R.Example\"]\n[host.\"https://r.example:444\"]\n", false, []string{"https://r.example:443/v2 pull resolve server", "https://R.Example/v2 pull resolve server", "https://r.example:444/v2 pull resolve", "https://r.example/v2 pull resolve server"}},
		{"and without the port that references name", "r.example:443", "[host.\"https://r.example\"]\n", false, []string{"https://r.example/v2 pull resolve server", "https://r.example:443/v2 pull resolve server"}},
		{"a byte order mark is passed over", "r.example", "\ufeff[host.\"https://m\"]\n", false, []string{"https://m/v2 pull resolve", "https://r.example/v2 pull resolve server"}},
		{"a default file without a server leaves each its own", "r.example", "", true, []string{"https://r.example/v2 pull resolve server"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			config, err := Parse([]byte(tt.file), tt.registry, t.TempDir(), tt.isDefault)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range config.Endpoints {
				got = append(got, describe(e))
			}
			if !slices.Equal(got, tt.want) {
				t.Fatalf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
		})
	}
}

func TestCertificatesHeadersAndTimeoutAreRead(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir)
	file := `
[host."https://m"]
ca = "cert.pem"
client = [["cert.pem", "key.pem"], "both.pem", ["both.pem", ""]]
dial_timeout = "3s"
[host."https://m".header]
X-One = "1"
x-many = ["a", "b"]
`
	config, err := Parse([]byte(file), "r.example", dir, false)
	if err != nil {
		t.Fatal(err)
	}
	e := config.Endpoints[0]
	if e.TLS.RootCAs == nil || len(e.TLS.Certificates) != 3 || e.DialTimeout != 3*time.Second {
		t.Fatalf("CAs %v, %d certificates, timeout %v", e.TLS.RootCAs != nil, len(e.TLS.Certificates), e.DialTimeout)
	}
	if e.Header.Get("X-One") != "1" || !slices.Equal(e.Header.Values("X-Many"), []string{"a", "b"}) {
		t.Fatalf("header %v", e.Header)
	}
	if server := config.Endpoints[1]; server.TLS.RootCAs != nil || len(server.Header) != 0 {
		t.Fatal("the mirror's settings reached the server")
	}
}

func TestCapabilitiesAreContainerds(t *testing.T) {
	log := &bytes.Buffer{}
	klog.LogToStderr(false)
	klog.SetOutput(log)
	t.Cleanup(func() {
		klog.SetOutput(os.Stderr)
		klog.LogToStderr(true)
	})
	dir := t.TempDir()
	for capabilities, want := range map[string]string{
		`["pull", "resolve", "push", "referrers"]`: "https://m/v2 pull resolve",
		`["Pull", "RESOLVE"]`:                      "https://m/v2 pull resolve",
		`["referrers"]`:                            "https://m/v2",
		`["pull", "fly"]`:                          "https://m/v2 pull",
	} {
		for range 3 {
			config, err := Parse([]byte("[host.\"https://m\"]\ncapabilities = "+capabilities+"\n"), "r.example", dir, false)
			if err != nil {
				t.Errorf("%s: %v", capabilities, err)
				continue
			}
			if got := describe(config.Endpoints[0]); got != want {
				t.Errorf("%s: %s, want %s", capabilities, got, want)
			}
		}
	}
	klog.Flush()
	if lines := strings.Count(log.String(), "\n"); lines != 1 || !strings.Contains(log.String(), "fly") {
		t.Errorf("not one warning of the unknown capability:\n%s", log)
	}
}

func TestBadFilesAreRefused(t *testing.T) {
	for name, file := range map[string]string{
		"not TOML":                  "server = ",
		"another scheme":            "[host.\"ftp://m\"]",
		"no host":                   "server = \"https://\"",
		"a password in the URL":     "[host.\"https://u:canary@m\"]",
		"a query":                   "[host.\"https://m?x=1\"]",
		"a missing CA":              "ca = \"absent.pem\"",
		"a number as CA":            "ca = 7",
		"a line break in a header":  "[header]\nx = \"a\\nb\"",
		"a header of the transport": "[header]\nHost = \"x\"",
		"a bad timeout":             "dial_timeout = \"soon\"",
		"three client files":        "client = [[\"a\",\"b\",\"c\"]]",
		"hosts by dotted keys":      "host.\"https://m\".skip_verify = true",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(file), "r.example", t.TempDir(), false)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "canary") {
				t.Fatalf("the message shows the password: %v", err)
			}
		})
	}
}

func TestLookupTakesTheMostSpecificFolder(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	write := func(dir, folder, mirror string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, folder, FileName), []byte(fmt.Sprintf("[host.\"https://%s\"]\n", mirror)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(first, "r.example", "named")
	write(first, "r.example_5000_", "ported")
	write(first, "q.example:5000", "colon")
	write(second, "_default", "default")
	dirs := []string{filepath.Join(first, "absent"), first, second}
	for registry, want := range map[string]string{
		"r.example": "named", "r.example:5000": "ported", "q.example:5000": "colon", "other.example": "default",
	} {
		config, err := Lookup(dirs, registry)
		if err != nil || config == nil || config.Endpoints[0].URL.Host != want {
			t.Errorf("%s: %+v, %v; want mirror %s", registry, config, err, want)
		}
	}
	if config, err := Lookup([]string{first}, "other.example"); config != nil || err != nil {
		t.Errorf("unknown registry: %+v, %v; want nothing", config, err)
	}
	for _, registry := range []string{"", "..", "../r.example", "a/b", "_default", ".hidden"} {
		if _, err := Lookup(dirs, registry); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want InvalidArgument", registry, err)
		}
	}
}

// A folder of Docker's form, as /etc/docker/certs.d has them, gives the registry its certificates; and a registry's own
// folder counts before _default, whatever is in it.
func TestFoldersWithoutAFileHoldCertificates(t *testing.T) {
	dir := t.TempDir()
	for _, folder := range []string{"r.example:5000", "localhost:5000", "empty.example", "keyless.example", "bad.example", "_default"} {
		if err := os.MkdirAll(filepath.Join(dir, folder, "a.crt.d"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	certificates := t.TempDir()
	writeCertificate(t, certificates)
	put := func(from, to string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(certificates, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("cert.pem", "r.example:5000/ca.crt")
	put("cert.pem", "r.example:5000/client.cert")
	put("key.pem", "r.example:5000/client.key")
	put("both.pem", "r.example:5000/other.cert")
	put("cert.pem", "localhost:5000/ca.crt")
	put("cert.pem", "keyless.example/client.cert")
	put("key.pem", "bad.example/ca.crt")
	if err := os.WriteFile(filepath.Join(dir, "_default", FileName), []byte("[host.\"https://mirror\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for registry, want := range map[string]struct {
		endpoint string
		ca       bool
		clients  int
	}{
		"r.example:5000": {"https://r.example:5000/v2 pull resolve server", true, 2},
		"localhost:5000": {"https://localhost:5000/v2 pull resolve server", true, 0},
		"empty.example":  {"https://empty.example/v2 pull resolve server", false, 0},
	} {
		config, err := Lookup([]string{dir}, registry)
		if err != nil || config == nil {
			t.Errorf("%s: %v, %v", registry, config, err)
			continue
		}
		e := config.Endpoints[0]
		if got := describe(e); len(config.Endpoints) != 1 || got != want.endpoint || !config.Certificates {
			t.Errorf("%s: %d endpoints, %s", registry, len(config.Endpoints), got)
		}
		if (e.TLS.RootCAs != nil) != want.ca || len(e.TLS.Certificates) != want.clients {
			t.Errorf("%s: CAs %v, %d certificates", registry, e.TLS.RootCAs != nil, len(e.TLS.Certificates))
		}
	}
	for registry, file := range map[string]string{"keyless.example": "client.cert", "bad.example": "ca.crt"} {
		if _, err := Lookup([]string{dir}, registry); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", registry, err)
		}
	}
	if config, err := Lookup([]string{dir}, "other.example"); err != nil || config.Certificates || config.Endpoints[0].URL.Host != "mirror" {
		t.Errorf("without a folder of its own: %+v, %v", config, err)
	}
}

func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	for name, data := range map[string][]byte{"cert.pem": cert, "key.pem": private, "both.pem": append(slices.Clone(cert), private...)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever the bytes are, the parser answers, and what it accepts is usable.
func FuzzParse(f *testing.F) {
	f.Add([]byte("server = \"https://s\"\n[host.\"https://m\"]\ncapabilities = [\"pull\"]\n[host.\"https://m\".header]\na = \"b\"\n"))
	f.Add([]byte("[host]\n\"x\" = {skip_verify = true}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := Parse(data, "r.example", t.TempDir(), false)
		if err != nil {
			return
		}
		if len(config.Endpoints) == 0 {
			t.Fatal("no endpoint")
		}
		for _, e := range config.Endpoints {
			if e.URL.Host == "" || strings.HasSuffix(e.URL.Path, "/") || e.TLS == nil || (e.URL.Scheme != "http" && e.URL.Scheme != "https") {
				t.Fatalf("unusable endpoint %+v", e)
			}
		}
	})
}
