package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/engine"
	"crishim/engine/imageset"
	"crishim/internal/accept"
	"crishim/internal/keymutex"
	"crishim/state"
	"crishim/stats"
	"crishim/streaming"
	"crishim/translator"
)

// Options are what an operator decides and what the process brings along.
type Options struct {
	// RuntimeName is Version.runtime_name: the kubelet writes it into container ids ("docker://…").
	RuntimeName string
	// Version is our own, for Version.runtime_version beside the engine's and for the verbose Status.
	Version string
	// Handlers maps runtime handler names to engines and their OCI runtimes; "" is the default one.
	Handlers map[string]Handler
	// Defaults of the translation.
	Translation translator.Defaults
	// BridgeNetwork leaves pod networking to the engine (docker-bridge) instead of CNI.
	BridgeNetwork bool
	// CNIGC lets the start-up collect attachments that no record knows.
	CNIGC bool
	// PullNoProgress ends a pull without progress; 0 never does.
	PullNoProgress time.Duration
	// Adopter knows the pods of other shims; nil looks into the network's own cache only.
	Adopter Adopter
	// Checkpoint lets CheckpointContainer through to the engine.
	Checkpoint bool
	// Observe answers questions only: every call that would change something is refused, and nothing is taken back, collected
	// or ended. The engines and the network must be such as change nothing, too.
	Observe bool
	// Settings are the configuration as shown by the verbose Status, secrets left out.
	Settings any
	Metrics  prometheus.Registerer
	Tracer   trace.TracerProvider // nil traces nothing

	// keepalive is how a client that is stopped, or only reads nothing any more, is cut off.
	keepalive keepalive.ServerParameters
}

// Network is what the server needs of package cni.
type Network interface {
	Status(ctx context.Context) error
	Plan(pod cni.Pod) ([]cni.Attachment, error)
	Cached(podID string) ([]cni.Attachment, error)
	Add(ctx context.Context, attachments []cni.Attachment) ([]cni.Attachment, []string, error)
	Del(ctx context.Context, attachments []cni.Attachment) error
	SetSysctls(netns string, sysctls map[string]string) error
	GC(ctx context.Context, valid func() ([]cni.Attachment, error)) error
	SetPodCIDRs(cidrs []string) error
	Owe(attachments []cni.Attachment, reason string) error
	Config() []byte
	Problem() error
}

// Server is the CRI services over a set of engines. Make it with New.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	opts          Options
	engines       map[string]engine.Engine
	defaultEngine engine.Engine
	order         []engine.Engine // the default one first
	takesPods     map[string]bool // engines that new pods may go to
	images        *imageset.Set
	unusable      atomic.Int32 // engines that ended for good
	spoken        spoken       // engines that have said how they are
	found         *found
	store         *state.Store
	network       Network
	streams       *streaming.Server // set by ServeStreams
	reader        *stats.Reader
	disk          *stats.Disk
	collector     *stats.Collector

	podFlights       flights[engine.PodKey, engine.PodID]
	containerFlights flights[containerCreation, engine.ContainerID]
	starts           starts
	podLocks         keymutex.Mutex[engine.PodID]
	containerLocks   keymutex.Mutex[engine.ContainerID]
	stops            stops
	delFailures      delFailures
	memory           memory
	execOutputs      execOutputs
	podList          keptList[state.PodView]
	containerList    keptList[state.ContainerView]

	podAttributes       keptAttributes[state.PodView]
	containerAttributes keptAttributes[state.ContainerView]

	cniSeconds *prometheus.HistogramVec

	settled   chan struct{} // closed when each engine was listed or has said that it is away
	recovered chan struct{} // closed when calls can be answered
	grpc      *grpc.Server
	// Background work that creations left behind (parked results) ends with the server.
	background sync.WaitGroup
	ended      chan struct{}
}

