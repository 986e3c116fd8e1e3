package streaming

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

func (s *Server) servePortForward(podID string, ports []int32) http.HandlerFunc {
	ports = slices.Clone(ports)
	return func(w http.ResponseWriter, r *http.Request) {
		s.session(w, r, 0, func(h *hijacker, r *http.Request) {
			f := &forwards{server: s, ports: ports, ctx: r.Context()}
			defer func() {
				f.running.close()
				f.running.wait() // their streams have been reset
			}()
			if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
				s.serveTunnel(h, r, podID, f)
				return
			}
			s.servePorts(h, r, podID, f)
		})
	}
}

func (s *Server) servePorts(w http.ResponseWriter, r *http.Request, podID string, f *forwards) {
	portforward.ServePortForward(w, r, f, podID, "", &portforward.V4Options{Ports: f.ports},
		s.opts.IdleTimeout, s.opts.CreationTimeout, portforward.SupportedProtocols)
}

// forwards are the connections forwarded in one session. cri-streaming gives each a context that never ends and does not wait
// for it, so both are done here.
type forwards struct {
	server  *Server
	ports   []int32         // what the request named; empty: any
	ctx     context.Context // the session's
	running group
}

// PortForward implements portforward.PortForwarder.
func (f *forwards) PortForward(_ context.Context, podID, _ string, port int32, stream io.ReadWriteCloser) error {
	if s, ok := stream.(interface{ Identifier() uint32 }); ok {
		intakeOf(f.ctx).drop(s.Identifier())
	}
	if !f.running.begin() {
		if r, ok := stream.(resetter); ok {
			_ = r.Reset() // nobody reads what has come of it
		}
		return nil // the session is over
	}
	defer f.running.done()
	err := f.forward(podID, port, stream)
	if err == nil || clientGone(f.ctx) {
		return nil // nobody is there to be told
	}
	if _, ok := stream.(resetter); ok {
		// cri-streaming resets the stream now. A client that has no answer yet would not learn why: an empty write waits for
		// the answer to be sent.
		_, _ = stream.Write(nil)
	}
	return err
}

func (f *forwards) forward(podID string, port int32, stream io.ReadWriteCloser) (err error) {
	if err := checkPort(port); err != nil {
		return err
	}
	if len(f.ports) > 0 && !slices.Contains(f.ports, port) {
		return fmt.Errorf("port %d is not one that was asked for: %w", port, errdefs.ErrInvalidArgument)
	}
	if !f.server.calls.begin() {
		return errShuttingDown
	}
	defer f.server.calls.done()
	// This is a goroutine of cri-streaming's, where a panic would end the daemon.
	defer panicked(&err)
	both := &forwardStream{ReadWriteCloser: stream}
	if err := f.server.runtime.PortForward(f.ctx, podID, port, both); err != nil {
		return err
	}
	_ = both.Close()
	return nil
}

// forwardStream is a client's data stream. A SPDY stream's Close is only the end of our side, and what the client goes on sending
// to a stream that nobody reads would block the connection's other streams: Close ends both sides.
type forwardStream struct {
	io.ReadWriteCloser
	closed atomic.Bool // on our side
}

// CloseWrite tells the client that no more will come; it may go on sending.
func (s *forwardStream) CloseWrite() error {
	s.closed.Store(true)
	if _, ok := s.ReadWriteCloser.(resetter); ok {
		return s.ReadWriteCloser.Close()
	}
	return nil // a WebSocket channel has no half close
}

// WasReset says that the client wants no more. Of this a SPDY stream says nothing, reads end and writes go on; but it is finished
// then, although we have not closed it.
func (s *forwardStream) WasReset() bool {
	finished, ok := s.ReadWriteCloser.(interface{ IsFinished() bool })
	return ok && finished.IsFinished() && !s.closed.Load()
}

func (s *forwardStream) Close() error {
	s.closed.Store(true)
	err := s.ReadWriteCloser.Close()
	if r, ok := s.ReadWriteCloser.(resetter); ok {
		// After our end was sent this is local: the client's end of the stream sees no reset.
		_ = r.Reset()
	}
	return err
}

type resetter interface{ Reset() error }
