package streaming

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"crishim/internal/rowsize"
)

var (
	spdyProtocols = []string{"spdy channel.k8s.io", "spdy v2.channel.k8s.io", "spdy v3.channel.k8s.io", "spdy v4.channel.k8s.io"}
	allProtocols  = append(slices.Clone(spdyProtocols), "ws channel.k8s.io", "ws v4.channel.k8s.io", "ws v5.channel.k8s.io")
	// exitProtocols carry the exit code.
	exitProtocols = []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io", "ws v5.channel.k8s.io"}
	// eofProtocols carry the end of stdin. (SPDY v1 ends it at once, a defect that clients of it know.)
	eofProtocols = []string{"spdy v2.channel.k8s.io", "spdy v3.channel.k8s.io", "spdy v4.channel.k8s.io", "ws v5.channel.k8s.io"}
)

func each(t *testing.T, protocols []string, test func(t *testing.T, protocol string)) {
	for _, p := range protocols {
		t.Run(p, func(t *testing.T) { test(t, p) })
	}
}

func TestExecDeliversBothOutputsInEveryProtocol(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(_ context.Context, id string, cmd []string, s Streams) (int, error) {
		fmt.Fprintf(s.Stdout, "%s ran %q, stdin %v, resize %v", id, cmd, s.Stdin != nil, s.Resize != nil)
		fmt.Fprint(s.Stderr, "a complaint")
		return 0, nil
	}})
	each(t, allProtocols, func(t *testing.T, protocol string) {
		want := wanted{stdout: true, stderr: true}
		got := dialCommand(t, execURL(t, s, want, "ls", "-l"), want, protocol).collect(t)
		if got.stdout != `c1 ran ["ls" "-l"], stdin false, resize false` || got.stderr != "a complaint" {
			t.Errorf("got %+v", got)
		}
		if slices.Contains(exitProtocols, protocol) {
			if st := statusJSON(t, got.status); st.Status != "Success" {
				t.Errorf("status %+v", st)
			}
		} else if got.status != "" {
			t.Errorf("success is silent in this version, got %q", got.status)
		}
	})
}

func TestExecTellsTheExitCode(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(context.Context, string, []string, Streams) (int, error) { return 137, nil }})
	each(t, allProtocols, func(t *testing.T, protocol string) {
		want := wanted{stdout: true}
		got := dialCommand(t, execURL(t, s, want, "x"), want, protocol).collect(t)
		if protocol == "spdy channel.k8s.io" {
			return // cri-streaming resets its error stream at the start, as the kubelets of its time did
		}
		if !slices.Contains(exitProtocols, protocol) {
			if !strings.Contains(got.status, "exit status 137") {
				t.Errorf("status %q", got.status)
			}
			return
		}
		st := statusJSON(t, got.status)
		if st.Reason != "NonZeroExitCode" || len(st.Details.Causes) != 1 || st.Details.Causes[0] != (statusCause{"ExitCode", "137"}) {
			t.Errorf("status %+v", st)
		}
	})
}

func TestExecTellsWhyItDidNotRun(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(context.Context, string, []string, Streams) (int, error) {
		return 0, errors.New("no such program")
	}})
	each(t, exitProtocols, func(t *testing.T, protocol string) {
		want := wanted{stdout: true}
		st := statusJSON(t, dialCommand(t, execURL(t, s, want, "x"), want, protocol).collect(t).status)
		if st.Status != "Failure" || st.Reason != "InternalError" || !strings.Contains(st.Message, "no such program") {
			t.Errorf("status %+v", st)
		}
	})
}

func TestStdinIsHalfClosedAndArrivesWhole(t *testing.T) {
	sent := make([]byte, 4<<20)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	s := start(t, Options{}, &testRuntime{exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	}})
	each(t, eofProtocols, func(t *testing.T, protocol string) {
		want := wanted{stdin: true, stdout: true}
		c := dialCommand(t, execURL(t, s, want, "cat"), want, protocol)
		go func() {
			_, _ = io.Copy(c.stdin, struct{ io.Reader }{bytes.NewReader(sent)})
			c.closeStdin()
		}()
		if got := c.collect(t).stdout; got != string(sent) {
			t.Errorf("%d bytes of %d came back, or other ones", len(got), len(sent))
		}
	})
}

