package streaming

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// serveTunnel serves SPDY/3.1+portforward.k8s.io: the bytes of a SPDY connection in the binary messages of a WebSocket, as
// kubectl's port-forward has sent them since Kubernetes 1.30 (KEP-4006).
func (s *Server) serveTunnel(w http.ResponseWriter, r *http.Request, podID string, f *forwards) {
	ws, err := upgradeWebSocket(w, r, portforward.WebsocketsSPDYTunnelingPortForwardV1)
	if err != nil {
		return
	}
	conn := &tunnelConn{ws: ws}
	defer conn.Close()
	if ws.Subprotocol() == "" {
		return // it offered a tunnel for something else
	}
	// The WebSocket's handshake stands for SPDY's, which cri-streaming wants to see.
	inner := r.Clone(r.Context())
	inner.Header.Del(wsstreamProtocolHeader)
	inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
	s.servePorts(&tunnelResponse{header: http.Header{}, conn: newSPDYConn(r.Context(), conn, 0)}, inner, podID, f)
}

const wsstreamProtocolHeader = "Sec-Websocket-Protocol"

// tunnelResponse answers a request that was never sent: its answer is dropped, its connection is the tunnel.
type tunnelResponse struct {
	header http.Header
	conn   net.Conn
}

func (t *tunnelResponse) Header() http.Header         { return t.header }
func (t *tunnelResponse) WriteHeader(int)             {}
func (t *tunnelResponse) Write(p []byte) (int, error) { return len(p), nil }
func (t *tunnelResponse) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReaderSize(t.conn, 32<<10), bufio.NewWriter(t.conn)), nil
}

// tunnelConn is a byte stream in a WebSocket's messages. It has one reader and one writer, spdystream's.
type tunnelConn struct {
	ws      *websocket.Conn
	message io.Reader // the message being read; nil between two
}

func (t *tunnelConn) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			_, message, err := t.ws.NextReader()
			if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived) {
				return 0, io.EOF
			}
			if err != nil {
				return 0, err
			}
			t.message = message
		}
		n, err := t.message.Read(p)
		if errors.Is(err, io.EOF) {
			t.message, err = nil, nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func (t *tunnelConn) Write(p []byte) (int, error) {
	if err := t.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close tells the client, and may be repeated.
func (t *tunnelConn) Close() error {
	closing := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = t.ws.WriteControl(websocket.CloseMessage, closing, time.Now().Add(controlTimeout))
	return t.ws.Close()
}

func (t *tunnelConn) LocalAddr() net.Addr  { return t.ws.LocalAddr() }
func (t *tunnelConn) RemoteAddr() net.Addr { return t.ws.RemoteAddr() }
func (t *tunnelConn) SetDeadline(d time.Time) error {
	return errors.Join(t.SetReadDeadline(d), t.SetWriteDeadline(d))
}
func (t *tunnelConn) SetReadDeadline(d time.Time) error  { return t.ws.SetReadDeadline(d) }
func (t *tunnelConn) SetWriteDeadline(d time.Time) error { return t.ws.SetWriteDeadline(d) }
