package server

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim/engine"
	"crishim/engine/native/image"
)

// What a registry answers is in the error of a pull, of which a kubelet makes the pod's status.
func TestTheTextOfAnErrorIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, strings.Repeat("\x01é", 300<<10)+"\n\n") // no HTTP, which net/http quotes
			_ = c.Close()
		}
	}()
	store, err := image.Open(image.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	_, err = store.PullImage(t.Context(), &engine.PullSpec{Ref: l.Addr().String() + "/app:v1"})
	if err == nil {
		t.Fatal("that is no registry")
	}
	got := status.Convert(toStatus(err))
	if n := len(got.Message()); n > 20<<10 || !utf8.ValidString(got.Message()) {
		t.Errorf("of %d bytes of text %d are told", len(err.Error()), n)
	}
	if got.Code() != codes.Unavailable || !strings.HasPrefix(got.Message(), crierrors.ErrRegistryUnavailable.Error()) {
		t.Errorf("%v: %.100s", got.Code(), got.Message())
	}
	if short := fmt.Errorf("there is none: %w", errdefs.ErrNotFound); status.Convert(toStatus(short)).Message() != short.Error() {
		t.Errorf("%v", toStatus(short))
	}
}
