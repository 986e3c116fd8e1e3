package streaming

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// 14: streams were served on every address to anybody, and the server's goroutine wrote the address that others read. See
// server/peerfaults_test.go.
// Rows: S48, S47
func TestPeerFault14StreamsAreOnLoopbackBehindTokens(t *testing.T) {
	s, err := New(Options{}, &testRuntime{exec: func(context.Context, string, []string, Streams) (int, error) { return 0, nil }})
	if err != nil {
		t.Fatal(err)
	}
	// The address is known, and the same, before Serve, while it begins, and after.
	ctx, cancel := context.WithCancel(t.Context())
	var serving, asking sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	urls := make([]string, 20)
	for i := range urls {
		asking.Go(func() {
			resp, err := s.ExecURL(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true})
			if err != nil {
				t.Error(err)
				return
			}
			urls[i] = resp.Url
		})
	}
	serving.Go(func() { _ = s.Serve(ctx) })
	asking.Wait()
	host := ""
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || !net.ParseIP(u.Hostname()).IsLoopback() || u.Port() == "0" || host != "" && u.Host != host {
			t.Fatalf("URL %q, %v", raw, err)
		}
		host = u.Host
		if token := u.Path[strings.LastIndexByte(u.Path, '/')+1:]; len(token)*6 < 128 {
			t.Errorf("a token of %d bits: %q", len(token)*6, token)
		}
	}
	for _, path := range []string{"/", "/exec/", "/exec/c", "/exec/" + strings.Repeat("A", 43), "/attach/c", "/portforward/p"} {
		if code := get(t, "http://"+host+path); code != http.StatusNotFound {
			t.Errorf("%s without a token: %d", path, code)
		}
	}
	for _, address := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		if _, err := New(Options{Address: address}, &testRuntime{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s was not refused: %v", address, err)
		}
	}
}
