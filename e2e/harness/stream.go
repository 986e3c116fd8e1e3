package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Streams are the client's ends of an exec or attach. Nil streams are not asked for.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	// Resize is sent as the terminal's size where it is not zero.
	Resize TerminalSize
}

// TerminalSize is what the remotecommand protocols carry as JSON.
type TerminalSize struct{ Width, Height uint16 }

// ExecURL asks for the address of an exec.
func (c *Container) ExecURL(streams Streams, command ...string) string {
	c.t.Helper()
	reply, err := c.pod.node.Shim.Runtime.Exec(within(c.t, Call), &runtimeapi.ExecRequest{
		ContainerId: c.ID, Cmd: command, Tty: streams.TTY, Stdin: streams.Stdin != nil, Stdout: streams.Stdout != nil, Stderr: streams.Stderr != nil,
	})
	if err != nil {
		c.t.Fatalf("asking for an exec: %v", err)
	}
	return reply.Url
}

// AttachURL asks for the address of an attach.
func (c *Container) AttachURL(streams Streams) string {
	c.t.Helper()
	reply, err := c.pod.node.Shim.Runtime.Attach(within(c.t, Call), &runtimeapi.AttachRequest{
		ContainerId: c.ID, Tty: streams.TTY, Stdin: streams.Stdin != nil, Stdout: streams.Stdout != nil, Stderr: streams.Stderr != nil,
	})
	if err != nil {
		c.t.Fatalf("asking for an attach: %v", err)
	}
	return reply.Url
}

// PortForwardURL asks for the address of a port-forward.
func (p *Pod) PortForwardURL(ports ...int32) string {
	p.t.Helper()
	reply, err := p.node.Shim.Runtime.PortForward(within(p.t, Call), &runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: ports})
	if err != nil {
		p.t.Fatalf("asking for a port-forward: %v", err)
	}
	return reply.Url
}

// dialSPDY upgrades a connection to SPDY as the kubelet does; over TLS it takes any certificate.
func dialSPDY(address string, protocols ...string) (httpstream.Connection, string, error) {
	transport, err := spdy.NewRoundTripper(selfSigned)
	if err != nil {
		return nil, "", err
	}
	request, err := http.NewRequest(http.MethodPost, address, nil)
	if err != nil {
		return nil, "", err
	}
	for _, protocol := range protocols {
		request.Header.Add(httpstream.HeaderProtocolVersion, protocol)
	}
	reply, err := transport.RoundTrip(request)
	if err != nil {
		return nil, "", fmt.Errorf("dialling %s: %w", address, err)
	}
	defer reply.Body.Close()
	connection, err := transport.NewConnection(reply)
	if err != nil {
		return nil, "", fmt.Errorf("upgrading %s: %w", address, err)
	}
	return connection, reply.Header.Get(httpstream.HeaderProtocolVersion), nil
}

// ExitError is the exit status of a process that did not end with 0.
type ExitError int

func (e ExitError) Error() string { return "exit status " + strconv.Itoa(int(e)) }

