package streaming

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"crishim/internal/rowsize"
)

// testNetNS makes a network namespace with loopback up, and returns its path and a listen function for it. The thread that
// made it ends with the test, and the namespace with it.
func testNetNS(t testing.TB) (path string, listen func(address string) net.Listener) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	type request struct {
		address string
		answer  chan net.Listener
	}
	requests, ready := make(chan request), make(chan error)
	var live func()
	live = func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			go live() // the first thread cannot end: another one, while this one is held
			<-t.Context().Done()
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		for r := range requests {
			l, err := net.Listen("tcp", r.address)
			if err != nil {
				t.Errorf("listen on %s: %v", r.address, err)
			}
			r.answer <- l
		}
	}
	go live()
	if err := <-ready; err != nil {
		close(requests)
		t.Skipf("no network namespace can be made here: %v", err)
	}
	t.Cleanup(func() { close(requests) })
	return path, func(address string) net.Listener {
		t.Helper()
		r := request{address, make(chan net.Listener)}
		requests <- r
		l := <-r.answer
		if l == nil {
			t.FailNow()
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
}

// serveEach runs handle for every connection.
func serveEach(l net.Listener, handle func(net.Conn)) int32 {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); handle(c) }()
		}
	}()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// echo answers with what it got once it has got everything.
func echo(c net.Conn) {
	got, err := io.ReadAll(c)
	if err == nil {
		_, _ = c.Write(append([]byte("echo:"), got...))
	}
}

func forwarder(path string) *testRuntime {
	return &testRuntime{forward: func(ctx context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
		return Forward(ctx, path, port, stream)
	}}
}

// forwardClients dial port-forward in SPDY and in SPDY through WebSocket.
var forwardClients = map[string]func(t testing.TB, target string) httpstream.Connection{
	"spdy": func(t testing.TB, target string) httpstream.Connection {
		conn, _ := dialSPDY(t, target, "portforward.k8s.io")
		return conn
	},
	"tunnel": func(t testing.TB, target string) httpstream.Connection {
		ws := dialWebSocket(t, target, "SPDY/3.1+portforward.k8s.io")
		conn, err := spdy.NewClientConnection(&tunnelConn{ws: ws})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	},
}

// openPort makes the two streams of a forwarded connection.
func openPort(t testing.TB, conn httpstream.Connection, id int, port int32) (data, errs httpstream.Stream) {
	t.Helper()
	headers := []string{"port", strconv.Itoa(int(port)), "requestID", strconv.Itoa(id)}
	errs = createStream(t, conn, append(headers, "streamType", "error")...)
	_ = errs.Close()
	return createStream(t, conn, append(headers, "streamType", "data")...), errs
}

// exchange sends text, half-closes, and returns the answer and the error.
func exchange(t testing.TB, conn httpstream.Connection, id int, port int32, text string) (answer, failure string) {
	t.Helper()
	data, errs := openPort(t, conn, id, port)
	if _, err := io.WriteString(data, text); err != nil && text != "" {
		t.Error(err)
	}
	_ = data.Close()
	a, _ := io.ReadAll(data)
	f, _ := io.ReadAll(errs)
	conn.RemoveStreams(data, errs)
	return string(a), string(f)
}

func TestPortForwardReachesThePodOverBothLoopbacks(t *testing.T) {
	path, listen := testNetNS(t)
	v4 := serveEach(listen("127.0.0.1:0"), echo)
	v6 := serveEach(listen("[::1]:0"), echo)
	s := start(t, Options{}, forwarder(path))
	for name, dial := range forwardClients {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, forwardURL(t, s))
			var wg sync.WaitGroup
			for i, port := range []int32{v4, v6, v4, v6} { // at the same time
				wg.Go(func() {
					text := strings.Repeat(strconv.Itoa(i), 100_000)
					if a, f := exchange(t, conn, i, port, text); a != "echo:"+text || f != "" {
						t.Errorf("port %d: %d bytes, error %q", port, len(a), f)
					}
				})
			}
			wg.Wait()
			// A port where nobody listens is told, and the connection goes on.
			if a, f := exchange(t, conn, 10, 1, ""); a != "" || !strings.Contains(f, "refused") {
				t.Errorf("answer %q, error %q", a, f)
			}
			if a, _ := exchange(t, conn, 11, v4, "more"); a != "echo:more" {
				t.Errorf("answer %q", a)
			}
		})
	}
}

