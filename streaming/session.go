package streaming

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watchInterval and goneGrace together bound how long a client's end takes to reach the Runtime: below the 5 s promised.
	watchInterval = time.Second
	// goneGrace lets what the client sent before it left reach its destination.
	goneGrace = time.Second
	// lingerTimeout bounds the wait for the client's close after ours, once it has taken all: input that comes later, or is not
	// read, would reset the connection and take the last output and the exit status with it.
	lingerTimeout = time.Second
	// lastWords is for the status of a session that was cut.
	lastWords = time.Second
	// idleGrace lets a protocol end an idle session in its own way, before the session is cut.
	idleGrace = 2 * time.Second
)

var (
	errClientGone = errors.New("the client is gone")
	errConnClosed = errors.New("the connection was closed")
	errIdle       = errors.New("the connection was idle")
	errStreams    = errors.New("the client did not open the streams that it asked for")
)

// session runs serve, whose request's context ends when the client is gone, which net/http does not notice on a hijacked
// connection. However serve returns (a panic too), the connection is closed behind it: cri-streaming leaves it open where
// the client did not open its streams in time. maxStreams bounds the SPDY streams, 0 does not.
func (s *Server) session(w http.ResponseWriter, r *http.Request, maxStreams int, serve func(*hijacker, *http.Request)) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	ctx = context.WithValue(ctx, intakeKey{}, &intake{patience: s.opts.CreationTimeout})
	h := &hijacker{ResponseWriter: w, ctx: ctx, cancel: cancel, opts: &s.opts}
	// Whatever else is named: cri-streaming takes it for SPDY.
	if strings.Contains(strings.ToLower(r.Header.Get("Upgrade")), "spdy/3.1") {
		h.wrap = func(c net.Conn) net.Conn { return newSPDYConn(ctx, c, maxStreams) }
	}
	defer h.finish(r.Context())
	serve(h, r.WithContext(ctx))
}

// clientGone says whether the context of a session ended because nobody is there to be told anything.
func clientGone(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return errors.Is(cause, errClientGone) || errors.Is(cause, errConnClosed) // the latter is after a goodbye, too
}

// hijacker is the response of a session. It has no Unwrap on purpose: nobody shall hijack behind its back.
type hijacker struct {
	http.ResponseWriter
	ctx    context.Context // the session's, for the connection's life
	cancel context.CancelCauseFunc
	opts   *Options
	wrap   func(net.Conn) net.Conn // nil for none
	conn   *clientConn             // nil before Hijack
	cutoff func() bool
}

// Hijack implements http.Hijacker. All bytes pass through the connection returned, those that the client sent right behind its
// request included: net/http's reader keeps none.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	raw, buffered, err := h.ResponseWriter.(http.Hijacker).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early := make([]byte, buffered.Reader.Buffered())
	_, _ = io.ReadFull(buffered.Reader, early) // from memory
	h.conn = newClientConn(raw, early, h.opts, h.cancel)
	h.cutoff = context.AfterFunc(h.ctx, h.conn.interrupt)
	var conn net.Conn = h.conn
	if h.wrap != nil {
		conn = h.wrap(conn)
	}
	return conn, bufio.NewReadWriter(bufio.NewReaderSize(conn, 32<<10), bufio.NewWriter(conn)), nil
}

// finish closes the connection. ctx ends when the server cuts every session.
func (h *hijacker) finish(ctx context.Context) {
	if h.conn == nil {
		return
	}
	h.cutoff()
	_ = h.conn.Close()
	h.conn.linger(ctx)
}

// clientConn is the connection to a client, watched for its end: by reading, and where nobody reads (a process that takes
// no input) by asking the kernel.
type clientConn struct {
	net.Conn
	cancel  context.CancelCauseFunc
	silence time.Duration // see Options
	idle    idleness
	early   []byte // read before the connection

	closed    atomic.Bool
	closeOnce sync.Once
	deadlines sync.Mutex
	final     bool // the deadlines are ours; guarded by deadlines
	goneOnce  sync.Once
	grace     atomic.Pointer[time.Timer]
	done      chan struct{} // closed by Close
	watching  sync.WaitGroup
}

func newClientConn(raw net.Conn, early []byte, opts *Options, cancel context.CancelCauseFunc) *clientConn {
	c := &clientConn{Conn: raw, cancel: cancel, silence: opts.silence, early: early, done: make(chan struct{})}
	c.idle.limit = opts.IdleTimeout + idleGrace
	if tcp, ok := plain(raw).(*net.TCPConn); ok {
		// Where nothing is sent. Behind data that is not acknowledged the kernel sends no probes; see silent.
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: c.silence / 2, Interval: c.silence / 6, Count: 3})
	}
	c.watching.Go(c.watch)
	return c
}

// plain is the connection under TLS.
func plain(c net.Conn) net.Conn {
	if t, ok := c.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c
}