func TestTheStatusSurvivesInputThatNobodyReads(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
		_, _ = s.Stdin.Read(make([]byte, 1))
		return 7, nil
	}})
	each(t, exitProtocols, func(t *testing.T, protocol string) {
		want := wanted{stdin: true, stdout: true}
		c := dialCommand(t, execURL(t, s, want, "true"), want, protocol)
		go func() { _, _ = io.Copy(c.stdin, io.LimitReader(zeros{}, 8<<20)) }()
		if st := statusJSON(t, c.collect(t).status); st.Reason != "NonZeroExitCode" {
			t.Errorf("status %+v", st)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return min(len(p), 32<<10), nil }

func TestTerminalSizesArrive(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, s Streams) (int, error) {
		if !s.TTY || s.Stderr != nil {
			return 0, errors.New("no terminal")
		}
		for {
			select {
			case size, ok := <-s.Resize:
				if !ok {
					return 0, errors.New("resize ended")
				}
				fmt.Fprintf(s.Stdout, "%dx%d ", size.Width, size.Height)
				if size.Width == 132 {
					return 0, nil
				}
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
	}})
	each(t, []string{"spdy v3.channel.k8s.io", "spdy v4.channel.k8s.io", "ws v4.channel.k8s.io", "ws v5.channel.k8s.io"}, func(t *testing.T, protocol string) {
		want := wanted{stdin: true, stdout: true, tty: true}
		c := dialCommand(t, execURL(t, s, want, "sh"), want, protocol)
		fmt.Fprintln(c.resize, `{"Width":80,"Height":24}`)
		fmt.Fprintln(c.resize, `{"Width":132,"Height":43}`)
		// Sizes that were overtaken may be left out.
		if got := c.collect(t); !strings.HasSuffix(got.stdout, "132x43 ") {
			t.Errorf("got %+v", got)
		}
	})
}

// Input that the request did not ask for is dropped, and what comes behind it is not.
func TestInputThatWasNotAskedForIsNotInTheWay(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, s Streams) (int, error) {
		if s.Stdin != nil {
			return 0, errors.New("there is input")
		}
		select {
		case <-s.Resize:
			return 0, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}})
	want := wanted{stdout: true, tty: true}
	c := dialCommand(t, execURL(t, s, want, "sh"), want, "ws v4.channel.k8s.io")
	fmt.Fprintln(c.stdin, "nobody reads this")
	fmt.Fprintln(c.resize, `{"Width":80,"Height":24}`)
	if got := statusJSON(t, c.collect(t).status); got.Status != "Success" {
		t.Errorf("got %+v", got)
	}
}

// Rows: S50
func TestTheContextEndsWhenTheClientVanishes(t *testing.T) {
	for name, readsStdin := range map[string]bool{"a process that reads": true, "a process that takes no input": false} {
		t.Run(name, func(t *testing.T) {
			running, ended := make(chan struct{}), make(chan time.Time)
			s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, s Streams) (int, error) {
				if readsStdin {
					go func() { _, _ = io.Copy(io.Discard, s.Stdin) }()
				}
				running <- struct{}{}
				<-ctx.Done()
				ended <- time.Now()
				return 0, ctx.Err()
			}})
			each(t, allProtocols, func(t *testing.T, protocol string) {
				if protocol == "spdy channel.k8s.io" && !readsStdin {
					t.Skip("v1 closes the server's stdin itself, which then takes no data")
				}
				want := wanted{stdin: true, stdout: true}
				c := dialCommand(t, execURL(t, s, want, "sleep"), want, protocol)
				<-running
				for range 4 { // something unread in every case
					_, _ = c.stdin.Write(make([]byte, 16<<10))
				}
				left := time.Now()
				c.vanish()
				select {
				case at := <-ended:
					if d := at.Sub(left); d > rowsize.Of(30*time.Second, 5*time.Second) {
						t.Errorf("it took %s", d)
					}
				case <-time.After(time.Minute):
					t.Fatal("the context did not end")
				}
			})
		})
	}
}

