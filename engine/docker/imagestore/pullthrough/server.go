// Package pullthrough is a read-only registry on loopback that fetches one repository for one pull from the endpoints of a
// hosts.toml. It gives a Docker Engine, which knows mirrors for docker.io only, mirrors, CAs and headers for any registry.
//
// A caller opens a Session for each pull, lets Docker pull Session.Name with a tag or a digest, and closes it. The name
// holds a secret of 128 bits that is valid as long as the session is; every other name is unknown, and nothing listens
// while no session is open. Credentials never pass through Docker: they are sent from here, each to its own host only.
package pullthrough

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"

	"crishim/internal/accept"
	"crishim/registry"
)

// helperPath is the first part of the repository path of every session.
const helperPath = "crishim-pull"

// helperName is what Session.Name looks like.
var helperName = regexp.MustCompile(`^127\.0\.0\.1:[0-9]{1,5}/` + helperPath + `/[0-9a-f]{32}$`)

// IsHelper says whether a reference, with or without tag or digest, is one of a session: ours for the time of a pull,
// never an image's own name.
func IsHelper(ref string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	return err == nil && helperName.MatchString(named.Name())
}

// Server serves the open sessions. The zero value is ready.
type Server struct {
	// StallTimeout is how long an endpoint may send nothing, header or body, before the next one is tried. 0 is 30 s.
	StallTimeout time.Duration

	mu       sync.Mutex
	sessions map[[sha256.Size]byte]*Session // by the hash of the secret, so that comparing leaks nothing of it
	listener net.Listener
	http     *http.Server
	served   chan struct{} // closed when http has ended
	// strangers are the connections without the secret of a pull.
	strangers accept.Strangers
}

// Session is one pull. Its methods may be called from any goroutine.
type Session struct {
	server    *Server
	key       [sha256.Size]byte
	name      string
	stall     time.Duration
	ctx       context.Context
	cancel    context.CancelFunc
	upstreams []*registry.Endpoint

	mu      sync.Mutex
	failure error
}

// Open starts a session, which ends with ctx or Close. Close must be called.
func (s *Server) Open(ctx context.Context, pull registry.Pull) (*Session, error) {
	var secret [16]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, fmt.Errorf("make the secret of a pull: %w", err)
	}
	text := hex.EncodeToString(secret[:])

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		if err := s.listen(ctx); err != nil {
			return nil, err
		}
	}
	session := &Session{
		server: s, key: sha256.Sum256([]byte(text)),
		name: fmt.Sprintf("%s/%s/%s", s.listener.Addr(), helperPath, text),
	}
	session.ctx, session.cancel = context.WithCancel(ctx)
	stall := s.StallTimeout
	if stall == 0 {
		stall = registry.DefaultStall
	}
	session.stall = stall
	session.upstreams = pull.Open(stall)
	if s.sessions == nil {
		s.sessions = map[[sha256.Size]byte]*Session{}
	}
	s.sessions[session.key] = session
	return session, nil
}

// listen starts serving; the caller holds s.mu.
func (s *Server) listen(ctx context.Context) error {
	var config net.ListenConfig
	// The listener serves other pulls too: it must not end with this one.
	listener, err := config.Listen(context.WithoutCancel(ctx), "tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for pulls through a mirror: %w", err)
	}
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // aborted copies, which the session reports itself
	}
	s.strangers.Watch(server)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(accept.Patiently(listener)) // ends by Close; nobody else could act on another error than Docker, which sees it
	}()
	s.listener, s.http, s.served = listener, server, served
	return nil
}

// Name is the repository that Docker pulls.
func (p *Session) Name() string { return p.name }

// Err is what the registry's endpoints answered last when none could serve, with a class of errdefs (ErrNotFound,
// ErrUnavailable, ErrPermissionDenied, …); nil while they served.
func (p *Session) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failure
}

// Close ends the session and, with the last one, the listener.
func (p *Session) Close() {
	p.cancel()
	for _, u := range p.upstreams {
		u.Close()
	}
	s := p.server
	s.mu.Lock()
	delete(s.sessions, p.key)
	var server *http.Server
	served := s.served
	if len(s.sessions) == 0 && s.listener != nil {
		server = s.http
		s.listener, s.http, s.served = nil, nil, nil
	}
	s.mu.Unlock()
	if server != nil {
		_ = server.Close() // the listener and idle connections: nothing that could be done on failure
		<-served
	}
}

// Serves says whether the helper reference is one of a session that is open.
func (s *Server) Serves(helper string) bool {
	named, err := reference.ParseNormalizedNamed(helper)
	if err != nil {
		return false
	}
	name := named.Name()
	session := s.session(name[strings.LastIndexByte(name, '/')+1:])
	return session != nil && session.name == name
}

func (s *Server) session(secret string) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[sha256.Sum256([]byte(secret))]
}

// ServeHTTP answers the pull half of the distribution API (opencontainers/distribution-spec, end-1 to end-3).
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "only pulls are served here")
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if ok && rest == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	rest, ok = strings.CutPrefix(rest, helperPath+"/")
	secret, rest, _ := strings.Cut(rest, "/")
	session := s.session(secret)
	if !ok || session == nil {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "no such repository")
		return
	}
	s.strangers.LetIn(r) // a blob may take hours
	what, err := registry.ParseTarget(rest)
	if err != nil || r.URL.RawPath != "" {
		fail(w, http.StatusBadRequest, "UNSUPPORTED", "neither a manifest nor a blob")
		return
	}
	session.serve(w, r, what)
}

// fail writes an error as the distribution API does.
func fail(w http.ResponseWriter, status int, code, message string) {
	type detail struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, err := json.Marshal(map[string][]detail{"errors": {{code, message}}})
	if err != nil {
		panic(err) // strings always marshal
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client left
}
