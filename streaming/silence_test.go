package streaming

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// A client whose host loses its power or network sends no FIN. It is found, whatever was under way: nothing, output that its
// host never took, output that it had stopped reading before, a forward. One that only stops reading is not taken for it.
//
// Rows: S50 (part)
func TestAClientsHostThatFallsSilentIsFound(t *testing.T) {
	const silence = 2 * time.Second
	ns, listen := testNetNS(t)
	var running atomic.Int32
	wait := func(ctx context.Context, what string) error {
		running.Add(1)
		defer running.Add(-1)
		<-ctx.Done()
		t.Logf("%s: %v", what, context.Cause(ctx))
		return ctx.Err()
	}
	// Each flood ends by its context or by a failed write.
	s := start(t, Options{silence: silence}, &testRuntime{
		exec: func(ctx context.Context, _ string, cmd []string, s Streams) (int, error) {
			if cmd[0] == "idle" {
				return 0, wait(ctx, "idle")
			}
			running.Add(1)
			defer running.Add(-1)
			pause := time.Duration(0)
			if cmd[0] == "talking" {
				pause = 10 * time.Millisecond
			}
			for ctx.Err() == nil {
				if _, err := s.Stdout.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
					return 0, err
				}
				time.Sleep(pause)
			}
			return 0, ctx.Err()
		},
		forward: func(ctx context.Context, _ string, _ int32, stream io.ReadWriteCloser) error {
			return wait(ctx, "forward")
		},
	})
	inside := listen("127.0.0.1:0")
	served := make(chan error, 1)
	web := &http.Server{Handler: s, ReadHeaderTimeout: readHeaderTimeout}
	go func() { served <- web.Serve(inside) }()
	t.Cleanup(func() { _ = web.Close(); <-served })
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := DialPod(ctx, ns, int32(inside.Addr().(*net.TCPAddr).Port))
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c, err
	}
	// Clients that read and one that does not, over SPDY and WebSocket.
	overSPDY := func(target, protocol string) *commandClient {
		t.Helper()
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		raw, _, err := upgradeOver(conn, u, nil, protocol)
		if err != nil {
			t.Fatal(err)
		}
		client, err := spdy.NewClientConnection(raw)
		if err != nil {
			t.Fatal(err)
		}
		if protocol == "portforward.k8s.io" {
			openPort(t, client, 0, 80)
			return nil
		}
		return &commandClient{status: createStream(t, client, "streamType", "error"), stdout: createStream(t, client, "streamType", "stdout")}
	}
	want := wanted{stdout: true}
	overSPDY(execURL(t, s, want, "idle"), "v4.channel.k8s.io")
	talking := overSPDY(execURL(t, s, want, "talking"), "v4.channel.k8s.io")
	go func() { _, _ = io.Copy(io.Discard, talking.stdout) }()
	overSPDY(execURL(t, s, want, "flood"), "v4.channel.k8s.io")
	overSPDY(forwardURL(t, s), "portforward.k8s.io")
	for _, cmd := range []string{"idle", "talking", "flood"} {
		d := websocket.Dialer{Subprotocols: []string{"v5.channel.k8s.io"}, NetDialContext: dial}
		ws, _, err := d.Dial("ws"+execURL(t, s, want, cmd)[len("http"):], nil)
		if err != nil {
			t.Fatal(err)
		}
		if cmd != "flood" {
			go func() {
				for {
					if _, _, err := ws.ReadMessage(); err != nil {
						return
					}
				}
			}()
		}
	}
	if !poll(time.Minute, func() bool { return running.Load() == 7 }) {
		t.Fatalf("%d of 7 run", running.Load())
	}
	// The floods fill the windows; those who do not read are served on.
	time.Sleep(silence * 5 / 4)
	if n := running.Load(); n != 7 {
		t.Fatalf("%d of 7 run, and nobody has gone", n)
	}
	cut(t, ns)
	left := time.Now()
	if !poll(60*time.Second, func() bool { return running.Load() == 0 }) {
		t.Fatalf("%d run on", running.Load())
	}
	t.Logf("found after %v", time.Since(left).Round(time.Millisecond))
}

// cut takes the loopback device of a namespace down: what is connected over it hears nothing more from the other.
func cut(t *testing.T, path string) {
	t.Helper()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := handle.LinkSetDown(lo); err != nil {
		t.Fatal(err)
	}
}
