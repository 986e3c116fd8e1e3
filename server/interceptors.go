package server

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// Limits of one message: 16 MiB is what the kubelet's client accepts.
const (
	maxMessageSize    = 16 << 20
	maxConcurrentRPCs = 1024 // streams per connection
	// streamWorkers answer calls one after another, on stacks that have grown already: growing a new one was a fifth of the
	// work of a status. Where all are busy a call gets a goroutine of its own.
	streamWorkers = 8
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
	err = c.guard(info.FullMethod, start, func() error {
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (c *calls) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return c.guard(info.FullMethod, time.Now(), func() error { return handler(srv, ss) })
}

func (c *calls) guard(fullMethod string, start time.Time, handle func() error) (err error) {
	method := path.Base(fullMethod)
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
		err = toStatus(err)
		c.observe(method, err, time.Since(start))
	}()
	if err := c.gate(method); err != nil {
		return err
	}
	return handle()
}

func (c *calls) observe(method string, err error, took time.Duration) {
	code := status.Code(err)
	c.seconds.WithLabelValues(method, code.String()).Observe(took.Seconds())
	level := klog.V(logLevel(method))
	switch {
	case err == nil:
		level.InfoS("Answered", "method", method, "took", took)
	case callersDoing(code):
		level.InfoS("Refused", "method", method, "code", code.String(), "took", took, "err", err)
	default:
		klog.ErrorS(err, "Call failed", "method", method, "code", code.String(), "took", took)
	}
}

// callersDoing says that the error is about the request and no fault of ours: a kubelet makes them all day (probes of what
// has exited or takes too long, its question for statistics of no pod). Unavailable is among them because an engine that
// is away is logged once, by itself, and is asked for twice a second.
func callersDoing(code codes.Code) bool {
	switch code {
	case codes.NotFound, codes.Canceled, codes.InvalidArgument, codes.FailedPrecondition, codes.AlreadyExists, codes.DeadlineExceeded, codes.Unavailable:
		return true
	}
	return false
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