// A client that says goodbye is gone, although it waits for the server to close the connection first, as the protocol has it.
//
// Rows: S50 (part)
func TestAWebSocketThatIsClosedIsGone(t *testing.T) {
	ended := make(chan struct{})
	s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, s Streams) (int, error) {
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}})
	ws := dialWebSocket(t, execURL(t, s, wanted{stdin: true, stdout: true}, "sleep"), "v5.channel.k8s.io")
	_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Minute))
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the exec runs on")
	}
}

// A message of a WebSocket may come in several frames, of which only the first begins with the channel's number. The client here
// sends 4 KiB in each.
func TestInputInSeveralFramesArrivesWhole(t *testing.T) {
	input := bytes.Repeat([]byte{0, 1, 2, 3, 4}, 10<<10)
	got := make(chan []byte, 1)
	s := start(t, Options{}, &testRuntime{exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
		all := make([]byte, len(input))
		n, _ := io.ReadFull(s.Stdin, all)
		got <- all[:n]
		return 0, nil
	}})
	want := wanted{stdin: true, stdout: true}
	each(t, []string{"ws channel.k8s.io", "ws v4.channel.k8s.io", "ws v5.channel.k8s.io"}, func(t *testing.T, protocol string) {
		c := dialCommand(t, execURL(t, s, want, "x"), want, protocol)
		_, _ = c.stdin.Write(input)
		select {
		case all := <-got:
			if !bytes.Equal(all, input) {
				t.Errorf("%d bytes came, and not those that were sent", len(all))
			}
		case <-time.After(time.Minute):
			t.Error("the input does not come whole")
		}
		c.vanish()
	})
}

// What browsers use: text, with everything behind the channel's number in base64. What was offered and is unknown is refused.
func TestExecInBase64(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
		word := make([]byte, 4)
		_, _ = io.ReadFull(s.Stdin, word)
		_, _ = s.Stdout.Write(word)
		return 3, nil
	}})
	want := wanted{stdin: true, stdout: true}
	for protocol, status := range map[string]string{
		"base64.channel.k8s.io":    "command terminated with non-zero exit code: exit status 3",
		"v4.base64.channel.k8s.io": `{"status":"Failure"`,
	} {
		ws := dialWebSocket(t, execURL(t, s, want, "x"), protocol)
		_ = ws.WriteMessage(websocket.TextMessage, []byte("0"+base64.StdEncoding.EncodeToString([]byte("\x00\xffab"))))
		got := map[byte]string{}
		for {
			kind, p, err := ws.ReadMessage()
			if err != nil {
				break
			}
			text, err := base64.StdEncoding.DecodeString(string(p[1:]))
			if kind != websocket.TextMessage || err != nil {
				t.Errorf("%s: message %q of kind %d: %v", protocol, p, kind, err)
			}
			got[p[0]] += string(text)
		}
		if got['1'] != "\x00\xffab" || !strings.HasPrefix(got['3'], status) {
			t.Errorf("%s: %q", protocol, got)
		}
	}
	d := websocket.Dialer{Subprotocols: []string{"v9.channel.k8s.io"}}
	if _, resp, err := d.Dial("ws"+strings.TrimPrefix(execURL(t, s, want, "x"), "http"), nil); err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("an unknown protocol: %v, %v", resp, err)
	}
}

