package streaming

import (
	"context"
	"io"
	"net"
)

// DialPod connects to the TCP port on the loopback address of a network namespace: 127.0.0.1, then ::1. netnsPath is a
// pinned namespace (a bind mount of nsfs); "" is the host's, for pods with the host's network. It runs no program and
// leaves no thread in the namespace.
//
// Errors: ErrInvalidArgument for a port outside 1 to 65535; ErrFailedPrecondition where the path is no network
// namespace of a pod (unpinned, or the host's own); ErrNotFound where it is gone; the connect's own error otherwise.
func DialPod(ctx context.Context, netnsPath string, port int32) (net.Conn, error) {
	panic("being written")
}

// Forward connects stream to DialPod's connection and copies both ways. The end of one direction is passed on as a half
// close; the other then has 1 s without traffic to end by itself. stream is closed on return; nil for an orderly end,
// DialPod's errors, a copy's error, or ctx's.
func Forward(ctx context.Context, netnsPath string, port int32, stream io.ReadWriteCloser) error {
	panic("being written")
}
