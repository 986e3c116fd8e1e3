package streaming

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Server hands out URLs and serves those who come for them. Its methods may be called from many goroutines.
type Server struct{}

// New checks the options and binds the address. The server holds the port until Shutdown, also where Serve is never called.
// Errors are of class ErrInvalidArgument (options), or the listener's.
func New(opts Options, runtime Runtime) (*Server, error) { panic("being written") }

// Serve accepts clients until Shutdown (it then returns nil) or until ctx ends (it then cuts every session, waits for
// their Runtime calls to return, and returns nil), or returns the listener's error. It is called once.
func (s *Server) Serve(ctx context.Context) error { panic("being written") }

// Shutdown refuses new URLs and clients and waits for the sessions to end; when ctx ends it cuts them, still waits for
// their Runtime calls to return, and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error { panic("being written") }

// URL is the base of the URLs handed out: scheme, and the bound host and port ("http://127.0.0.1:10010").
func (s *Server) URL() string { panic("being written") }

// ExecURL answers CRI Exec. Errors: ErrInvalidArgument for a request without container or stream, or with stderr on a
// terminal; ErrResourceExhausted when MaxInFlight URLs wait; ErrUnavailable after Shutdown.
func (s *Server) ExecURL(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	panic("being written")
}

// AttachURL answers CRI Attach, with ExecURL's errors.
func (s *Server) AttachURL(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	panic("being written")
}

// PortForwardURL answers CRI PortForward, with ExecURL's errors: ErrInvalidArgument for a request without pod or with a
// port outside 1 to 65535.
func (s *Server) PortForwardURL(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	panic("being written")
}
