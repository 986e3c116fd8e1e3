package streaming

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	// messageSize bounds a message to the client; a message of the client's is passed on in parts, whatever its size.
	messageSize = 64 << 10
	// resizeLimit bounds a message with terminal sizes.
	resizeLimit = 4 << 10
	// controlTimeout bounds the write of a close.
	controlTimeout = time.Second
)

// channelProtocols are those of exec and attach. In the base64 ones messages are text, and in those before v4 a failure is told in words.
var channelProtocols = []string{
	remotecommand.StreamProtocolV5Name,
	remotecommand.StreamProtocolV4Name, "v4.base64.channel.k8s.io",
	remotecommand.StreamProtocolV1Name, "base64.channel.k8s.io",
}

// upgradeWebSocket accepts one of the subprotocols, or none. The origin is not checked: the token is what a stranger's page lacks.
func upgradeWebSocket(w http.ResponseWriter, r *http.Request, protocols ...string) (*websocket.Conn, error) {
	upgrader := websocket.Upgrader{
		Subprotocols:    protocols,
		ReadBufferSize:  32 << 10,
		WriteBufferSize: messageSize + 1,
		CheckOrigin:     func(*http.Request) bool { return true },
	}
	return upgrader.Upgrade(w, r, nil) // it answers the client on error
}

// serveChannels serves exec and attach over a WebSocket: messages that begin with a channel's number, and the status on the error
// channel before the close. In v5 a message 255 N is the half close of channel N (what the older ones lack: the end of stdin).
// A client that names no protocol gets channel.k8s.io.
func serveChannels(h *hijacker, r *http.Request, want wanted, run runStreams) {
	offered := websocket.Subprotocols(r)
	if len(offered) > 0 && !slices.ContainsFunc(offered, func(p string) bool { return slices.Contains(channelProtocols, p) }) {
		http.Error(h, fmt.Sprintf("none of the protocols %q is one of %q", offered, channelProtocols), http.StatusForbidden)
		return
	}
	ws, err := upgradeWebSocket(h, r, channelProtocols...)
	if err != nil {
		return
	}
	protocol := ws.Subprotocol()
	// The session is cut here, and not only by its connection: a client that reads nothing may go on with pings, which are no
	// traffic of the channels.
	c := &channels{ws: ws, halfClose: protocol == remotecommand.StreamProtocolV5Name, base64: strings.Contains(protocol, "base64"), idle: time.AfterFunc(h.opts.IdleTimeout, func() { h.cancel(errIdle) }), timeout: h.opts.IdleTimeout}
	defer c.idle.Stop()
	c.alive, c.pause = time.AfterFunc(h.opts.silence, c.sayAlive), h.opts.silence/2
	c.alive.Stop()
	ws.SetPingHandler(c.answer)
	stdin, input := io.Pipe()
	if !want.stdin {
		_ = stdin.Close() // what comes all the same is dropped
	}
	resize := make(chan TerminalSize, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		c.receive(input, resize)
		// After its goodbye, too, a client may keep the connection open: it waits for the server to close it first.
		if !h.conn.closed.Load() {
			h.conn.gone()
		}
	})

	// An empty message tells the client that the connection stands, as in the older versions.
	_, _ = c.send(c.firstOutput(want), nil)
	err = run(r.Context(), Streams{
		Stdin:  stdin,
		Stdout: channel{c, remotecommand.StreamStdOut},
		Stderr: channel{c, remotecommand.StreamStdErr},
		Resize: resize,
	})
	_ = stdin.Close()
	switch status := statusOf(err); {
	case strings.HasPrefix(protocol, "v"):
		if data, jerr := json.Marshal(status); jerr == nil {
			_, _ = c.send(remotecommand.StreamErr, data)
		}
	case err != nil:
		_, _ = c.send(remotecommand.StreamErr, []byte(status.Message))
	}
	closing := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = ws.WriteControl(websocket.CloseMessage, closing, time.Now().Add(controlTimeout))
	_ = ws.Close()
	reading.Wait()
}

// channels is a WebSocket with numbered channels.
type channels struct {
	ws *websocket.Conn
	// halfClose and base64 are of the protocol.
	halfClose, base64 bool

	idle    *time.Timer
	timeout time.Duration
	// alive runs, every pause, while input waits for the process to read it: the client's pings are behind that.
	alive *time.Timer
	pause time.Duration
	// answering says that the answer to a ping waits for what is being written.
	answering atomic.Bool

	mu  sync.Mutex // over writing
	buf [1 + messageSize]byte
}