func TestPortForwardOverWebSocketV4(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := serveEach(l, func(c net.Conn) { _, _ = io.Copy(c, c) })
	s := start(t, Options{}, forwarder(""))
	ws := dialWebSocket(t, forwardURL(t, s, port), "v4.channel.k8s.io")
	if err := ws.WriteMessage(2, []byte("\x00hello")); err != nil {
		t.Fatal(err)
	}
	for range 3 { // the port on both channels, then the answer
		_, p, err := ws.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if string(p) == "\x00hello" {
			return
		}
	}
	t.Error("no answer")
}

// Rows: S50 (part)
func TestManyForwardsOnOneConnectionLeaveNothing(t *testing.T) {
	gate := leakGate(t)
	t.Run("", func(t *testing.T) {
		path, listen := testNetNS(t)
		port := serveEach(listen("127.0.0.1:0"), echo)
		s := start(t, Options{}, forwarder(path))
		conn := forwardClients["spdy"](t, forwardURL(t, s))
		for i := range rowsize.Of(500, 10_000) {
			if a, f := exchange(t, conn, i, port, "x"); a != "echo:x" {
				t.Fatalf("forward %d: %q, error %q", i, a, f)
			}
		}
		fds := 0
		if !poll(time.Minute, func() bool { fds = openFDs(t); return fds <= 40 }) { // the last ones are closed behind the answer
			t.Errorf("%d descriptors are open", fds)
		}
	})
	gate()
}

// Rows: S50 (part)
func TestAClientThatOpensForwardsAndVanishesLeavesNothing(t *testing.T) {
	gate := leakGate(t)
	t.Run("", func(t *testing.T) {
		s := start(t, Options{CreationTimeout: time.Second}, &testRuntime{forward: func(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		for range 20 {
			raw, open := rawSPDY(t, forwardURL(t, s), "portforward.k8s.io")
			for i := range 20 {
				open("port", "80", "requestID", strconv.Itoa(i/2), "streamType", []string{"error", "data"}[i%2])
			}
			_ = raw.Close()
		}
	})
	gate()
}

func TestTheServersEndReachesTheClientAtOnceAndTheRestIsNotInTheWay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := serveEach(l, func(c net.Conn) { _, _ = io.WriteString(c, "bye") })
	s := start(t, Options{}, forwarder(""))
	conn := forwardClients["spdy"](t, forwardURL(t, s))
	data, _ := openPort(t, conn, 0, port)
	if got, err := io.ReadAll(data); string(got) != "bye" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	// The client goes on sending: more than fits anywhere.
	for range 200 {
		_, _ = data.Write(make([]byte, 32<<10))
	}
	for i := 1; i < 12; i++ { // each of spdystream's workers
		data, _ := openPort(t, conn, i, port)
		if got, _ := io.ReadAll(data); string(got) != "bye" {
			t.Fatalf("forward %d: %q", i, got)
		}
	}
}

func TestASlowAnswerAfterTheHalfCloseArrivesWhileItFlows(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := serveEach(l, func(c net.Conn) {
		_, _ = io.ReadAll(c)
		for range 6 {
			_, _ = io.WriteString(c, "part ")
			<-time.After(300 * time.Millisecond)
		}
	})
	s := start(t, Options{}, forwarder(""))
	if a, _ := exchange(t, forwardClients["spdy"](t, forwardURL(t, s)), 0, port, "x"); a != strings.Repeat("part ", 6) {
		t.Errorf("answer %q", a)
	}
}

func TestPortForwardEndsWithItsClient(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	s := start(t, Options{}, &testRuntime{forward: func(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
		close(begun)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}})
	conn, raw := dialSPDY(t, forwardURL(t, s), "portforward.k8s.io")
	openPort(t, conn, 0, 80)
	<-begun
	_ = raw.Close()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the context did not end")
	}
}

// A pod that resets one connection, as a server does that closes with input unread, ends that one: a word on its error stream would
// make kubectl end all forwards of the session.
//
// Rows: S49 (part)
func TestAPodThatResetsAConnectionEndsOnlyThat(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := serveEach(l, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.(*net.TCPConn).SetLinger(0) // the close is a reset
	})
	s := start(t, Options{}, forwarder(""))
	for name, dial := range forwardClients {
		t.Run(name, func(t *testing.T) {
			data, failed := openPort(t, dial(t, forwardURL(t, s)), 0, port)
			_, _ = io.WriteString(data, "x")
			_, _ = io.ReadAll(data)
			if message, err := io.ReadAll(failed); len(message) > 0 || err != nil {
				t.Errorf("the client was told %q, %v", message, err)
			}
		})
	}
}