// Rows: S50 (part)
func TestAnIdleConnectionEnds(t *testing.T) {
	s := start(t, Options{IdleTimeout: 2 * time.Second}, &testRuntime{attach: func(ctx context.Context, _ string, _ Streams) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	each(t, []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io", "ws v5.channel.k8s.io"}, func(t *testing.T, protocol string) {
		want := wanted{stdout: true}
		dialCommand(t, attachURL(t, s, want), want, protocol).collect(t) // fails where the streams do not end
	})
}

// Rows: S50 (part)
func TestAClientThatOpensNoStreamsIsLetGo(t *testing.T) {
	gate := leakGate(t)
	t.Run("", func(t *testing.T) {
		s := start(t, Options{CreationTimeout: 100 * time.Millisecond}, &testRuntime{})
		conn, _ := dialSPDY(t, execURL(t, s, wanted{stdout: true}, "x"), "v4.channel.k8s.io")
		select {
		case <-conn.CloseChan():
		case <-time.After(time.Minute):
			t.Fatal("the connection stands")
		}
	})
	gate()
}

// Rows: S50 (part)
func TestAClientThatOpensAStreamAsItIsLetGoLeavesNothing(t *testing.T) {
	gate := leakGate(t)
	t.Run("", func(t *testing.T) {
		s := start(t, Options{CreationTimeout: 100 * time.Millisecond}, &testRuntime{})
		var clients sync.WaitGroup
		for i := range 20 {
			raw, open := rawSPDY(t, execURL(t, s, wanted{stdout: true}, "x"), "v4.channel.k8s.io")
			clients.Go(func() {
				time.Sleep(95*time.Millisecond + time.Duration(i)*time.Millisecond)
				open("streamType", "error")
				_ = raw.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := io.Copy(io.Discard, raw); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection stands")
				}
				_ = raw.Close()
			})
		}
		clients.Wait()
	})
	gate()
}

// Rows: S50 (part)
func TestAClientThatOpensTooManyStreamsIsCutWithoutALeak(t *testing.T) {
	gate := leakGate(t)
	t.Run("", func(t *testing.T) {
		s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, _ Streams) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}})
		for range 20 {
			raw, open := rawSPDY(t, execURL(t, s, wanted{stdout: true}, "x"), "v4.channel.k8s.io")
			for _, kind := range []string{"error", "stdout", "stdin", "stdin", "stderr"} {
				open("streamType", kind)
			}
			_ = raw.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, raw); err != nil {
				t.Fatalf("the connection stands: %v", err)
			}
			_ = raw.Close()
		}
	})
	gate()
}

// Rows: S45
func TestHundredsOfAttachesToASilentContainerLeaveNothing(t *testing.T) {
	gate := leakGate(t)
	t.Run("", func(t *testing.T) {
		var attached atomic.Int32
		s := start(t, Options{}, &testRuntime{attach: func(ctx context.Context, _ string, s Streams) error {
			attached.Add(1)
			defer attached.Add(-1)
			if s.TTY {
				return errors.New("cannot attach") // without a look at Resize
			}
			go func() { _, _ = io.Copy(io.Discard, s.Stdin) }()
			<-ctx.Done()
			return ctx.Err()
		}})
		protocols := []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io", "ws v5.channel.k8s.io"}
		for i := range rowsize.Of(500, 5000) {
			want := wanted{stdin: true, stdout: true, tty: i%5 == 0}
			c := dialCommand(t, attachURL(t, s, want), want, protocols[i%3])
			if want.tty {
				_, _ = io.WriteString(c.resize, `{"Width":1,"Height":1}{"Width":2,"Height":2}`)
			}
			if cut := rand.IntN(2000); cut > 0 {
				_, _ = c.stdin.Write(make([]byte, cut))
			}
			c.vanish()
		}
		if !poll(time.Minute, func() bool { return attached.Load() == 0 }) {
			t.Errorf("%d attaches are left", attached.Load())
		}
	})
	gate()
}

// Rows: S50 (part)
func TestASlowReaderHoldsUpOnlyItself(t *testing.T) {
	s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, cmd []string, s Streams) (int, error) {
		if cmd[0] == "flood" {
			_, err := io.Copy(s.Stdout, zeros{})
			return 0, err
		}
		fmt.Fprint(s.Stdout, "quick")
		return 0, nil
	}})
	each(t, exitProtocols, func(t *testing.T, protocol string) {
		want := wanted{stdout: true}
		for range rowsize.Of(1, 500) {
			stuck := dialCommand(t, execURL(t, s, want, "flood"), want, protocol) // nobody reads its output
			defer stuck.vanish()
		}
		if got := dialCommand(t, execURL(t, s, want, "other"), want, protocol).collect(t); got.stdout != "quick" {
			t.Errorf("got %+v", got)
		}
	})
}

