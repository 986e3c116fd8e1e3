package streaming

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// dataFrame is SPDY's.
func dataFrame(stream byte, p []byte) []byte {
	n := len(p)
	return append([]byte{0, 0, 0, stream, 0, byte(n >> 16), byte(n >> 8), byte(n)}, p...)
}

// Rows: S46 (part)
func TestInputOfAClientThatOpensNoMoreLeavesNothing(t *testing.T) {
	gate := leakGate(t)
	t.Run("", func(t *testing.T) {
		s := start(t, Options{}, &testRuntime{})
		var clients []net.Conn
		for range 20 {
			raw, open := rawSPDY(t, execURL(t, s, wanted{stdin: true, stdout: true}, "x"), "v4.channel.k8s.io")
			open("streamType", "error")
			open("streamType", "stdin")
			_, _ = raw.Write(dataFrame(3, []byte("input")))
			clients = append(clients, raw)
		}
		for _, raw := range clients {
			_ = raw.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, raw); err != nil {
				t.Errorf("the connection stands: %v", err)
			}
			_ = raw.Close()
		}
	})
	gate()
}

// Rows: S46 (part)
func TestDataOfAForwardThatNobodyReadsLeavesNothing(t *testing.T) {
	for name, test := range map[string]struct {
		streams []string // as they are opened
		to      byte
		frames  int
	}{
		"on the stream for errors":                 {[]string{"error", "data"}, 1, 1},
		"more on that than is queued":              {[]string{"error", "data"}, 1, 200},
		"on a forward without a stream for errors": {[]string{"data"}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			gate := leakGate(t)
			t.Run("", func(t *testing.T) {
				s := start(t, Options{}, &testRuntime{forward: func(_ context.Context, _ string, _ int32, stream io.ReadWriteCloser) error {
					_, err := io.Copy(io.Discard, stream)
					return err
				}})
				for range 20 {
					raw, open := rawSPDY(t, forwardURL(t, s, 80), "portforward.k8s.io")
					for _, kind := range test.streams {
						open("streamType", kind, "port", "80", "requestID", "1")
					}
					for range test.frames {
						_, _ = raw.Write(dataFrame(test.to, []byte("what nobody asked for")))
					}
					_ = raw.Close()
				}
			})
			gate()
		})
	}
}

// A forward that begins when its session is over does not leave a worker of spdystream that has data for it.
func TestAForwardThatComesTooLateIsReset(t *testing.T) {
	f := &forwards{ctx: context.WithValue(t.Context(), intakeKey{}, new(intake))}
	f.running.close()
	stream := &resetStream{}
	if err := f.PortForward(t.Context(), "p1", "", 80, stream); err != nil || !stream.reset {
		t.Errorf("reset %v, %v", stream.reset, err)
	}
}

type resetStream struct {
	io.ReadWriteCloser
	reset bool
}

func (s *resetStream) Reset() error {
	s.reset = true
	return nil
}

// Rows: S46 (part)
func TestASizeWithoutEndEndsTheConnection(t *testing.T) {
	ended := make(chan struct{})
	s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, _ Streams) (int, error) {
		<-ctx.Done()
		ended <- struct{}{}
		return 0, ctx.Err()
	}})
	want := wanted{stdin: true, stdout: true, tty: true}
	each(t, []string{"spdy v3.channel.k8s.io", "spdy v4.channel.k8s.io"}, func(t *testing.T, protocol string) {
		c := dialCommand(t, execURL(t, s, want, "x"), want, protocol)
		go func() {
			_, err := c.resize.Write([]byte(`{"Width":"`))
			for part := bytes.Repeat([]byte("x"), 32<<10); err == nil; {
				_, err = c.resize.Write(part)
			}
		}()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("the daemon keeps all of it")
		}
		c.vanish()
	})
}

// Over a WebSocket the connection goes on, without what is no size.
//
// Rows: S46 (part)
func TestASizeWithoutEndInAWebSocketIsNotKept(t *testing.T) {
	want := wanted{stdin: true, stdout: true, tty: true}
	each(t, []string{"ws channel.k8s.io", "ws v4.channel.k8s.io", "ws v5.channel.k8s.io"}, func(t *testing.T, protocol string) {
		sizes := make(chan TerminalSize)
		s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, s Streams) (int, error) {
			for size := range s.Resize {
				sizes <- size
			}
			return 0, ctx.Err()
		}})
		c := dialCommand(t, execURL(t, s, want, "x"), want, protocol)
		defer c.vanish()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		_, _ = c.resize.Write([]byte(`{"Width":"`))
		part := bytes.Repeat([]byte("x"), 4000)
		for range 8 << 10 {
			_, _ = c.resize.Write(part)
		}
		_, _ = c.resize.Write([]byte(`{"Width":80,"Height":25}`))
		select {
		case size := <-sizes:
			if size.Width != 80 {
				t.Errorf("%+v", size)
			}
		case <-time.After(time.Minute):
			t.Error("the next size does not come")
		}
		runtime.GC()
		if runtime.ReadMemStats(&after); after.HeapAlloc > before.HeapAlloc+8<<20 {
			t.Errorf("%d MiB are kept", (after.HeapAlloc-before.HeapAlloc)>>20)
		}
	})
}

// pipelined is a client that sends everything at once, and waits for no answer.
type pipelined struct {
	bytes.Buffer
	net.Conn
}

func (p *pipelined) Read(b []byte) (int, error)  { return p.Conn.Read(b) }
func (p *pipelined) Write(b []byte) (int, error) { return p.Buffer.Write(b) }

func TestWhatComesBeforeItsReaderIsKept(t *testing.T) {
	input := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
	got := make(chan []byte, 1)
	take := func(r io.Reader) {
		all := make([]byte, len(input))
		n, _ := io.ReadFull(r, all)
		got <- all[:n]
	}
	s := start(t, Options{}, &testRuntime{
		exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
			take(s.Stdin)
			return 0, nil
		},
		forward: func(_ context.Context, _ string, _ int32, stream io.ReadWriteCloser) error {
			take(stream)
			return nil
		},
	})
	for name, client := range map[string]struct {
		target, protocol string
		streams          [][]string
		input            byte
	}{
		"exec": {execURL(t, s, wanted{stdin: true, stdout: true}, "x"), "v4.channel.k8s.io",
			[][]string{{"streamType", "error"}, {"streamType", "stdin"}, {"streamType", "stdout"}}, 3},
		"forward": {forwardURL(t, s, 80), "portforward.k8s.io",
			[][]string{{"streamType", "error", "port", "80", "requestID", "1"}, {"streamType", "data", "port", "80", "requestID", "1"}}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			raw, _, err := upgradeSPDY(client.target, nil, client.protocol)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			p := &pipelined{Conn: raw}
			open := streamOpener(t, struct{ io.ReadWriter }{p})
			for _, headers := range client.streams {
				open(headers...)
			}
			for rest := input; len(rest) > 0; rest = rest[min(1000, len(rest)):] {
				_, _ = p.Write(dataFrame(client.input, rest[:min(1000, len(rest))]))
			}
			if _, err := raw.Write(p.Bytes()); err != nil {
				t.Fatal(err)
			}
			select {
			case all := <-got:
				if !bytes.Equal(all, input) {
					t.Errorf("%d of %d bytes, or others", len(all), len(input))
				}
			case <-time.After(time.Minute):
				t.Fatal("the input does not come")
			}
		})
	}
}