// A client that resets a stream, as kubectl does where the local end is gone, is sent no more, however long the pod would go on.
//
// Rows: S49 (part)
func TestAForwardThatTheClientResetsEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := serveEach(l, func(c net.Conn) { _, _ = io.Copy(c, zeros{}) })
	ended := make(chan error, 1)
	s := start(t, Options{}, &testRuntime{forward: func(ctx context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
		err := Forward(ctx, "", port, stream)
		ended <- err
		return err
	}})
	for name, dial := range forwardClients {
		t.Run(name, func(t *testing.T) {
			data, _ := openPort(t, dial(t, forwardURL(t, s)), 0, port)
			_, _ = io.ReadFull(data, make([]byte, 100))
			_ = data.Reset()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it goes on")
			}
		})
	}
}

// A client that says goodbye while its connections are open ends them, and that is no error.
func TestGoodbyeOfAClientIsNoErrorOfItsForwards(t *testing.T) {
	s := start(t, Options{}, &testRuntime{forward: func(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	ctx, cancel := context.WithCancelCause(t.Context())
	raw, peer := net.Pipe()
	defer peer.Close()
	conn := newClientConn(raw, nil, &Options{silence: time.Minute, IdleTimeout: time.Hour}, cancel)
	f := &forwards{server: s, ctx: ctx}
	_ = conn.Close()
	if err := f.PortForward(t.Context(), "pod", "", 80, raw); err != nil {
		t.Errorf("told to nobody: %v", err)
	}
	_ = raw.Close()
	cut, stop := context.WithCancel(t.Context())
	stop()
	f = &forwards{server: s, ctx: cut}
	if err := f.PortForward(t.Context(), "pod", "", 80, raw); !errors.Is(err, context.Canceled) {
		t.Errorf("not told to a client whose session was cut: %v", err)
	}
}

// Rows: S49 (part)
func TestPortForwardOpensOnlyThePortsOfItsRequest(t *testing.T) {
	s := start(t, Options{}, &testRuntime{forward: func(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
		_, err := fmt.Fprint(stream, port)
		return err
	}})
	conn := forwardClients["spdy"](t, forwardURL(t, s, 80))
	if a, _ := exchange(t, conn, 0, 80, ""); a != "80" {
		t.Errorf("answer %q", a)
	}
	if a, f := exchange(t, conn, 1, 81, ""); a != "" || !strings.Contains(f, "not one that was asked for") {
		t.Errorf("answer %q, error %q", a, f)
	}
}

func TestAPanicInPortForwardIsTold(t *testing.T) {
	s := start(t, Options{}, &testRuntime{forward: func(context.Context, string, int32, io.ReadWriteCloser) error { panic("as ordered") }})
	if _, f := exchange(t, forwardClients["spdy"](t, forwardURL(t, s)), 0, 80, ""); !strings.Contains(f, "as ordered") {
		t.Errorf("error %q", f)
	}
}

// Rows: S49
func TestDialPodRefusesWhatIsNoPodsNamespace(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "unpinned")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		path  string
		port  int32
		class error
	}{
		"port 0":                   {"", 0, errdefs.ErrInvalidArgument},
		"port 65536":               {"", 65536, errdefs.ErrInvalidArgument},
		"a negative port":          {"", -1, errdefs.ErrInvalidArgument},
		"a path that is gone":      {filepath.Join(dir, "gone"), 80, errdefs.ErrNotFound},
		"a file (unpinned)":        {file, 80, errdefs.ErrFailedPrecondition},
		"a mount namespace":        {"/proc/self/ns/mnt", 80, errdefs.ErrFailedPrecondition},
		"the host's own namespace": {"/proc/self/ns/net", 80, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := DialPod(t.Context(), row.path, row.port); !errors.Is(err, row.class) {
				t.Errorf("got %v, %v", c, err)
			}
		})
	}
}

