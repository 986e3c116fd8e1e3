package streaming

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	frames "github.com/moby/spdystream/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// testRuntime is a Runtime made of functions.
type testRuntime struct {
	exec    func(ctx context.Context, id string, cmd []string, s Streams) (int, error)
	attach  func(ctx context.Context, id string, s Streams) error
	forward func(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error
}

func (r *testRuntime) Exec(ctx context.Context, id string, cmd []string, s Streams) (int, error) {
	return r.exec(ctx, id, cmd, s)
}
func (r *testRuntime) Attach(ctx context.Context, id string, s Streams) error {
	return r.attach(ctx, id, s)
}
func (r *testRuntime) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	return r.forward(ctx, id, port, stream)
}

// start serves until the test ends, which then checks that every session has ended.
func start(t testing.TB, opts Options, r Runtime) *Server {
	t.Helper()
	// A client that leaves before it has opened its streams is held that long.
	opts.CreationTimeout = cmp.Or(opts.CreationTimeout, 2*time.Second)
	s, err := New(opts, r)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("sessions were left at the end: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

func execURL(t testing.TB, s *Server, want wanted, cmd ...string) string {
	t.Helper()
	resp, err := s.ExecURL(&runtimeapi.ExecRequest{ContainerId: "c1", Cmd: cmd, Stdin: want.stdin, Stdout: want.stdout, Stderr: want.stderr, Tty: want.tty})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetUrl()
}

func attachURL(t testing.TB, s *Server, want wanted) string {
	t.Helper()
	resp, err := s.AttachURL(&runtimeapi.AttachRequest{ContainerId: "c1", Stdin: want.stdin, Stdout: want.stdout, Stderr: want.stderr, Tty: want.tty})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetUrl()
}

func forwardURL(t testing.TB, s *Server, ports ...int32) string {
	t.Helper()
	resp, err := s.PortForwardURL(&runtimeapi.PortForwardRequest{PodSandboxId: "p1", Port: ports})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetUrl()
}

// get asks for a URL without an upgrade and returns the status.
func get(t testing.TB, target string) int {
	t.Helper()
	resp, err := http.Get(target)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// bufferedConn reads what was read behind the response first.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// upgradeSPDY asks for SPDY and returns the raw connection.
func upgradeSPDY(target string, roots *x509.CertPool, protocols ...string) (net.Conn, *http.Response, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return nil, nil, err
	}
	return upgradeOver(conn, u, roots, protocols...)
}

func upgradeOver(conn net.Conn, u *url.URL, roots *x509.CertPool, protocols ...string) (net.Conn, *http.Response, error) {
	if u.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}})
	}
	return upgradeAs(conn, u, "SPDY/3.1", protocols...)
}

// upgradeAs asks for what upgrade says.
func upgradeAs(conn net.Conn, u *url.URL, upgrade string, protocols ...string) (net.Conn, *http.Response, error) {
	req := &http.Request{Method: http.MethodPost, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {upgrade}, "X-Stream-Protocol-Version": protocols,
	}}
	if err := req.Write(conn); err != nil {
		return nil, nil, err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		_ = conn.Close()
		return nil, resp, fmt.Errorf("upgrade: %s", resp.Status)
	}
	return &bufferedConn{conn, r}, resp, nil
}

func dialSPDY(t testing.TB, target string, protocols ...string) (httpstream.Connection, net.Conn) {
	t.Helper()
	raw, _, err := upgradeSPDY(target, nil, protocols...)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := spdy.NewClientConnection(raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); _ = raw.Close() })
	return conn, raw
}

// rawSPDY returns a connection and a function that opens a stream without waiting for the answer.
func rawSPDY(t testing.TB, target, protocol string) (net.Conn, func(headers ...string)) {
	t.Helper()
	raw, _, err := upgradeSPDY(target, nil, protocol)
	if err != nil {
		t.Fatal(err)
	}
	return raw, streamOpener(t, raw)
}

// streamOpener opens streams on a connection without waiting for the answer.
func streamOpener(t testing.TB, raw io.ReadWriter) func(headers ...string) {
	t.Helper()
	framer, err := frames.NewFramer(raw, raw)
	if err != nil {
		t.Fatal(err)
	}
	id := frames.StreamId(1)
	return func(headers ...string) {
		h := http.Header{}
		for pair := range slices.Chunk(headers, 2) {
			h.Set(pair[0], pair[1])
		}
		_ = framer.WriteFrame(&frames.SynStreamFrame{StreamId: id, Headers: h})
		id += 2
	}
}

