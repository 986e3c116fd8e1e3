package streaming

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/internal/accept"
)

// Rows: S47
func TestATokenOpensOneRequestOfItsVerbOnce(t *testing.T) {
	r := &testRuntime{exec: func(context.Context, string, []string, Streams) (int, error) { return 0, nil }}
	s := start(t, Options{}, r)
	want := wanted{stdout: true}
	rows := map[string]func(t *testing.T) string{
		"used a second time": func(t *testing.T) string {
			u := execURL(t, s, want, "x")
			dialCommand(t, u, want, "spdy v4.channel.k8s.io").collect(t)
			return u
		},
		"exec's on attach's path": func(t *testing.T) string { return strings.Replace(execURL(t, s, want, "x"), "/exec/", "/attach/", 1) },
		"exec's on port-forward's path": func(t *testing.T) string {
			return strings.Replace(execURL(t, s, want, "x"), "/exec/", "/portforward/", 1)
		},
		"attach's on exec's path": func(t *testing.T) string { return strings.Replace(attachURL(t, s, want), "/attach/", "/exec/", 1) },
		"cut short":               func(t *testing.T) string { u := execURL(t, s, want, "x"); return u[:len(u)-1] },
		"none":                    func(t *testing.T) string { return s.URL() + "/exec/" },
		"no path":                 func(t *testing.T) string { return s.URL() },
		"expired": func(t *testing.T) string {
			u := execURL(t, start(t, Options{TokenTTL: 50 * time.Millisecond}, r), want, "x")
			<-time.After(60 * time.Millisecond) // its lifetime is what is tested
			return u
		},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			if code := get(t, row(t)); code != http.StatusNotFound {
				t.Errorf("answered %d", code)
			}
		})
	}
}

// Rows: S47 (part)
func TestTokensAreLongAndDiffer(t *testing.T) {
	s := start(t, Options{}, &testRuntime{})
	seen := map[string]bool{}
	for range 100 {
		u := execURL(t, s, wanted{stdout: true}, "x")
		token := u[strings.LastIndexByte(u, '/')+1:]
		if len(token)*6 < 128 || seen[token] {
			t.Fatalf("token %q", token)
		}
		seen[token] = true
		if !strings.HasPrefix(u, s.URL()+"/exec/") || !strings.HasPrefix(u, "http://127.0.0.1:") {
			t.Fatalf("URL %q", u)
		}
	}
}

// Rows: S47 (part)
func TestTooManyWaitingRequestsAreRefusedUntilOneIsGone(t *testing.T) {
	s := start(t, Options{TokenTTL: 2 * time.Second, MaxInFlight: 3}, &testRuntime{})
	req := &runtimeapi.ExecRequest{ContainerId: "c", Stdout: true}
	var last string
	for range 3 {
		last = execURL(t, s, wanted{stdout: true})
	}
	if _, err := s.ExecURL(req); !errdefs.IsResourceExhausted(err) {
		t.Fatalf("the fourth: %v", err)
	}
	get(t, last)
	if _, err := s.ExecURL(req); err != nil {
		t.Fatalf("after one was taken: %v", err)
	}
	if !poll(time.Minute, func() bool { _, err := s.ExecURL(req); return err == nil }) {
		t.Error("expired requests still count")
	}
}

// Rows: S47 (part)
func TestGuessesAreLimitedAndRightTokensAreNot(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(context.Context, string, []string, Streams) (int, error) { return 0, nil }})
	want := wanted{stdout: true}
	started := time.Now()
	answers := map[int]int{}
	for range 300 {
		answers[get(t, s.URL()+"/exec/wrong")]++
	}
	seconds := int(time.Since(started)/time.Second) + 2
	if answers[404] > seconds*guessesPerSecond || answers[404]+answers[429] != 300 {
		t.Errorf("in %d s: %v", seconds, answers)
	}
	if answers[429] == 0 && seconds < 6 {
		t.Errorf("no guess was refused: %v", answers)
	}
	if st := statusJSON(t, dialCommand(t, execURL(t, s, want, "x"), want, "spdy v4.channel.k8s.io").collect(t).status); st.Status != "Success" {
		t.Errorf("a right token in between: %+v", st)
	}
}

// A request whose body never comes was held for ever: net/http reads it before it answers. Nobody without a token holds more
// than a bounded number of connections, and none of them keeps a client out.
//
// Rows: S50 (part)
func TestWhoHasNoTokenHoldsFewConnections(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(context.Context, string, []string, Streams) (int, error) { return 0, nil }})
	var first net.Conn
	for i := range accept.MaxStrangers + 1 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = conn
		}
	}
	_ = first.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := first.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest connection is held on and on")
	}
	want := wanted{stdout: true}
	if st := statusJSON(t, dialCommand(t, execURL(t, s, want, "x"), want, "spdy v4.channel.k8s.io").collect(t).status); st.Status != "Success" {
		t.Errorf("a right token beside them: %+v", st)
	}
}

