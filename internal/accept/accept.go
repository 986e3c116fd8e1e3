// Package accept keeps servers at work through what passes: those of gRPC and net/http end when Accept fails, but for errors that
// call themselves temporary, and Go's do so for a lack of descriptors only, not of the kernel's memory. It also tells which Unix
// sockets are somebody's, before a server makes its own.
package accept

import (
	"errors"
	"net"
)

// Patiently is the listener, whose every error but its end is temporary.
func Patiently(l net.Listener) net.Listener { return patient{l} }

type patient struct{ net.Listener }

// Accept implements net.Listener.
func (l patient) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return nil, passing{err}
	}
	return conn, err
}

// passing is a net.Error.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

func (passing) Timeout() bool { return false }

// Temporary is what both servers ask for.
func (passing) Temporary() bool { return true }