// A client that is slow to read the last output, and pings meanwhile, as kubectl does every five seconds, gets all of it: a closed
// socket would answer the ping with a reset, which takes what was not sent yet, and the exit status.
//
// Rows: S50 (part)
func TestAClientThatReadsLateGetsAllAndItsStatus(t *testing.T) {
	const size = 64 << 10
	written := make(chan struct{})
	s := start(t, Options{}, &testRuntime{exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
		defer close(written)
		_, err := s.Stdout.Write(make([]byte, size))
		return 3, err
	}})
	want := wanted{stdout: true}
	d := websocket.Dialer{Subprotocols: []string{"v5.channel.k8s.io"}, NetDial: func(network, addr string) (net.Conn, error) {
		conn, err := net.Dial(network, addr)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return conn, err
	}}
	ws, _, err := d.Dial("ws"+strings.TrimPrefix(execURL(t, s, want, "x"), "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	<-written
	for range 2 {
		time.Sleep(lingerTimeout + time.Second/2)
		_ = ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Minute))
	}
	got, last := 0, ""
	for {
		_, p, err := ws.ReadMessage()
		if err != nil {
			break
		}
		switch p[0] {
		case 1:
			got += len(p) - 1
		case 3:
			last = string(p[1:])
		}
	}
	if got != size {
		t.Errorf("got %d bytes of %d", got, size)
	}
	if st := statusJSON(t, last); st.Reason != "NonZeroExitCode" {
		t.Errorf("got %+v", st)
	}
}

// A process that does not read its input for long, such as psql at a slow statement of `kubectl exec -i db -- psql < dump`, does
// not make the client give its connection up: the pings behind the input are not read, and pongs come nevertheless.
//
// Rows: S50 (part)
func TestAClientWhoseInputWaitsIsToldThatTheConnectionStands(t *testing.T) {
	read := make(chan struct{})
	s := start(t, Options{silence: 2 * time.Second}, &testRuntime{exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
		<-read
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	}})
	ws := dialWebSocket(t, execURL(t, s, wanted{stdin: true, stdout: true}, "x"), "v5.channel.k8s.io")
	pongs, output := make(chan struct{}, 100), make(chan string, 100)
	ws.SetPongHandler(func(string) error { pongs <- struct{}{}; return nil })
	go func() {
		defer close(output)
		for {
			_, p, err := ws.ReadMessage()
			if err != nil {
				return
			}
			if p[0] == 1 && len(p) > 1 {
				output <- string(p[1:])
			}
		}
	}()
	_ = ws.WriteMessage(websocket.BinaryMessage, []byte("\x00input"))
	for range 3 {
		select {
		case <-pongs:
		case <-time.After(time.Minute):
			t.Fatal("no pong")
		}
	}
	close(read)
	_ = ws.WriteMessage(websocket.BinaryMessage, []byte{255, 0})
	if got := <-output; got != "input" {
		t.Errorf("got %q", got)
	}
	for range output {
	}
}

// A client that is slow to read is answered its pings: kubectl gives a connection up that answers none for a minute, as one did whose
// output nearly always waited for the client.
//
// Rows: S50 (part)
func TestAClientThatReadsSlowlyIsAnsweredItsPings(t *testing.T) {
	const size = 32 << 20 // more than the kernel keeps
	s := start(t, Options{}, &testRuntime{exec: func(_ context.Context, _ string, _ []string, s Streams) (int, error) {
		_, err := s.Stdout.Write(make([]byte, size))
		return 0, err
	}})
	ws := dialWebSocket(t, execURL(t, s, wanted{stdout: true}, "x"), "v5.channel.k8s.io")
	pongs := 0
	ws.SetPongHandler(func(string) error { pongs++; return nil })
	time.Sleep(time.Second) // the output fills what there is
	if err := ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	got := 0
	for {
		_, p, err := ws.ReadMessage()
		if err != nil {
			break
		}
		if p[0] == 1 {
			got += len(p) - 1
		}
	}
	if pongs != 1 || got != size {
		t.Errorf("got %d pongs and %d bytes", pongs, got)
	}
}

