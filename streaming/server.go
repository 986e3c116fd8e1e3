package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/internal/accept"
)

const (
	readHeaderTimeout = 10 * time.Second
	maxHeaderBytes    = 64 << 10 // a kubelet's are below 1 KiB
)

// Server hands out URLs and serves those who come for them. Its methods may be called from many goroutines.
type Server struct {
	opts     Options
	runtime  Runtime
	listener net.Listener
	url      string
	http     *http.Server
	tokens   *tokens
	guesses  guesses
	// strangers are the connections without a right token.
	strangers accept.Strangers

	// sessions are the clients let in, calls what of the Runtime runs for them. A client may be let in and gone while
	// cri-streaming waits for its streams, for as long as CreationTimeout: such a session is not waited for when all are cut.
	sessions, calls group

	mu  sync.Mutex
	cut context.CancelFunc // ends every session; nil before Serve
}

// New checks the options and binds the address. The server holds the port until Shutdown, also where Serve is never called.
// Errors are of class ErrInvalidArgument (options), or the listener's.
func New(opts Options, runtime Runtime) (*Server, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	tlsConfig, err := opts.tlsConfig()
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", opts.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for streaming clients on %s: %w", opts.Address, err)
	}
	s := &Server{opts: opts, runtime: runtime, tokens: newTokens(opts.TokenTTL, opts.MaxInFlight)}
	s.url = "http://" + clientHost(listener.Addr())
	if tlsConfig != nil {
		s.url = "https://" + clientHost(listener.Addr())
		listener = tls.NewListener(listener, tlsConfig)
	}
	s.listener = accept.Patiently(listener)
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readHeaderTimeout,
		// Also of a body, which net/http reads before it answers, and of a client that does not read its answers. Sessions have no
		// such bound: their connections are hijacked.
		ReadTimeout:    readHeaderTimeout,
		WriteTimeout:   readHeaderTimeout,
		IdleTimeout:    readHeaderTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:       klog.NewStandardLogger("ERROR"),
		// Upgrades exist in HTTP/1.1 only.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	s.strangers.Watch(s.http)
	return s, nil
}

// clientHost is what a client on this host dials: the bound address, or loopback where every address was bound.
func clientHost(addr net.Addr) string {
	bound := addr.(*net.TCPAddr).AddrPort()
	if bound.Addr().IsUnspecified() {
		bound = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), bound.Port())
	}
	return netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port()).String()
}

// Serve accepts clients until Shutdown (it then returns nil) or until ctx ends (it then cuts every session, waits for
// their Runtime calls to return, and returns nil), or returns the listener's error. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	sessions, cut := context.WithCancel(ctx)
	defer cut()
	s.mu.Lock()
	s.cut = cut
	s.mu.Unlock()
	s.http.BaseContext = func(net.Listener) context.Context { return sessions }
	stop := context.AfterFunc(ctx, s.close)
	defer stop()

	err := s.http.Serve(s.listener)
	s.close()
	s.drain(ctx, cut)
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streaming clients on %s: %w", s.url, err)
	}
	return nil
}

// Shutdown refuses new URLs and clients and waits for the sessions to end; when ctx ends it cuts them, still waits for
// their Runtime calls to return, and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.close()
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	if cut == nil {
		return nil
	}
	return s.drain(ctx, cut)
}

// drain waits for the sessions, or when ctx ends, cuts them and waits for what runs of the Runtime.
func (s *Server) drain(ctx context.Context, cut context.CancelFunc) error {
	select {
	case <-s.sessions.waited():
		return nil
	case <-ctx.Done():
	}
	cut()
	s.calls.close()
	timer := time.NewTimer(cutLimit)
	defer timer.Stop()
	select {
	case <-s.calls.waited():
	case <-timer.C:
		klog.InfoS("Streaming sessions that were cut do not end; they are left behind", "after", cutLimit)
	}
	return ctx.Err()
}

// cutLimit bounds the wait for sessions that were cut: what is stuck in the engine must not keep the daemon from ending.
const cutLimit = 10 * time.Second

// close refuses what is new. Sessions go on: they are hijacked connections, which the HTTP server does not know any more.
func (s *Server) close() {
	s.sessions.close()
	s.tokens.close()
	_ = s.http.Close()
	_ = s.listener.Close() // where Serve was never called
}

// URL is the base of the URLs handed out: scheme, and the bound host and port ("http://127.0.0.1:10010").
func (s *Server) URL() string { return s.url }

// ServeHTTP opens /VERB/TOKEN. Whatever is not a right token is a guess: 404, and 429 above the rate.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	v, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	serve := s.tokens.take(verb(v), token)
	if serve == nil {
		s.refuse(w, r)
		return
	}
	if !s.sessions.begin() {
		http.Error(w, "the streaming server is shutting down", http.StatusServiceUnavailable)
		return
	}
	defer s.sessions.done()
	serve(w, r)
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request) {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	if !s.guesses.allow(peer.Addr().Unmap()) {
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Connection", "close")
		http.Error(w, "too many requests with a wrong token", http.StatusTooManyRequests)
		return
	}
	http.NotFound(w, r)
}

func (s *Server) issue(v verb, serve http.HandlerFunc) (string, error) {
	token, err := s.tokens.issue(v, serve)
	if err != nil {
		return "", err
	}
	return s.url + "/" + string(v) + "/" + token, nil
}

// ExecURL answers CRI Exec. Errors: ErrInvalidArgument for a request without container or stream, or with stderr on a
// terminal; ErrResourceExhausted when MaxInFlight URLs wait; ErrUnavailable after Shutdown.
func (s *Server) ExecURL(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	want := wanted{stdin: req.GetStdin(), stdout: req.GetStdout(), stderr: req.GetStderr(), tty: req.GetTty()}
	if err := want.validate(req.GetContainerId()); err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	url, err := s.issue(verbExec, s.serveExec(req.GetContainerId(), req.GetCmd(), want))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// AttachURL answers CRI Attach, with ExecURL's errors.
func (s *Server) AttachURL(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	want := wanted{stdin: req.GetStdin(), stdout: req.GetStdout(), stderr: req.GetStderr(), tty: req.GetTty()}
	if err := want.validate(req.GetContainerId()); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	url, err := s.issue(verbAttach, s.serveAttach(req.GetContainerId(), want))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// PortForwardURL answers CRI PortForward, with ExecURL's errors: ErrInvalidArgument for a request without pod or with a
// port outside 1 to 65535. A request that names ports opens no others.
func (s *Server) PortForwardURL(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if req.GetPodSandboxId() == "" {
		return nil, fmt.Errorf("port-forward: the request has no pod_sandbox_id: %w", errdefs.ErrInvalidArgument)
	}
	for _, port := range req.GetPort() {
		if err := checkPort(port); err != nil {
			return nil, err
		}
	}
	url, err := s.issue(verbPortForward, s.servePortForward(req.GetPodSandboxId(), req.GetPort()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

func checkPort(port int32) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port-forward: port %s is not within 1 and 65535: %w", strconv.Itoa(int(port)), errdefs.ErrInvalidArgument)
	}
	return nil
}
