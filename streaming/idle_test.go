package streaming

import (
	"context"
	"crypto/x509"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// stuckClients open an exec's output, or a forward, and read nothing of it. roots are nil without TLS.
var stuckClients = map[string]func(t *testing.T, s *Server, roots *x509.CertPool){
	"exec over spdy v4": func(t *testing.T, s *Server, roots *x509.CertPool) {
		open := stuckSPDY(t, execURL(t, s, wanted{stdout: true}, "flood"), roots, "v4.channel.k8s.io")
		open("streamType", "error")
		open("streamType", "stdout")
	},
	"exec over WebSocket v4": func(t *testing.T, s *Server, _ *x509.CertPool) {
		dialWebSocket(t, execURL(t, s, wanted{stdout: true}, "flood"), "v4.channel.k8s.io")
	},
	"exec over WebSocket v5": func(t *testing.T, s *Server, _ *x509.CertPool) {
		dialWebSocket(t, execURL(t, s, wanted{stdout: true}, "flood"), "v5.channel.k8s.io")
	},
	// As kubectl does while nobody takes its own output.
	"exec over WebSocket v5 with pings": func(t *testing.T, s *Server, _ *x509.CertPool) {
		ws := dialWebSocket(t, execURL(t, s, wanted{stdout: true}, "flood"), "v5.channel.k8s.io")
		go func() {
			for ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Minute)) == nil {
				time.Sleep(time.Second)
			}
		}()
	},
	"forward over spdy": func(t *testing.T, s *Server, roots *x509.CertPool) {
		openStuckPort(stuckSPDY(t, forwardURL(t, s), roots, "portforward.k8s.io"))
	},
	"forward over spdy in a WebSocket": func(t *testing.T, s *Server, _ *x509.CertPool) {
		openStuckPort(streamOpener(t, &tunnelConn{ws: dialWebSocket(t, forwardURL(t, s), "SPDY/3.1+portforward.k8s.io")}))
	},
	"forward over WebSocket v4": func(t *testing.T, s *Server, _ *x509.CertPool) {
		dialWebSocket(t, forwardURL(t, s, 80), "v4.channel.k8s.io")
	},
}

// stuckSPDY is a connection that nobody reads, until the test ends.
func stuckSPDY(t *testing.T, target string, roots *x509.CertPool, protocol string) (open func(headers ...string)) {
	t.Helper()
	raw, _, err := upgradeSPDY(target, roots, protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	return streamOpener(t, raw)
}

func openStuckPort(open func(headers ...string)) {
	for _, kind := range []string{"error", "data"} {
		open("port", "80", "requestID", "0", "streamType", kind)
	}
}

// A client that stands still and reads nothing, like kubectl in a pipe to a pager, is let go after the idle timeout, with all that
// waits for it to read. So is one over TLS, which ends with a message that such a client does not take either.
//
// Rows: S50 (part)
func TestAnIdleClientThatReadsNothingIsLetGo(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots := writeCertificate(t, certFile, keyFile)
	gate := leakGate(t)
	t.Run("", func(t *testing.T) {
		for name, connect := range stuckClients {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				isLetGo(t, Options{}, func(t *testing.T, s *Server) { connect(t, s, nil) })
			})
		}
		t.Run("exec over spdy v4 and TLS", func(t *testing.T) {
			t.Parallel()
			isLetGo(t, Options{CertFile: certFile, KeyFile: keyFile}, func(t *testing.T, s *Server) { stuckClients["exec over spdy v4"](t, s, roots) })
		})
	})
	gate()
}

// isLetGo waits for the end of a session whose client connects and stands still, and so for the Runtime, which writes to it.
func isLetGo(t *testing.T, opts Options, connect func(*testing.T, *Server)) {
	t.Helper()
	opts.IdleTimeout = 500 * time.Millisecond
	var flooded atomic.Bool
	flood := func(ctx context.Context, out io.Writer) error {
		for {
			if _, err := out.Write(make([]byte, 32<<10)); err != nil {
				<-ctx.Done()
				return err
			}
			flooded.Store(true)
		}
	}
	r := &testRuntime{
		exec: func(ctx context.Context, _ string, _ []string, s Streams) (int, error) {
			return 0, flood(ctx, s.Stdout)
		},
		forward: func(ctx context.Context, _ string, _ int32, stream io.ReadWriteCloser) error {
			return flood(ctx, stream)
		},
	}
	// On a busy machine the time may be over before the streams are open.
	for !flooded.Load() && !t.Failed() {
		s := start(t, opts, r)
		connect(t, s)
		s.sessions.close()
		select {
		case <-s.sessions.waited():
		case <-time.After(time.Minute):
			t.Error("the session stands")
		}
	}
}

// A session is idle too where a process takes no input and what the client sent fills every buffer. Then nothing reads from the
// connection, so that no deadline of it ends anything.
//
// Rows: S50 (part)
func TestAnIdleSessionWhoseInputNobodyReadsEnds(t *testing.T) {
	each(t, []string{"v4.channel.k8s.io", "v5.channel.k8s.io"}, func(t *testing.T, protocol string) {
		s := start(t, Options{IdleTimeout: 500 * time.Millisecond}, &testRuntime{attach: func(ctx context.Context, _ string, _ Streams) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		ws := dialWebSocket(t, attachURL(t, s, wanted{stdin: true, stdout: true}), protocol)
		go func() {
			for ws.WriteMessage(websocket.BinaryMessage, make([]byte, 32<<10)) == nil { // of channel 0
			}
		}()
		s.sessions.close()
		select {
		case <-s.sessions.waited():
		case <-time.After(time.Minute):
			t.Error("the session stands")
		}
	})
}

// Bytes in either direction are traffic, and begin the time anew.
//
// Rows: S50 (part)
func TestAConnectionIsIdleAfterItsLastByte(t *testing.T) {
	raw, peer := net.Pipe()
	defer peer.Close()
	c := newClientConn(raw, nil, &Options{silence: time.Minute, IdleTimeout: time.Hour}, func(error) {})
	defer c.Close()
	now := time.Now()
	for _, step := range []struct {
		name  string
		move  func()
		after time.Duration // since the step before
		over  bool
	}{
		{"the first look", func() {}, 0, false},
		{"not yet", func() {}, time.Hour, false},
		{"the client has sent something", func() { go peer.Write([]byte("x")); _, _ = c.Read(make([]byte, 9)) }, time.Hour, false},
		{"the client has taken something", func() { go peer.Read(make([]byte, 9)); _, _ = c.Write([]byte("x")) }, time.Hour, false},
		{"not yet again", func() {}, time.Hour, false},
		{"its own end has had its time", func() {}, idleGrace + 1, true},
	} {
		step.move()
		now = now.Add(step.after)
		if over := c.idle.over(now); over != step.over {
			t.Errorf("%s: over %v", step.name, over)
		}
	}
}
