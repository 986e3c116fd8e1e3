package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/streaming"
)

// ExecSync runs a command and returns its output, cut at the limit, and its exit code. At the timeout its whole process
// tree is killed and the call fails with DeadlineExceeded, which the kubelet's probes look for.
func (s *Server) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, fmt.Errorf("cmd is empty: %w", errdefs.ErrInvalidArgument)
	}
	c, eng, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	caller := ctx
	if req.GetTimeout() > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, seconds(req.GetTimeout()))
		defer cancel()
	}
	output := newExecOutput(&s.execOutputs)
	defer func() {
		if output.end() > largeOutput {
			s.memory.release()
		}
	}()
	code, err := eng.Exec(ctx, c, &engine.ExecSpec{Command: req.GetCmd(), Streams: engine.Streams{Stdout: &output.stdout, Stderr: &output.stderr}})
	switch {
	case errors.Is(err, context.DeadlineExceeded) && caller.Err() == nil:
		return nil, fmt.Errorf("command %q in container %s took longer than %ds and was killed: %w", req.GetCmd()[0], c, req.GetTimeout(), context.DeadlineExceeded)
	case err != nil:
		return nil, fmt.Errorf("exec in container %s: %w", c, err)
	}
	reply, dropped := output.reply(int32(code))
	if dropped > 0 {
		klog.InfoS("Output of an exec was cut", "container", c, "kept", output.end(), "dropped", dropped)
	}
	if reply.leave(ctx) {
		return nil, nil //nolint:nilnil // the interceptor has it
	}
	return reply.message(), nil
}

// largeOutput is an exec's output after which memory is given back to the system early.
const largeOutput = 1 << 20

// memory gives what large replies took back to the system: by itself the Go runtime keeps it for minutes, and the daemon
// shares the node with what it runs.
type memory struct{ due atomic.Bool }

// release does so in two seconds, once for all that ask meanwhile.
func (m *memory) release() {
	if m.due.CompareAndSwap(false, true) {
		time.AfterFunc(2*time.Second, func() {
			m.due.Store(false)
			debug.FreeOSMemory()
		})
	}
}

// running finds a running container and its engine.
func (s *Server) running(idOrPrefix string) (engine.ContainerID, engine.Engine, error) {
	c, err := s.store.FindContainer(idOrPrefix)
	if err != nil {
		return "", nil, err
	}
	if c.State != engine.ContainerRunning {
		return "", nil, fmt.Errorf("container %s is %s, not running: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	eng, err := s.engineOf(c.Engine)
	if err != nil {
		return "", nil, err
	}
	return c.ID, eng, s.ready(c.Engine)
}

// Exec prepares a streaming exec and returns its URL.
func (s *Server) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	id, _, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	req.ContainerId = string(id)
	return s.streams.ExecURL(req)
}

// Attach prepares an attach and returns its URL.
func (s *Server) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	id, _, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	req.ContainerId = string(id)
	return s.streams.AttachURL(req)
}

// PortForward prepares a port-forward and returns its URL.
func (s *Server) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	pod, err := s.store.FindPod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if pod.State != engine.PodReady {
		return nil, fmt.Errorf("pod sandbox %s is not ready: %w", pod.ID, errdefs.ErrFailedPrecondition)
	}
	req.PodSandboxId = string(pod.ID)
	return s.streams.PortForwardURL(req)
}

// streamRuntime is what the streaming server does when a client comes for a URL.
type streamRuntime struct{ s *Server }

// StreamRuntime gives the streaming server its runtime.
func (s *Server) StreamRuntime() streaming.Runtime { return streamRuntime{s} }

func (r streamRuntime) Exec(ctx context.Context, container string, cmd []string, streams streaming.Streams) (int, error) {
	id, eng, err := r.s.running(container)
	if err != nil {
		return 0, err
	}
	resize, stop := engineResize(streams.Resize)
	defer stop()
	return eng.Exec(ctx, id, &engine.ExecSpec{Command: cmd, Streams: engineStreams(streams, resize)})
}

func (r streamRuntime) Attach(ctx context.Context, container string, streams streaming.Streams) error {
	id, eng, err := r.s.running(container)
	if err != nil {
		return err
	}
	resize, stop := engineResize(streams.Resize)
	defer stop()
	es := engineStreams(streams, resize)
	// How the output comes is the container's matter, whatever the client takes it for: kubectl knows, others guess.
	// Of one that another shim made there may be what the engine's list has alone, in which no terminal is told.
	if c, ok := r.s.store.Container(id); ok && (c.Spec.TTY || c.Recorded && !c.Adopted) {
		es.TTY = c.Spec.TTY
	}
	if es.TTY {
		es.Stderr = nil
	} else {
		es.Resize = nil
	}
	return eng.Attach(ctx, id, &es)
}

func (r streamRuntime) PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error {
	pod, ok := r.s.store.Pod(engine.PodID(podID))
	if !ok || pod.State != engine.PodReady {
		return fmt.Errorf("pod sandbox %s is not ready: %w", podID, errdefs.ErrFailedPrecondition)
	}
	if pod.NetNSPath == "" && pod.Spec.Namespaces.Network != engine.NamespaceNode {
		return fmt.Errorf("the network namespace of pod sandbox %s is not known: %w", podID, errdefs.ErrFailedPrecondition)
	}
	// CRI asks for it: a pod on the host's network is reached on the host's loopback ("" is our own namespace).
	return streaming.Forward(ctx, pod.NetNSPath, port, stream)
}

// engineStreams passes the client's ends on. A nil one stays a nil interface.
func engineStreams(in streaming.Streams, resize <-chan engine.TerminalSize) engine.Streams {
	out := engine.Streams{Stdin: in.Stdin, TTY: in.TTY, Resize: resize}
	if in.Stdout != nil {
		out.Stdout = in.Stdout
	}
	if in.Stderr != nil {
		out.Stderr = in.Stderr
	}
	return out
}

// engineResize passes terminal sizes on until the source ends or stop is called.
func engineResize(in <-chan streaming.TerminalSize) (out <-chan engine.TerminalSize, stop func()) {
	if in == nil {
		return nil, func() {}
	}
	sizes, done := make(chan engine.TerminalSize), make(chan struct{})
	go func() {
		defer close(sizes)
		for {
			select {
			case size, ok := <-in:
				if !ok {
					return
				}
				select {
				case sizes <- engine.TerminalSize{Width: size.Width, Height: size.Height}:
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	return sizes, func() { close(done) }
}
