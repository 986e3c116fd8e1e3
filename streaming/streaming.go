// Package streaming is the HTTP server behind CRI's Exec, Attach and PortForward: the gRPC call gets a URL with a
// one-time token, and the client that comes for it is connected to the Runtime.
//
// A caller makes a Server with New, which binds the address (so URLs are known at once), runs Serve, answers the three
// RPCs with ExecURL, AttachURL and PortForwardURL, and ends with Shutdown. Its Runtime may use Forward for port-forward.
//
// Protocols: exec and attach over SPDY v1 to v4 (served by k8s.io/cri-streaming) and WebSocket (channel.k8s.io, v4 and v5, served
// here); port-forward over SPDY, WebSocket v4 and SPDY tunnelled in WebSocket (served here).
package streaming

import (
	"context"
	"crypto/tls"
	"io"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Runtime does the work once a client has come. Each method's context ends when the client is gone (at most 5 s after),
// when the connection was idle for IdleTimeout, and when the server is shut down; the method then ends what it started
// (an exec's process too) and returns. Streams are not used after the method has returned.
type Runtime interface {
	// Exec runs cmd in a container and returns its exit code; err is for what kept it from running or being awaited.
	Exec(ctx context.Context, containerID string, cmd []string, streams Streams) (exitCode int, err error)
	// Attach connects the streams to the container's first process until that ends or ctx does. Stdin that ends is
	// the client's half close.
	Attach(ctx context.Context, containerID string, streams Streams) error
	// PortForward connects stream to the port in the pod until either side ends. It is called once for each connection
	// that a client forwards, from many goroutines.
	PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error
}

// Streams are the client's ends of an exec or attach. A stream that the request did not ask for is nil. A failed write
// to Stdout or Stderr means that the client no longer takes it.
type Streams struct {
	Stdin  io.Reader
	Stdout io.WriteCloser
	Stderr io.WriteCloser // nil with TTY
	TTY    bool
	// Resize delivers terminal sizes and is closed when no more will come; nil without TTY. It need not be read.
	Resize <-chan TerminalSize
}

// TerminalSize is in characters: Width columns and Height rows.
type TerminalSize = remotecommand.TerminalSize

// Options are the server's settings; zero values take the defaults.
type Options struct {
	// Address is host:port, default 127.0.0.1:0 (a free port). Other than a loopback address is refused without AllowRemote.
	Address string
	// AllowRemote permits an Address that other hosts reach; the token is then the only protection, so use TLS.
	AllowRemote bool
	// CertFile and KeyFile (PEM), or TLS, make the server speak TLS 1.2 or later; files that change are read again. With all
	// empty it speaks plain HTTP.
	CertFile, KeyFile string
	TLS               *tls.Config
	// IdleTimeout ends a connection without traffic (default 4 h), also where the client does not read what waits for it,
	// CreationTimeout one whose client does not open the streams that it asked for (default 30 s); TokenTTL is how long a URL
	// waits for its client (default 1 min).
	IdleTimeout     time.Duration
	CreationTimeout time.Duration
	TokenTTL        time.Duration
	// MaxInFlight bounds the URLs that wait for their client (default 1000).
	MaxInFlight int

	// silence is how long a client's host that answers nothing is waited for: one that lost its power or network (default 30 s).
	silence time.Duration
}