// StreamSPDY runs an exec or attach over SPDY, protocol v4, until it ends.
func StreamSPDY(ctx context.Context, address string, s Streams) error {
	connection, protocol, err := dialSPDY(address, "v4.channel.k8s.io")
	if err != nil {
		return err
	}
	defer connection.Close()
	if protocol != "v4.channel.k8s.io" {
		return fmt.Errorf("protocol %q was agreed on", protocol)
	}
	defer context.AfterFunc(ctx, func() { _ = connection.Close() })()
	open := func(kind string) (httpstream.Stream, error) {
		return connection.CreateStream(http.Header{"Streamtype": {kind}})
	}
	errorStream, err := open("error")
	if err != nil {
		return err
	}
	_ = errorStream.Close() // our direction
	// All streams are opened before the first byte is sent: the server reads none before it has them all, and what it does not
	// read holds up what comes behind it.
	streams := map[string]httpstream.Stream{}
	for kind, wanted := range map[string]bool{"stdin": s.Stdin != nil, "stdout": s.Stdout != nil, "stderr": s.Stderr != nil, "resize": s.TTY} {
		if !wanted {
			continue
		}
		if streams[kind], err = open(kind); err != nil {
			return err
		}
	}
	if stdin := streams["stdin"]; stdin != nil {
		go func() {
			_, _ = io.Copy(stdin, struct{ io.Reader }{s.Stdin}) // in frames of 32 KiB; the process may end before it read everything
			_ = stdin.Close()
		}()
	}
	var copies sync.WaitGroup
	for kind, to := range map[string]io.Writer{"stdout": s.Stdout, "stderr": s.Stderr} {
		from := streams[kind]
		if from == nil {
			continue
		}
		_ = from.Close()
		copies.Go(func() { _, _ = io.Copy(to, from) })
	}
	if resize := streams["resize"]; resize != nil && s.Resize != (TerminalSize{}) {
		if err := json.NewEncoder(resize).Encode(s.Resize); err != nil {
			return err
		}
	}
	status, err := io.ReadAll(errorStream)
	copies.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return decodeStatus(status)
}

// decodeStatus reads what protocols v4 and v5 send on the error stream: a metav1.Status.
func decodeStatus(data []byte) error {
	var status struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if len(data) == 0 {
		return errors.New("the stream ended without a status")
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return fmt.Errorf("status %q: %w", data, err)
	}
	if status.Status == "Success" {
		return nil
	}
	for _, cause := range status.Details.Causes {
		if cause.Reason == "ExitCode" {
			code, err := strconv.Atoi(cause.Message)
			if err != nil {
				return fmt.Errorf("exit code in %q: %w", data, err)
			}
			return ExitError(code)
		}
	}
	return errors.New(status.Message)
}

// The channels of the WebSocket protocols, the first byte of each message. channelClose is new in v5.
const (
	channelStdin, channelStdout, channelStderr, channelError, channelResize = 0, 1, 2, 3, 4
	channelClose                                                            = 255
)

// StreamWebSocket runs an exec or attach over WebSocket, protocol v5, until it ends.
func StreamWebSocket(ctx context.Context, address string, s Streams) error {
	conn, err := dialWebSocket(ctx, address, "v5.channel.k8s.io")
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if s.Resize != (TerminalSize{}) {
		size, err := json.Marshal(s.Resize)
		if err != nil {
			return err
		}
		if err := conn.WriteMessage(websocket.BinaryMessage, append([]byte{channelResize}, size...)); err != nil {
			return err
		}
	}
	if s.Stdin != nil {
		go sendStdin(conn, s.Stdin)
	}
	return receive(ctx, conn, s)
}

func sendStdin(conn *websocket.Conn, from io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer[1:])
		if n > 0 {
			buffer[0] = channelStdin
			if conn.WriteMessage(websocket.BinaryMessage, buffer[:n+1]) != nil {
				return // the process has ended
			}
		}
		if err != nil {
			_ = conn.WriteMessage(websocket.BinaryMessage, []byte{channelClose, channelStdin})
			return
		}
	}
}

func receive(ctx context.Context, conn *websocket.Conn, s Streams) error {
	for {
		_, message, err := conn.ReadMessage()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("the stream ended without a status: %w", err)
		}
		if len(message) < 2 {
			continue
		}
		var to io.Writer
		switch message[0] {
		case channelStdout:
			to = s.Stdout
		case channelStderr:
			to = s.Stderr
		case channelError:
			return decodeStatus(message[1:])
		}
		if to == nil {
			return fmt.Errorf("a message on channel %d, which was not asked for", message[0])
		}
		if _, err := to.Write(message[1:]); err != nil {
			return err
		}
	}
}

// Buffer is a bytes.Buffer that one goroutine may read while another writes.
type Buffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

// Write appends.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

// String is everything so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// WaitFor waits until text was written.
func (b *Buffer) WaitFor(t T, text string) {
	t.Helper()
	Eventually(t, 20*time.Second, fmt.Sprintf("%q on the stream", text), func() error {
		if got := b.String(); !strings.Contains(got, text) {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
}
