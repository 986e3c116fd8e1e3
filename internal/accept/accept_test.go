package accept

import (
	"errors"
	"net"
	"net/http"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// broken is a listener that fails a few times, and then is closed.
type broken struct {
	net.Listener
	errs []error
}

func (b *broken) Accept() (net.Conn, error) {
	if len(b.errs) == 0 {
		return nil, &net.OpError{Op: "accept", Err: net.ErrClosed}
	}
	err := b.errs[0]
	b.errs = b.errs[1:]
	return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
}

func (b *broken) Close() error   { return nil }
func (b *broken) Addr() net.Addr { return &net.UnixAddr{Name: "broken"} }

func TestServersOutliveWhatPasses(t *testing.T) {
	for name, serve := range map[string]func(net.Listener) error{
		"net/http": func(l net.Listener) error { return (&http.Server{}).Serve(l) },
		"gRPC":     func(l net.Listener) error { return grpc.NewServer().Serve(l) },
	} {
		l := &broken{errs: []error{unix.ENOMEM, unix.ENOBUFS, unix.EMFILE}}
		if err := serve(Patiently(l)); !errors.Is(err, net.ErrClosed) || len(l.errs) != 0 {
			t.Errorf("%s ended with %v, %d errors before its listener did", name, err, len(l.errs))
		}
	}
}
