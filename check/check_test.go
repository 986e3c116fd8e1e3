package check

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// A runtime that takes a connection and says nothing must not keep the command, which Ctrl-C tells by the context alone.
func TestAStepEndsWithItsContextWhateverTheRuntimeDoes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		cancel()
		<-t.Context().Done()
		_ = c.Close()
	}()
	s := step{"exec stream", false, func(ctx context.Context) (string, error) {
		_, _, err := execOverSPDY(ctx, "http://"+l.Addr().String()+"/exec/token", nil)
		return "", err
	}}
	ended := make(chan error, 1)
	go func() { _, err := s.bounded(ctx); ended <- err }()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on for ever")
	}
}
