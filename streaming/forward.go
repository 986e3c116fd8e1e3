package streaming

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// forwardGrace is how long one direction may be silent once the other has ended: containerd's figure.
	forwardGrace = time.Second
	// copyBuffer is a frame's size towards the client; 64 and 128 KiB measured no faster.
	copyBuffer = 32 << 10
)

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// Forward connects stream to DialPod's connection and copies both ways. The end of one direction is passed on as a half
// close (stream's CloseWrite where it has one); the other then has 1 s without traffic to end by itself, or 1 s at all where
// stream's WasReset says that the client takes no more. stream is closed on return; nil for an orderly end or the pod's reset,
// DialPod's errors, a copy's error, or ctx's.
func Forward(ctx context.Context, netnsPath string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := DialPod(ctx, netnsPath, port)
	if err != nil {
		return err
	}
	return join(ctx, conn, stream)
}

// join copies between the pod's connection and the client's stream, and closes both.
func join(ctx context.Context, pod net.Conn, client io.ReadWriteCloser) error {
	var fromPod, fromClient half
	ends := make(chan error, 2)
	var copying sync.WaitGroup
	copying.Go(func() { ends <- unlessReset(fromPod.copy(client, pod)) })
	copying.Go(func() { ends <- unlessReset(fromClient.copy(pod, client)) })
	defer copying.Wait()
	defer client.Close()
	defer pod.Close()

	var first error
	select {
	case first = <-ends:
	case <-ctx.Done():
		return ctx.Err()
	}
	moved := func() int64 { return fromPod.moved.Load() + fromClient.moved.Load() }
	grace := time.NewTicker(forwardGrace)
	defer grace.Stop()
	for before := moved(); ; before = moved() {
		select {
		case second := <-ends:
			return errors.Join(first, second)
		case <-ctx.Done():
			return ctx.Err()
		case <-grace.C:
			// A client that reads slowly has not been told everything yet.
			if moved() == before && !fromPod.writing.Load() || wasReset(client) {
				return first
			}
		}
	}
}

// unlessReset takes a pod that no longer reads for an orderly end, a server may answer before it has read everything, and one that
// resets its connection too: that ends this connection, and kubectl ends all that it forwards at an error of one.
func unlessReset(err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// half is one direction.
type half struct {
	moved   atomic.Int64 // bytes
	writing atomic.Bool  // a write is under way
}

// copy copies until src ends, and half-closes dst.
func (h *half) copy(dst io.Writer, src io.Reader) error {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	defer closeWrite(dst)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			h.moved.Add(int64(n))
			h.writing.Store(true)
			_, werr := dst.Write(buf[:n])
			h.writing.Store(false)
			if werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func wasReset(client any) bool {
	stream, ok := client.(interface{ WasReset() bool })
	return ok && stream.WasReset()
}

func closeWrite(dst io.Writer) {
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