// New wires a server; it does no I/O. engines must hold every engine that a handler or a record names.
func New(opts Options, engines []engine.Engine, store *state.Store, network Network, reader *stats.Reader, disk *stats.Disk) (*Server, error) {
	s := &Server{
		opts: opts, engines: map[string]engine.Engine{}, takesPods: map[string]bool{}, store: store, network: network,
		reader: reader, disk: disk, collector: stats.NewCollector(reader, disk),
		cniSeconds: newCNISeconds(opts.Metrics), settled: make(chan struct{}), recovered: make(chan struct{}), ended: make(chan struct{}), found: newFound(),
	}
	if err := s.takeEngines(engines); err != nil {
		return nil, err
	}
	store.OnHealth(s.spoken.note)
	store.OnUnrecorded(s.found.note)
	if !opts.Observe {
		store.OnRestarted(s.endRestarted)
	}

	calls := newCalls(opts.Metrics, s.gate)
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessageSize),
		grpc.MaxSendMsgSize(maxMessageSize),
		grpc.WriteBufferSize(writeBuffer),
		grpc.MaxConcurrentStreams(maxConcurrentRPCs),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.KeepaliveParams(cmp.Or(opts.keepalive, keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second})),
		grpc.ChainUnaryInterceptor(calls.unary),
		grpc.ChainStreamInterceptor(calls.stream),
	}
	if opts.Tracer != nil {
		options = append(options, grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(opts.Tracer))))
	}
	s.grpc = grpc.NewServer(options...)
	register(s.grpc, s)
	return s, nil
}

// SetStreams gives the server the streaming server, which in turn needs the server as its runtime.
func (s *Server) SetStreams(streams *streaming.Server) { s.streams = streams }

// gate refuses calls until the state is known. What does not depend on it is answered at once.
func (s *Server) gate(method string) error {
	if s.opts.Observe {
		if err := refuseChange(method); err != nil {
			return err
		}
	}
	if s.open() {
		return nil
	}
	switch method {
	case "Version", "Status", "RuntimeConfig", "UpdateRuntimeConfig", "ListMetricDescriptors":
		return nil
	case "GetContainerEvents": // waits by itself
		return nil
	}
	for name := range s.engines {
		if err := s.ready(name); err != nil {
			return fmt.Errorf("crishim was just started and needs the engine to know what runs: %w", err)
		}
	}
	return errRecovering
}

var errRecovering = fmt.Errorf("crishim is still reading its records and the engine's state, try again: %w", errdefs.ErrUnavailable)

// open says that every call is answered.
func (s *Server) open() bool {
	select {
	case <-s.recovered:
		return true
	default:
		return false
	}
}

// Settled is closed when the start is over: calls are answered, or no engine has come yet and each has said that it is away.
// Until one comes what needs the state is then answered Unavailable.
func (s *Server) Settled() <-chan struct{} { return s.settled }

// Recovered is closed when the state is known and every call is answered.
func (s *Server) Recovered() <-chan struct{} { return s.recovered }

// Alive says that the index can be read: what a watchdog wants to know. A deadlock there would stop everything.
func (s *Server) Alive(ctx context.Context) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.store.Pods()
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	case <-time.After(10 * time.Second):
		return false
	}
}

// Serve answers on the listeners until Stop. It returns the first listener's failure.
func (s *Server) Serve(listeners []net.Listener) error {
	errs := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { errs <- s.grpc.Serve(accept.Patiently(l)) }()
	}
	for range listeners {
		if err := <-errs; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve CRI: %w", err)
		}
	}
	return nil
}

// Stop lets calls in flight end for grace, then cuts them. Work that callers have left is given the same time.
func (s *Server) Stop(grace time.Duration) {
	close(s.ended)
	s.images.Close()
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		s.podFlights.running.Wait()
		s.containerFlights.running.Wait()
		s.background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(grace):
		klog.InfoS("Cutting the calls that are still running", "after", grace)
		s.grpc.Stop()
	}
}