func TestDialPodLeavesNoThreadInTheNamespace(t *testing.T) {
	path, listen := testNetNS(t)
	port := serveEach(listen("127.0.0.1:0"), echo)
	for range 50 {
		c, err := DialPod(t.Context(), path, port)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	pod, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	inside := 0
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns == pod {
			inside++
		}
	}
	if inside != 1 { // the one that made it
		t.Errorf("%d threads are in the namespace", inside)
	}
}

func TestDialPodHonoursItsContext(t *testing.T) {
	path, listen := testNetNS(t)
	l := listen("127.0.0.1:0")
	port := int32(l.Addr().(*net.TCPAddr).Port)
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }) // a backlog of one
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 10 {
		c, err := DialPod(ctx, path, port)
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			return
		}
		defer c.Close()
	}
	t.Error("the backlog takes everything")
}

// The kernel connects a socket to itself where it takes for its own port the one that is dialled, of the range for such: the client
// would be told that somebody listens, and get back what it sends.
func TestDialPodIsNotConnectedToItself(t *testing.T) {
	path, _ := testNetNS(t)
	const port = 40000
	set := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked where it could not go back: the thread ends with the goroutine
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			set <- err
			return
		}
		defer func() { _ = home.Close() }()
		ns, err := os.Open(path)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err == nil {
			err = os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "%d %d", port, port), 0o644)
		}
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		set <- err
	}()
	if err := <-set; err != nil {
		t.Skipf("the ports that the kernel takes cannot be set: %v", err)
	}
	c, err := DialPod(t.Context(), path, port)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens, and DialPod says %v", err)
	}
}

func TestFramesAreFoundHoweverTheBytesAreCut(t *testing.T) {
	stream := bytes.Join([][]byte{
		{0x80, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6}, // SYN_STREAM 5
		{0, 0, 0, 5, 0, 0, 0, 3, 7, 7, 7},                          // data
		{0, 0, 0, 5, 1, 0, 0, 0},                                   // its end
		{0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1},                    // PING
		{0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5},        // RST_STREAM 5
	}, nil)
	want := []frame{{true, false, 1, 10, 5}, {false, false, 0, 3, 5}, {false, true, 0, 0, 5}, {true, false, 6, 4, 0}, {true, false, 3, 8, 5}}
	for size := 1; size <= len(stream); size++ {
		var s frameScanner
		var got []frame
		for rest := stream; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			_, _ = s.scan(rest[:min(size, len(rest))], func(f frame) error { got = append(got, f); return nil })
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || s.within() {
			t.Errorf("in parts of %d: %v", size, got)
		}
	}
}
