package server

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// frozenConn is the connection of a client whose process is stopped: once frozen, it reads nothing and answers no ping.
type frozenConn struct {
	net.Conn
	frozen, closed chan struct{}
	closing        sync.Once
}

func (c *frozenConn) Read(p []byte) (int, error) {
	select {
	case <-c.frozen:
		<-c.closed
		return 0, net.ErrClosed
	default:
	}
	n, err := c.Conn.Read(p)
	select {
	case <-c.frozen: // too late
		<-c.closed
		return 0, net.ErrClosed
	default:
	}
	return n, err
}

func (c *frozenConn) Close() error {
	c.closing.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Clients that are stopped in the middle of a stream, of events or of a list of many megabytes, hold up nobody, and what was
// kept for them is given up while they are still there.
//
// Rows: R43 (part), R47 (part), R50 (part)
func TestClientsThatFreezeAreCutOffAndHoldUpNobody(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) {
		o.keepalive = keepalive.ServerParameters{Time: time.Second, Timeout: 5 * time.Second} // in which who is not frozen answers
	}
	f.restart()
	const count, each = 3000, 20
	sink := f.store.Sink(f.engine.Name())
	labels := map[string]string{"text": strings.Repeat("x", 4000)}
	for i := range count {
		sink.ContainerChanged(engine.ContainerStatus{
			ID: engine.ContainerID(fmt.Sprintf("%064x", i)), Pod: engine.PodID(fmt.Sprintf("%064x", count+i/each)), Key: engine.ContainerKey{Name: fmt.Sprintf("c%d", i)}, State: engine.ContainerExited,
			CreatedAt: time.Now(), StartedAt: time.Now(), FinishedAt: time.Now(), Spec: &engine.ContainerSpec{Labels: labels}})
	}
	frozen := make(chan struct{})
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(f.root, "cri.sock"))
		if err != nil {
			return nil, err
		}
		return &frozenConn{Conn: conn, frozen: frozen, closed: make(chan struct{})}, nil
	}
	const clients = 20
	for i := range clients {
		conn, err := grpc.NewClient("passthrough:///frozen", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		client := runtimeapi.NewRuntimeServiceClient(conn)
		if i%2 == 0 {
			stream, err := client.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
			if err == nil {
				_, err = stream.Recv() // the rest is more than what flow control lets through
			}
			if err != nil {
				t.Fatal(err)
			}
		} else if _, err := client.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all streams are served", func() error {
		if n := serving(); n != clients {
			return fmt.Errorf("%d of %d", n, clients)
		}
		return nil
	})
	close(frozen)
	began := time.Now()
	f.runPod("beside")
	if list, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil || len(list.Items) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("a pod and a list took %v", took)
	}
	eventually(t, "the streams of the frozen are given up", func() error {
		if n := serving(); n != 0 {
			return fmt.Errorf("%d are served", n)
		}
		return nil
	})
}

// serving counts the handlers of streams that run.
func serving() int {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), "server.(*Server).GetContainerEvents(") + strings.Count(string(stacks), "server.(*Server).StreamContainers(")
}