func createStream(t testing.TB, conn httpstream.Connection, headers ...string) httpstream.Stream {
	t.Helper()
	h := http.Header{}
	for pair := range slices.Chunk(headers, 2) {
		h.Set(pair[0], pair[1])
	}
	s, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// commandClient is a client of exec or attach in any protocol.
type commandClient struct {
	stdin          io.Writer
	closeStdin     func() // nil where the protocol has no half close
	stdout, stderr io.Reader
	resize         io.Writer
	status         io.Reader
	vanish         func()
}

func dialCommandSPDY(t testing.TB, target string, want wanted, protocol string) *commandClient {
	t.Helper()
	conn, raw := dialSPDY(t, target, protocol)
	c := &commandClient{vanish: func() { _ = raw.Close() }}
	c.status = createStream(t, conn, "streamType", "error")
	if want.stdin {
		s := createStream(t, conn, "streamType", "stdin")
		c.stdin, c.closeStdin = s, func() { _ = s.Close() }
	}
	if want.stdout {
		c.stdout = createStream(t, conn, "streamType", "stdout")
	}
	if want.stderr {
		c.stderr = createStream(t, conn, "streamType", "stderr")
	}
	if want.tty && protocol >= "v3" {
		c.resize = createStream(t, conn, "streamType", "resize")
	}
	return c
}

func dialWebSocket(t testing.TB, target string, protocols ...string) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{Subprotocols: protocols}
	ws, resp, err := d.Dial("ws"+strings.TrimPrefix(target, "http"), nil)
	if err != nil {
		t.Fatalf("dial: %v (%v)", err, resp)
	}
	t.Cleanup(func() { _ = ws.Close() })
	if got := ws.Subprotocol(); !slices.Contains(protocols, got) {
		t.Fatalf("negotiated %q of %q", got, protocols)
	}
	return ws
}

// wsWriter sends on a channel.
type wsWriter struct {
	mu      *sync.Mutex
	ws      *websocket.Conn
	channel byte
}

func (w wsWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(p), w.ws.WriteMessage(websocket.BinaryMessage, append([]byte{w.channel}, p...))
}

func dialCommandWebSocket(t testing.TB, target, protocol string) *commandClient {
	t.Helper()
	ws := dialWebSocket(t, target, protocol)
	var mu sync.Mutex
	c := &commandClient{stdin: wsWriter{&mu, ws, 0}, resize: wsWriter{&mu, ws, 4}}
	if protocol == "v5.channel.k8s.io" {
		c.closeStdin = func() { _, _ = wsWriter{&mu, ws, 255}.Write([]byte{0}) }
	}
	var outs [4]*io.PipeWriter
	var ins [4]*io.PipeReader
	for i := range outs {
		ins[i], outs[i] = io.Pipe()
	}
	c.stdout, c.stderr, c.status = ins[1], ins[2], ins[3]
	c.vanish = func() {
		_ = ws.NetConn().Close()
		for _, in := range ins {
			_ = in.Close()
		}
	}
	go func() {
		for {
			_, p, err := ws.ReadMessage()
			if err != nil {
				for _, o := range outs {
					_ = o.Close()
				}
				return
			}
			if len(p) > 1 && p[0] < 4 {
				_, _ = outs[p[0]].Write(p[1:])
			}
		}
	}()
	return c
}

func dialCommand(t testing.TB, target string, want wanted, protocol string) *commandClient {
	t.Helper()
	if name, ok := strings.CutPrefix(protocol, "ws "); ok {
		return dialCommandWebSocket(t, target, name)
	}
	return dialCommandSPDY(t, target, want, strings.TrimPrefix(protocol, "spdy "))
}

// result is what a client has seen at the end.
type result struct {
	stdout, stderr, status string
}

// collect reads all outputs to their end.
func (c *commandClient) collect(t testing.TB) result {
	t.Helper()
	var out, errs, status bytes.Buffer
	var wg sync.WaitGroup
	for _, s := range []struct {
		r io.Reader
		b *bytes.Buffer
	}{{c.stdout, &out}, {c.stderr, &errs}, {c.status, &status}} {
		if s.r != nil {
			wg.Go(func() { _, _ = io.Copy(s.b, s.r) })
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the streams did not end")
	}
	return result{out.String(), errs.String(), status.String()}
}

func statusJSON(t testing.TB, text string) status {
	t.Helper()
	var s status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("status %q: %v", text, err)
	}
	return s
}

func openFDs(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// leakGate notes goroutines and descriptors, and returns the check that they are back (within five of each).
func leakGate(t testing.TB) (check func()) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	goroutines, fds := runtime.NumGoroutine(), openFDs(t)
	return func() {
		t.Helper()
		http.DefaultClient.CloseIdleConnections()
		var g, f int
		if !poll(time.Minute, func() bool {
			g, f = runtime.NumGoroutine(), openFDs(t)
			return g <= goroutines+5 && f <= fds+5
		}) {
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			t.Fatalf("left behind: goroutines %d → %d, descriptors %d → %d\n%.20000s", goroutines, g, fds, f, stacks)
		}
	}
}

// poll asks every 20 ms until ok or the time is over.
func poll(timeout time.Duration, ok func() bool) bool {
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}