// Rows: S48, S49 (part)
func TestRequestsAreChecked(t *testing.T) {
	s := start(t, Options{}, &testRuntime{})
	exec := func(r *runtimeapi.ExecRequest) error { _, err := s.ExecURL(r); return err }
	attach := func(r *runtimeapi.AttachRequest) error { _, err := s.AttachURL(r); return err }
	forward := func(r *runtimeapi.PortForwardRequest) error { _, err := s.PortForwardURL(r); return err }
	for name, err := range map[string]error{
		"exec without container":      exec(&runtimeapi.ExecRequest{Stdout: true}),
		"exec without stream":         exec(&runtimeapi.ExecRequest{ContainerId: "c"}),
		"exec with tty and stderr":    exec(&runtimeapi.ExecRequest{ContainerId: "c", Tty: true, Stderr: true}),
		"attach without container":    attach(&runtimeapi.AttachRequest{Stdout: true}),
		"attach without stream":       attach(&runtimeapi.AttachRequest{ContainerId: "c"}),
		"attach with tty and stderr":  attach(&runtimeapi.AttachRequest{ContainerId: "c", Tty: true, Stderr: true}),
		"port-forward without pod":    forward(&runtimeapi.PortForwardRequest{}),
		"port-forward to port 0":      forward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{0}}),
		"port-forward to port 65536":  forward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{65536}}),
		"port-forward to port -1":     forward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, -1}}),
		"a listener for all":          newError(Options{Address: ":0"}),
		"a listener for all by name":  newError(Options{Address: "0.0.0.0:0"}),
		"a listener on another net":   newError(Options{Address: "10.1.2.3:0"}),
		"a listener on a host's name": newError(Options{Address: "example.org:0"}),
		"an address without port":     newError(Options{Address: "127.0.0.1"}),
		"a certificate without key":   newError(Options{CertFile: "/x"}),
		"a negative timeout":          newError(Options{IdleTimeout: -1}),
	} {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func newError(o Options) error {
	s, err := New(o, &testRuntime{})
	if err == nil {
		s.close()
	}
	return err
}

func TestAnAddressForAllIsHandedOutAsLoopback(t *testing.T) {
	s := start(t, Options{Address: "0.0.0.0:0", AllowRemote: true}, &testRuntime{})
	if !strings.HasPrefix(s.URL(), "http://127.0.0.1:") {
		t.Errorf("URL %s", s.URL())
	}
}

func TestShutdownWaitsForSessionsThenCutsThem(t *testing.T) {
	running := make(chan struct{}, 1)
	release := make(chan struct{})
	r := &testRuntime{exec: func(ctx context.Context, _ string, _ []string, s Streams) (int, error) {
		running <- struct{}{}
		select {
		case <-release:
			return 0, nil
		case <-ctx.Done():
			return 0, errors.New("cut")
		}
	}}
	want := wanted{stdout: true}
	each(t, exitProtocols, func(t *testing.T, protocol string) {
		s := start(t, Options{}, r)
		c := dialCommand(t, execURL(t, s, want, "x"), want, protocol)
		<-running
		waiting := execURL(t, s, want, "y")
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(t.Context()) }()
		if !poll(time.Minute, func() bool {
			_, err := s.ExecURL(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true})
			return errdefs.IsUnavailable(err)
		}) {
			t.Error("URLs are still handed out")
		}
		if resp, err := http.Get(waiting); err == nil {
			t.Errorf("a client was let in: %s", resp.Status)
		}
		release <- struct{}{}
		if err := <-done; err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if st := statusJSON(t, c.collect(t).status); st.Status != "Success" {
			t.Errorf("status %+v", st)
		}

		s = start(t, Options{}, r)
		c = dialCommand(t, execURL(t, s, want, "x"), want, protocol)
		<-running
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("shutdown: %v", err)
		}
		if st := statusJSON(t, c.collect(t).status); !strings.Contains(st.Message, "cut") {
			t.Errorf("status %+v", st)
		}
	})
}

func TestServeEndsWithItsContext(t *testing.T) {
	s, err := New(Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, _ Streams) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	want := wanted{stdout: true}
	dialCommand(t, execURL(t, s, want, "x"), want, "spdy v4.channel.k8s.io")
	cancel()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("still serving")
	}
}

func TestShutdownWithoutServeFreesThePort(t *testing.T) {
	s, err := New(Options{}, &testRuntime{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", strings.TrimPrefix(s.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// Rows: S48 (part)
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots := writeCertificate(t, certFile, keyFile)
	s := start(t, Options{CertFile: certFile, KeyFile: keyFile}, &testRuntime{exec: func(context.Context, string, []string, Streams) (int, error) {
		return 0, nil
	}})
	if !strings.HasPrefix(s.URL(), "https://127.0.0.1:") {
		t.Errorf("URL %s", s.URL())
	}
	conn, _, err := upgradeSPDY(execURL(t, s, wanted{stdout: true}, "x"), roots, "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()

	addr := strings.TrimPrefix(s.URL(), "https://")
	if _, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	roots = writeCertificate(t, certFile, keyFile)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(certFile, later, later); err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	if err != nil {
		t.Fatalf("the new certificate is not served: %v", err)
	}
	_ = c.Close()
}

func writeCertificate(t *testing.T, certFile, keyFile string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return pool
}