func (c *clientConn) Read(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, io.EOF
	}
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	c.idle.moved(n)
	if err != nil && !c.closed.Load() {
		c.gone()
	}
	return n, err
}

func (c *clientConn) Write(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Write(p)
	c.idle.moved(n)
	if err != nil && !c.closed.Load() {
		c.gone()
	}
	return n, err
}

// Close ends our side and the protocol's reading; the session closes the socket after the client has. It returns no error and
// may be repeated: spdystream waits for somebody to take an error.
func (c *clientConn) Close() error {
	c.closeOnce.Do(func() {
		c.closed.Store(true)
		close(c.done)
		if t := c.grace.Load(); t != nil {
			t.Stop()
		}
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		c.setFinal(time.Now())
		c.cancel(errConnClosed)
	})
	return nil
}

// interrupt makes a session that was cut end in a moment, which is for the status: spdystream sends nothing after its last read.
func (c *clientConn) interrupt() {
	if !c.closed.Load() {
		c.setFinal(time.Now().Add(lastWords))
	}
}

// setFinal sets the deadline for all reading and writing, whatever the protocols set from now on.
func (c *clientConn) setFinal(t time.Time) {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	c.final = true
	_ = c.Conn.SetDeadline(t)
}

func (c *clientConn) setDeadline(set func(time.Time) error, t time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	if c.final {
		return nil
	}
	return set(t)
}

func (c *clientConn) SetDeadline(t time.Time) error { return c.setDeadline(c.Conn.SetDeadline, t) }
func (c *clientConn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(c.Conn.SetReadDeadline, t)
}
func (c *clientConn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(c.Conn.SetWriteDeadline, t)
}

// linger reads until the client has closed too, and closes the socket. A client that takes its time with what was sent is waited
// for as long as it takes some of it within the time that a session may be idle.
func (c *clientConn) linger(ctx context.Context) {
	c.watching.Wait()
	defer c.Conn.Close()
	c.idle.busy.Store(false) // the goodbye is no traffic: who was idle already is not waited for
	for left := c.unsent(); ; {
		_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTimeout))
		if _, err := io.Copy(io.Discard, c.Conn); !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return
		}
		before := left
		if left = c.unsent(); left == 0 {
			return
		}
		c.idle.moved(before - left)
		if c.idle.over(time.Now()) {
			return
		}
	}
}

// unsent is how much the kernel still has for the client; 0 also where its host is silent.
func (c *clientConn) unsent() (n int) {
	sc, ok := plain(c.Conn).(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil || silent(raw, c.silence) {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
	return n
}

func (c *clientConn) gone() {
	c.goneOnce.Do(func() {
		c.grace.Store(time.AfterFunc(goneGrace, func() { c.cancel(errClientGone) }))
	})
}

// watch finds the client's FIN or RST also behind input that nobody reads: neither SPDY nor WebSocket half-closes TCP, so
// either means that the client is gone. It finds too that a client was sent something and is silent, and cuts a session in which
// nothing moves: the protocols end one that is idle by telling the client, and cannot where it reads nothing.
func (c *clientConn) watch() {
	sc, ok := plain(c.Conn).(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case now := <-tick.C:
			if c.idle.over(now) {
				c.cancel(errIdle)
				return
			}
		}
		if hungUp(raw) || silent(raw, c.silence) {
			c.gone()
			return
		}
	}
}

// idleness finds out that nothing has moved on a connection for longer than limit.
type idleness struct {
	limit time.Duration
	busy  atomic.Bool // something has moved since over was asked last
	since time.Time   // used by over
}

// moved notes n bytes in either direction.
func (i *idleness) moved(n int) {
	if n > 0 {
		i.busy.Store(true)
	}
}

// over is asked now and then by one goroutine.
func (i *idleness) over(now time.Time) bool {
	if i.busy.Swap(false) || i.since.IsZero() {
		i.since = now
	}
	return now.Sub(i.since) > i.limit
}

func hungUp(raw syscall.RawConn) bool {
	var events int16
	err := raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(fds, 0); err == nil && n > 0 {
			events = fds[0].Revents
		}
	})
	return err != nil || events&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// How often the kernel has sent data again, or asked about a full window, without an answer before its silence counts. The
// questions come ever more rarely, up to two minutes apart.
const (
	unansweredData      = 4
	unansweredQuestions = 3
)

// silent says that the client's host was sent something again and again and has answered nothing for so long. The kernel
// alone would go on for a quarter of an hour and more. A client that reads nothing is not silent: its kernel answers.
// TCP_USER_TIMEOUT makes no such difference and would end it too.
func silent(raw syscall.RawConn, limit time.Duration) bool {
	gone := false
	err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return // no TCP
		}
		again := info.Unacked > 0 && info.Retransmits >= unansweredData || info.Probes >= unansweredQuestions
		gone = again && time.Duration(info.Last_ack_recv)*time.Millisecond > limit
	})
	return err == nil && gone
}
