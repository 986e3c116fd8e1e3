package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// dialSPDY upgrades a connection to a streaming URL, as the kubelet does.
func dialSPDY(ctx context.Context, url, protocol string) (httpstream.Connection, error) {
	transport, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return transport.NewConnection(resp)
}

// execOverSPDY runs a streaming exec to its end with protocol v4, whose error stream tells the exit code; it must be
// exitCode.
func execOverSPDY(ctx context.Context, url string, input []byte) (stdout, stderr []byte, err error) {
	conn, err := dialSPDY(ctx, url, "v4.channel.k8s.io")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = conn.Close() }()
	streams := map[string]httpstream.Stream{}
	for _, kind := range []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout, remotecommand.StreamTypeStderr} {
		stream, err := conn.CreateStream(http.Header{remotecommand.StreamType: {kind}})
		if err != nil {
			return nil, nil, fmt.Errorf("%s stream: %w", kind, err)
		}
		streams[kind] = stream
	}
	var out, errOut, status bytes.Buffer
	var reads sync.WaitGroup
	for kind, buf := range map[string]*bytes.Buffer{remotecommand.StreamTypeStdout: &out, remotecommand.StreamTypeStderr: &errOut, remotecommand.StreamTypeError: &status} {
		reads.Go(func() { _, _ = io.Copy(buf, streams[kind]) })
	}
	stdin := streams[remotecommand.StreamTypeStdin]
	if _, err := stdin.Write(input); err != nil {
		return nil, nil, fmt.Errorf("write stdin: %w", err)
	}
	if err := stdin.Close(); err != nil {
		return nil, nil, fmt.Errorf("close stdin: %w", err)
	}
	done := make(chan struct{})
	go func() { reads.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	return out.Bytes(), errOut.Bytes(), checkExit(status.Bytes())
}

// checkExit reads the metav1.Status of the error stream.
func checkExit(data []byte) error {
	var status struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return fmt.Errorf("status %q: %w", data, err)
	}
	for _, cause := range status.Details.Causes {
		if cause.Reason == "ExitCode" && cause.Message == strconv.Itoa(exitCode) {
			return nil
		}
	}
	return fmt.Errorf("ended with status %s: %s; want exit code %d", status.Status, status.Message, exitCode)
}

// forwardOverSPDY gives an HTTP transport whose one connection goes through a port-forward.
func forwardOverSPDY(ctx context.Context, url string, port int) (http.RoundTripper, func(), error) {
	conn, err := dialSPDY(ctx, url, portforward.ProtocolV1Name)
	if err != nil {
		return nil, nil, err
	}
	closeAll := func() { _ = conn.Close() }
	header := func(kind string) http.Header {
		return http.Header{
			portforward.StreamType: {kind}, portforward.PortHeader: {strconv.Itoa(port)}, portforward.PortForwardRequestIDHeader: {"1"},
		}
	}
	errStream, err := conn.CreateStream(header(portforward.StreamTypeError))
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	data, err := conn.CreateStream(header(portforward.StreamTypeData))
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return &streamConn{Stream: data, errStream: errStream}, nil
		},
	}
	return transport, closeAll, nil
}

// streamConn makes a connection of a port-forward's data stream; its read error is what the error stream says.
type streamConn struct {
	httpstream.Stream
	errStream io.Reader
}

func (c *streamConn) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	if n == 0 && errors.Is(err, io.EOF) {
		if text, _ := io.ReadAll(io.LimitReader(c.errStream, 4<<10)); len(text) > 0 {
			return 0, errors.New(string(text))
		}
	}
	return n, err
}

func (c *streamConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *streamConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *streamConn) SetDeadline(time.Time) error      { return nil }
func (c *streamConn) SetReadDeadline(time.Time) error  { return nil }
func (c *streamConn) SetWriteDeadline(time.Time) error { return nil }
