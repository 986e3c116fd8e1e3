package accept

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
)

// MaxStrangers is how many connections Strangers keeps: each costs the daemon a descriptor and some 20 KiB.
const MaxStrangers = 1024

// Strangers bounds the connections to a http.Server whose clients have shown nothing yet that lets them in, such as a token.
// Everybody on the node, and each pod in its network, may open as many as there are descriptors and say nothing on them. The
// oldest is closed for a new one: who has come for something says so at once, and is let in before it is the oldest. The zero
// value is ready.
type Strangers struct {
	mu     sync.Mutex
	oldest list.List // of net.Conn
	at     map[net.Conn]*list.Element
}

// Watch makes server tell of its connections. A client that is hijacked is let in.
func (s *Strangers) Watch(server *http.Server) {
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.come(conn)
		case http.StateHijacked, http.StateClosed:
			s.forget(conn)
		}
	}
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, conn)
	}
}

type connKey struct{}

// LetIn says that who has made the request may stay for as long as it likes.
func (s *Strangers) LetIn(r *http.Request) {
	if conn, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		s.forget(conn)
	}
}

func (s *Strangers) come(conn net.Conn) {
	s.mu.Lock()
	if s.at == nil {
		s.at = map[net.Conn]*list.Element{}
	}
	s.at[conn] = s.oldest.PushBack(conn)
	var goes net.Conn
	if len(s.at) > MaxStrangers {
		goes = s.oldest.Remove(s.oldest.Front()).(net.Conn)
		delete(s.at, goes)
	}
	s.mu.Unlock()
	if goes != nil {
		_ = goes.Close()
	}
}

func (s *Strangers) forget(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.at[conn]; e != nil {
		s.oldest.Remove(e)
		delete(s.at, conn)
	}
}