func (c *channels) firstOutput(want wanted) byte {
	switch {
	case want.stdout:
		return remotecommand.StreamStdOut
	case want.stderr:
		return remotecommand.StreamStdErr
	}
	return remotecommand.StreamErr
}

func (c *channels) send(number byte, p []byte) (sent int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf[0] = number
	for first := true; first || sent < len(p); first = false {
		c.idle.Reset(c.timeout)
		n := copy(c.buf[1:], p[sent:])
		if err := c.write(c.buf[:1+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

func (c *channels) write(message []byte) error {
	if !c.base64 {
		return c.ws.WriteMessage(websocket.BinaryMessage, message)
	}
	text := base64.StdEncoding.AppendEncode([]byte{'0' + message[0]}, message[1:])
	return c.ws.WriteMessage(websocket.TextMessage, text)
}

// receive hands out the client's messages until the connection ends.
func (c *channels) receive(stdin *io.PipeWriter, resize chan TerminalSize) {
	defer close(resize)
	defer stdin.Close()
	buf := make([]byte, 32<<10)
	for {
		_, message, err := c.ws.NextReader()
		if err != nil {
			return
		}
		c.idle.Reset(c.timeout)
		var number [1]byte
		if _, err := io.ReadFull(message, number[:]); err != nil {
			continue // an empty message
		}
		if c.base64 {
			number[0] -= '0'
			message = base64.NewDecoder(base64.StdEncoding, message)
		}
		switch number[0] {
		case remotecommand.StreamStdIn:
			// A process that has closed its stdin does not end the connection: the rest is skipped by NextReader.
			c.alive.Reset(c.pause)
			_, _ = io.CopyBuffer(struct{ io.Writer }{stdin}, message, buf)
			c.alive.Stop()
		case remotecommand.StreamResize:
			var size TerminalSize
			for d := json.NewDecoder(io.LimitReader(message, resizeLimit)); d.Decode(&size) == nil; {
				offer(resize, size)
			}
		case remotecommand.StreamClose:
			if _, err := io.ReadFull(message, number[:]); err == nil && c.halfClose && number[0] == remotecommand.StreamStdIn {
				_ = stdin.Close()
			}
		}
	}
}

// answer answers a ping, beside the reading, as soon as what is being written is; of those that come meanwhile it answers none. The
// library gives its own answer up after a second, as nearly each to a client that is slow to read, and the connection with one begun.
func (c *channels) answer(ping string) error {
	if c.answering.CompareAndSwap(false, true) {
		go func() {
			defer c.answering.Store(false)
			_ = c.ws.WriteControl(websocket.PongMessage, []byte(ping), time.Time{})
		}()
	}
	return nil
}

// sayAlive sends a pong that nobody asked for: kubectl gives a connection up that answers no ping for a minute. It may take its
// time, as a write that is given up ends the connection.
func (c *channels) sayAlive() {
	if c.ws.WriteControl(websocket.PongMessage, nil, time.Time{}) == nil {
		c.alive.Reset(c.pause)
	}
}

// offer replaces a size that nobody has taken: only the last one counts. It has one caller at a time.
func offer(sizes chan TerminalSize, size TerminalSize) {
	select {
	case <-sizes:
	default:
	}
	sizes <- size
}

// channel is one direction of a channel: output.
type channel struct {
	c      *channels
	number byte
}

func (ch channel) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return ch.c.send(ch.number, p)
}

// Close does nothing: the protocol has no close towards the client; the status is the end of every output.
func (channel) Close() error { return nil }

// status is what of a Kubernetes metav1.Status tells an exec's end.
type status struct {
	Status  string         `json:"status"`
	Message string         `json:"message,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Details *statusDetails `json:"details,omitempty"`
	Code    int            `json:"code,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

type statusCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(err error) status {
	if err == nil {
		return status{Status: "Success"}
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return status{
			Status:  "Failure",
			Reason:  remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", err),
			Details: &statusDetails{Causes: []statusCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(int(code))}}},
		}
	}
	return status{
		Status:  "Failure",
		Reason:  "InternalError",
		Message: fmt.Sprintf("Internal error occurred: %v", err),
		Code:    http.StatusInternalServerError,
	}
}
