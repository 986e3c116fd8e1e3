package harness

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/gorilla/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Forward is one connection through a port-forward.
type Forward struct {
	httpstream.Stream // the data
	errors            httpstream.Stream
	connection        httpstream.Connection
}

// ForwardSPDY opens a port-forward and one connection to a port of the pod.
func ForwardSPDY(address string, port int) (*Forward, error) {
	connection, _, err := dialSPDY(address, "portforward.k8s.io")
	if err != nil {
		return nil, err
	}
	return firstForward(connection, port)
}

// ForwardTunnel is ForwardSPDY with SPDY in the messages of a WebSocket, as kubectl has it by default.
func ForwardTunnel(address string, port int) (*Forward, error) {
	ws, err := dialWebSocket(context.Background(), address, "SPDY/3.1+portforward.k8s.io")
	if err != nil {
		return nil, err
	}
	connection, err := spdy.NewClientConnection(&tunnel{Conn: ws.NetConn(), ws: ws})
	if err != nil {
		_ = ws.Close()
		return nil, err
	}
	return firstForward(connection, port)
}

func firstForward(connection httpstream.Connection, port int) (*Forward, error) {
	f, err := openForward(connection, port, 1)
	if err != nil {
		_ = connection.Close()
	}
	return f, err
}

func openForward(connection httpstream.Connection, port, request int) (*Forward, error) {
	headers := http.Header{"Port": {strconv.Itoa(port)}, "Requestid": {strconv.Itoa(request)}, "Streamtype": {"error"}}
	errorStream, err := connection.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	_ = errorStream.Close() // our direction
	headers = headers.Clone()
	headers.Set("streamType", "data")
	data, err := connection.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	return &Forward{Stream: data, errors: errorStream, connection: connection}, nil
}

// Another opens a further connection over the same upgraded one; request numbers must differ.
func (f *Forward) Another(port, request int) (*Forward, error) {
	return openForward(f.connection, port, request)
}

// Err waits until the server is done with the connection and returns what it reported.
func (f *Forward) Err() error {
	data, err := io.ReadAll(f.errors)
	if err != nil {
		return err
	}
	if len(data) > 0 {
		return errors.New(string(data))
	}
	return nil
}

// End closes everything.
func (f *Forward) End() { _ = f.connection.Close() }

// tunnel is a byte stream in the binary messages of a WebSocket; it has the network connection's addresses and deadlines.
type tunnel struct {
	net.Conn
	ws   *websocket.Conn
	rest io.Reader // of the message that is being read
}

func (c *tunnel) Read(p []byte) (int, error) {
	for {
		if c.rest == nil {
			kind, message, err := c.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, fmt.Errorf("a message of type %d in a tunnel", kind)
			}
			c.rest = message
		}
		n, err := c.rest.Read(p)
		if err == io.EOF { // of the message
			c.rest, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *tunnel) Write(p []byte) (int, error) {
	if err := c.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ChannelForward is a port-forward over WebSocket, protocol v4: a channel for data and one for what goes wrong, and no way to say
// that no more data comes.
type ChannelForward struct {
	ws   *websocket.Conn
	rest []byte
}

// ForwardWebSocket opens a port-forward to one port of the pod.
func ForwardWebSocket(address string, port int) (*ChannelForward, error) {
	ws, err := dialWebSocket(context.Background(), address+"?port="+strconv.Itoa(port), "v4.channel.k8s.io")
	if err != nil {
		return nil, err
	}
	f := &ChannelForward{ws: ws}
	for range 2 { // each channel begins with the port that it is for
		_, message, err := ws.ReadMessage()
		if err == nil && (len(message) != 3 || int(binary.LittleEndian.Uint16(message[1:])) != port) {
			err = fmt.Errorf("a channel begins with %q", message)
		}
		if err != nil {
			_ = ws.Close()
			return nil, err
		}
	}
	return f, nil
}

// Read reads what the port sends; an error that the server reports is returned.
func (f *ChannelForward) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		_, message, err := f.ws.ReadMessage()
		if err != nil {
			return 0, err
		}
		switch {
		case len(message) > 1 && message[0] == 0:
			f.rest = message[1:]
		case len(message) > 1 && message[0] == 1:
			return 0, errors.New(string(message[1:]))
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// Write sends to the port.
func (f *ChannelForward) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		chunk := p[sent:min(len(p), sent+16<<10)]
		if err := f.ws.WriteMessage(websocket.BinaryMessage, append([]byte{0}, chunk...)); err != nil {
			return sent, err
		}
		sent += len(chunk)
	}
	return sent, nil
}

// Err waits for what the server reports.
func (f *ChannelForward) Err() error {
	_, err := io.Copy(io.Discard, f)
	return err
}

// End closes the connection.
func (f *ChannelForward) End() { _ = f.ws.Close() }

// dialWebSocket agrees on a protocol; over TLS it takes any certificate.
func dialWebSocket(ctx context.Context, address, protocol string) (*websocket.Conn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	// Each message in one frame, as client-go sends it: the servers of Kubernetes take every frame for a message.
	dialer := websocket.Dialer{Subprotocols: []string{protocol}, TLSClientConfig: selfSigned, WriteBufferSize: 64 << 10}
	conn, reply, err := dialer.DialContext(ctx, u.String(), nil)
	if err != nil {
		if reply != nil {
			return nil, fmt.Errorf("dialling %s: %w (%s)", u, err, reply.Status)
		}
		return nil, fmt.Errorf("dialling %s: %w", u, err)
	}
	if conn.Subprotocol() != protocol {
		_ = conn.Close()
		return nil, fmt.Errorf("protocol %q was agreed on", conn.Subprotocol())
	}
	return conn, nil
}
