package streaming

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const benchBytes = 256 << 20

func BenchmarkExecOutput(b *testing.B) {
	for _, protocol := range exitProtocols {
		b.Run(protocol, func(b *testing.B) {
			s := start(b, Options{}, &testRuntime{exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
				_, err := io.Copy(s.Stdout, io.LimitReader(zeros{}, benchBytes))
				return 0, err
			}})
			b.SetBytes(benchBytes)
			for b.Loop() {
				want := wanted{stdout: true}
				c := dialCommand(b, execURL(b, s, want, "x"), want, protocol)
				go func() { _, _ = io.Copy(io.Discard, c.status) }()
				if n, err := io.Copy(io.Discard, c.stdout); n != benchBytes || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// BenchmarkExecOutputBare is the bar: cri-streaming's ServeExec over the same source, without this package.
func BenchmarkExecOutputBare(b *testing.B) {
	for _, protocol := range []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io"} {
		b.Run(protocol, func(b *testing.B) {
			run := executor(func(_ context.Context, s Streams) error {
				_, err := io.Copy(s.Stdout, io.LimitReader(zeros{}, benchBytes))
				return err
			})
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				remotecommand.ServeExec(w, r, run, "", "", "", nil, &remotecommand.Options{Stdout: true},
					time.Hour, time.Minute, remotecommand.SupportedStreamingProtocols)
			}))
			b.Cleanup(s.Close)
			b.SetBytes(benchBytes)
			for b.Loop() {
				c := dialCommand(b, s.URL, wanted{stdout: true}, protocol)
				go func() { _, _ = io.Copy(io.Discard, c.status) }()
				if n, err := io.Copy(io.Discard, c.stdout); n != benchBytes || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkPortForward(b *testing.B) {
	path, listen := testNetNS(b)
	port := serveEach(listen("127.0.0.1:0"), func(c net.Conn) {
		buf := make([]byte, 256<<10)
		for sent := 0; sent < benchBytes; sent += len(buf) {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	s := start(b, Options{}, forwarder(path))
	for name, dial := range forwardClients {
		b.Run(name, func(b *testing.B) {
			conn := dial(b, forwardURL(b, s))
			b.SetBytes(benchBytes)
			id := 0
			for b.Loop() {
				id++
				data, _ := openPort(b, conn, id, port)
				if n, err := io.Copy(io.Discard, data); n != benchBytes || err != nil {
					b.Fatal(n, err)
				}
				_ = data.Close()
			}
		})
	}
	b.Run("one request", func(b *testing.B) {
		small := serveEach(listen("127.0.0.1:0"), echo)
		conn := forwardClients["spdy"](b, forwardURL(b, s))
		id := 0
		for b.Loop() {
			id++
			if a, f := exchange(b, conn, id, small, "x"); a != "echo:x" {
				b.Fatal(a, f)
			}
		}
	})
}
