package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/docker/docker/pkg/stdcopy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// streams measures MiB a second out of an exec and through a port-forward, the sides in turns. Docker's column is the raw
// exec of its API, and a direct connection to the pod; for SPDY it is cri-streaming over the raw exec, with nothing of crishim.
func (n *bench) streams(mib, rounds int) {
	n.b.Helper()
	crishim := n.cri(n.node.Shim.Client, n.image)
	pod := n.streamPod(crishim)
	n.pods++
	defer func() { n.pods-- }()
	exec := &row{name: "exec out, SPDY", unit: "MiB/s", goals: []goal{atLeastRatio(0.95), atLeastPeer()}}
	socket := &row{name: "exec out, WebSocket v5", unit: "MiB/s", goals: []goal{atLeastRatio(0.95)}}
	bare := &row{name: "exec out, cri-streaming alone, SPDY", unit: "MiB/s"}
	forward := &row{name: "port-forward, SPDY", unit: "MiB/s", goals: []goal{atLeast(479)}}
	busybox := harness.BusyboxFile(n.b)
	source, sourceName := onHost+busybox, "raw process"
	raw := func(to io.Writer) error { return hostOut(busybox, mib, to) }
	if !harness.Native() {
		docker := dockerAt(n.b.Context(), n.node.Docker.Socket)
		source, sourceName = n.node.Docker.Socket, "raw exec"
		raw = func(to io.Writer) error { return docker.execOut(pod.container, mib, to) }
	}
	url := n.bareStreaming(source, pod.container, mib)
	turn, end := n.peerStreams(exec, forward, mib)
	for range rounds {
		n.rate(&exec.ours, mib, "exec", func(to io.Writer) error { return n.execOut(crishim, pod, mib, to, harness.StreamSPDY) })
		n.rate(&socket.ours, mib, "exec", func(to io.Writer) error { return n.execOut(crishim, pod, mib, to, harness.StreamWebSocket) })
		n.rate(&bare.ours, mib, "cri-streaming alone", func(to io.Writer) error {
			return harness.StreamSPDY(n.b.Context(), url, harness.Streams{Stdout: to})
		})
		n.rate(&bare.floor, mib, sourceName, raw)
		n.rate(&forward.ours, mib, "port-forward", func(to io.Writer) error { return n.forward(crishim, pod, mib, to) })
		n.rate(&forward.floor, mib, "direct connection", func(to io.Writer) error { return n.direct(crishim, pod, mib, to) })
		turn()
	}
	end()
	exec.floor, socket.floor = bare.ours, bare.ours
	n.rows = append(n.rows, exec, socket, forward, bare)
	if err := crishim.end(pod, times{}); err != nil {
		n.b.Fatalf("ending the pod of the streams: %v", err)
	}
}

// peerStreams gives the peer a pod and returns its turn in a round, and what takes the pod away.
func (n *bench) peerStreams(exec, forward *row, mib int) (turn, end func()) {
	n.b.Helper()
	if n.peer == nil {
		return func() {}, func() {}
	}
	if n.sameEngine {
		n.pods++ // crishim lists the peer's pod too
	}
	resume := n.aside(peer)
	pod := n.streamPod(n.peer)
	resume()
	return func() {
			defer n.aside(peer)()
			n.rate(&exec.peer, mib, "exec of the peer", func(to io.Writer) error { return n.execOut(n.peer, pod, mib, to, harness.StreamSPDY) })
			n.rate(&forward.peer, mib, "port-forward of the peer", func(to io.Writer) error { return n.forward(n.peer, pod, mib, to) })
		}, func() {
			if n.sameEngine {
				n.pods--
			}
			side := n.peer
			if n.sameEngine {
				side = n.cri(n.node.Shim.Client, n.image) // which has adopted the pod, and would wait for a kubelet to remove it
			}
			if err := side.end(pod, times{}); err != nil {
				n.b.Fatalf("ending the peer's pod of the streams: %v", err)
			}
		}
}

// execOut copies the output of an exec without its framing.
func (d *dockerSide) execOut(container string, mib int, to io.Writer) error {
	_, stream, err := d.hijackExec(container, execCommand(mib)...)
	if err != nil {
		return err
	}
	defer stream.Close()
	_, err = stdcopy.StdCopy(to, io.Discard, stream)
	return err
}

// streamPod runs a web server that serves any number of bytes.
func (n *bench) streamPod(s *criSide) *criPod {
	n.b.Helper()
	p := &criPod{config: podConfig(n.b, n.node)}
	container := s.containerConfig(p.config, "/bin/testserver", "http", ":80")
	container.Linux.Resources = nil
	if err := s.startConfig(times{}, p, container); err != nil {
		n.b.Fatalf("running the pod of the streams: %v", err)
	}
	return p
}

// counter counts bytes and forgets them.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// rate adds a round of one measurement, or none where the work failed.
func (n *bench) rate(to *samples, mib int, what string, work func(io.Writer) error) {
	n.b.Helper()
	var bytes counter
	begin := time.Now()
	err := work(&bytes)
	if err == nil && int(bytes) < mib<<20 {
		err = fmt.Errorf("only %d bytes came", bytes)
	}
	if err != nil {
		n.b.Logf("%s: %v", what, err)
		return
	}
	*to = append(*to, []float64{float64(mib) / time.Since(begin).Seconds()})
}

func execCommand(mib int) []string { return []string{"head", "-c", fmt.Sprint(mib << 20), "/dev/zero"} }

func (n *bench) execOut(s *criSide, p *criPod, mib int, to io.Writer, stream func(context.Context, string, harness.Streams) error) error {
	reply, err := s.client.Runtime.Exec(n.b.Context(), &runtimeapi.ExecRequest{ContainerId: p.container, Cmd: execCommand(mib), Stdout: true})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(n.b.Context(), 2*time.Minute)
	defer cancel()
	return stream(ctx, withScheme(reply.Url), harness.Streams{Stdout: to})
}

// withScheme is for servers that answer "//HOST/…".
func withScheme(url string) string {
	if strings.HasPrefix(url, "//") {
		return "http:" + url
	}
	return url
}

func (n *bench) forward(s *criSide, p *criPod, mib int, to io.Writer) error {
	reply, err := s.client.Runtime.PortForward(n.b.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.pod, Port: []int32{80}})
	if err != nil {
		return err
	}
	f, err := harness.ForwardSPDY(withScheme(reply.Url), 80)
	if err != nil {
		return err
	}
	defer f.End()
	return fetch(f, mib, to)
}

func (n *bench) direct(s *criSide, p *criPod, mib int, to io.Writer) error {
	reply, err := s.client.Runtime.PodSandboxStatus(n.b.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.pod})
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(reply.Status.GetNetwork().GetIp(), "80"), 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	return fetch(conn, mib, to)
}

// fetch gets so much from the test server over a connection of any kind.
func fetch(conn io.ReadWriter, mib int, to io.Writer) error {
	if _, err := fmt.Fprintf(conn, "GET /bytes/%d HTTP/1.0\r\n\r\n", mib<<20); err != nil {
		return err
	}
	reply, err := http.ReadResponse(bufio.NewReaderSize(conn, 64<<10), nil)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	_, err = io.Copy(to, reply.Body)
	return err
}
