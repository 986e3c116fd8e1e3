package server

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// Limits of one message: 16 MiB is what the kubelet's client accepts.
const (
	maxMessageSize    = 16 << 20
	maxConcurrentRPCs = 1024 // streams per connection
	// streamWorkers answer calls one after another, on stacks that have grown already: growing a new one was a fifth of the
	// work of a status. Where all are busy a call gets a goroutine of its own.
	streamWorkers = 8
	// writeBuffer takes the list of a hundred pods: written in pieces of gRPC's 32 KiB it costs both ends a tenth more.
	writeBuffer = 128 << 10
)

// newCNISeconds measures the plugins.
func newCNISeconds(reg prometheus.Registerer) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "crishim_cni_operation_duration_seconds",
		Help:    "Time of CNI operations on a pod, by operation and whether it succeeded.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 240},
	}, []string{"operation", "result"})
	reg.MustRegister(h)
	return h
}

// calls measures and guards every RPC: gate until recovered, panic → Internal, error class → code, latency, log.
type calls struct {
	gate    func(method string) error
	seconds *prometheus.HistogramVec
}

func newCalls(reg prometheus.Registerer, gate func(method string) error) *calls {
	c := &calls{gate: gate, seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "crishim_rpc_duration_seconds",
		Help:    "Time to answer a CRI call, by method and gRPC code.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
	}, []string{"method", "code"})}
	reg.MustRegister(c.seconds)
	return c
}

func (c *calls) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	ctx, left := withExecReply(ctx)
	err = c.guard(info.FullMethod, req, start, func() error {
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	if reply := left.Load(); reply != nil {
		return reply, nil
	}
	return resp, nil
}

func (c *calls) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return c.guard(info.FullMethod, nil, time.Now(), func() error { return handler(srv, ss) })
}

func (c *calls) guard(fullMethod string, req any, start time.Time, handle func() error) (err error) {
	method := path.Base(fullMethod)
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
		err = toStatus(err)
		c.observe(method, req, err, time.Since(start))
	}()
	if err := c.gate(method); err != nil {
		return err
	}
	return handle()
}

func (c *calls) observe(method string, req any, err error, took time.Duration) {
	code := status.Code(err)
	c.seconds.WithLabelValues(method, code.String()).Observe(took.Seconds())
	level, text := klog.V(logLevel(method)), callersDoing(code)
	about := func(more ...any) []any { return slices.Concat([]any{"method", method}, subject(req), more) }
	switch {
	case err != nil && text == "":
		klog.ErrorS(err, "Call failed", about("code", code.String(), "took", took)...)
	case !level.Enabled():
	case err == nil:
		level.InfoS("Answered", about("took", took)...)
	default:
		level.InfoS(text, about("code", code.String(), "took", took, "err", err)...)
	}
}

// callersDoing is what is logged of an error that is about the request and no fault of ours; "" for another. A kubelet makes
// them all day: probes of what has exited or takes too long, its question for statistics of no pod, the rotation of logs that
// are Docker's. Unavailable is among them because an engine that is away is logged once, by itself, and is asked for twice a
// second.
func callersDoing(code codes.Code) string {
	switch code {
	case codes.NotFound, codes.InvalidArgument, codes.FailedPrecondition, codes.AlreadyExists, codes.Unimplemented:
		return "Refused"
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		return "Not done"
	}
	return ""
}

// subject is what a request is about, for the log: names where it has them, else the id.
func subject(req any) []any {
	var all []any
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		all = append(all, "pod", podRef(r.GetConfig()))
	case *runtimeapi.CreateContainerRequest:
		all = append(all, "pod", podRef(r.GetSandboxConfig()), "container", r.GetConfig().GetMetadata().GetName(), "id", r.GetPodSandboxId())
	case interface{ GetContainerId() string }:
		all = append(all, "id", r.GetContainerId())
	case interface{ GetPodSandboxId() string }:
		all = append(all, "id", r.GetPodSandboxId())
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		all = append(all, "image", r.GetImage().GetImage())
	}
	return all
}

func podRef(c *runtimeapi.PodSandboxConfig) klog.ObjectRef {
	return klog.KRef(c.GetMetadata().GetNamespace(), c.GetMetadata().GetName())
}

// logLevel keeps the log of a normal minute short: what changes something is level 0 to 2, what the kubelet asks every
// second is level 6.
func logLevel(method string) klog.Level {
	for _, quiet := range []string{"List", "Stream", "Version", "Status", "ImageStatus", "ContainerStatus", "PodSandboxStatus", "ContainerStats", "PodSandboxStats", "ImageFsInfo", "ExecSync", "RuntimeConfig"} {
		if strings.HasPrefix(method, quiet) {
			return 6
		}
	}
	return 2
}

func panicError(p any) error {
	err := fmt.Errorf("the call panicked: %v; this is a bug, please report it with the log: %w", p, errdefs.ErrInternal)
	klog.ErrorS(err, "Recovered from a panic", "stack", string(debug.Stack()))
	return err
}

// caught is deferred on each goroutine that a call makes for its own work: a panic there, which no interceptor sees, is its error.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = panicError(p)
	}
}