// Rows: S46
func TestAHugeFrameEndsTheConnection(t *testing.T) {
	ended := make(chan struct{})
	s := start(t, Options{}, &testRuntime{exec: func(ctx context.Context, _ string, _ []string, s Streams) (int, error) {
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}})
	want := wanted{stdin: true, stdout: true}
	c := dialCommand(t, execURL(t, s, want, "x"), want, "spdy v4.channel.k8s.io")
	go func() { _, _ = c.stdin.Write(make([]byte, 15<<20)) }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("15 MiB in one frame were taken")
	}
}

// Rows: S46
func TestFramesThatAskForTooMuchEndTheConnection(t *testing.T) {
	s := start(t, Options{}, &testRuntime{})
	for name, head := range map[string][]byte{
		"SETTINGS of 16 MiB":                    {0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff},
		"SYN_STREAM of 16 MiB":                  {0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff, 0, 0, 0, 1},
		"data of 16 MiB":                        {0, 0, 0, 1, 0, 0xff, 0xff, 0xff},
		"SETTINGS with 2^24 entries in 8 bytes": {0x80, 3, 0, 4, 0, 0, 0, 8, 0, 0xff, 0xff, 0xff, 1, 2, 3, 4},
		"headers that are no zlib":              {0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			raw, _ := rawSPDY(t, execURL(t, s, wanted{stdout: true}, "x"), "v4.channel.k8s.io")
			defer raw.Close()
			_, _ = raw.Write(head)
			_ = raw.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, raw); err != nil {
				t.Errorf("the connection stands: %v", err)
			}
			if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 8<<20 {
				t.Errorf("%d MiB were allocated", (after.TotalAlloc-before.TotalAlloc)>>20)
			}
		})
	}
}

// What a client may ask for does not depend on how it writes the name of the protocol.
//
// Rows: S46 (part)
func TestAnUpgradeThatNamesMoreIsBoundedToo(t *testing.T) {
	s := start(t, Options{}, &testRuntime{})
	for _, upgrade := range []string{"spdy/3.1", "SPDY/3.1, x", "x, SPDY/3.1"} {
		u, err := url.Parse(execURL(t, s, wanted{stdout: true}, "x"))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		raw, resp, err := upgradeAs(conn, u, upgrade, "v4.channel.k8s.io")
		if err != nil {
			if resp == nil || resp.StatusCode == http.StatusSwitchingProtocols {
				t.Fatal(err)
			}
			continue
		}
		_, _ = raw.Write([]byte{0, 0, 0, 1, 0, 0xff, 0xff, 0xff})
		_ = raw.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, raw); err != nil {
			t.Errorf("%s: a frame of 16 MiB is taken: %v", upgrade, err)
		}
		_ = raw.Close()
	}
}

// A panic is told to the client, which takes a session without a status for one that went well; the next go on.
//
// Rows: S53 (part)
func TestAPanicInTheRuntimeEndsOnlyItsSession(t *testing.T) {
	s := start(t, Options{}, &testRuntime{
		exec: func(_ context.Context, _ string, cmd []string, s Streams) (int, error) {
			if cmd[0] == "panic" {
				_, _ = io.WriteString(s.Stdout, "so far")
				panic("as ordered")
			}
			return 0, nil
		},
		attach: func(_ context.Context, _ string, s Streams) error {
			_, _ = io.WriteString(s.Stdout, "so far")
			panic("as ordered")
		},
	})
	want := wanted{stdout: true}
	each(t, exitProtocols, func(t *testing.T, protocol string) {
		for what, target := range map[string]string{"exec": execURL(t, s, want, "panic"), "attach": attachURL(t, s, want)} {
			got := dialCommand(t, target, want, protocol).collect(t)
			if got.stdout != "so far" || !strings.Contains(got.status, "panic: as ordered") || statusJSON(t, got.status).Status != "Failure" {
				t.Errorf("%s: %+v", what, got)
			}
		}
		if st := statusJSON(t, dialCommand(t, execURL(t, s, want, "x"), want, protocol).collect(t).status); st.Status != "Success" {
			t.Errorf("the next exec: %+v", st)
		}
	})
}
