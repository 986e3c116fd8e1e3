package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	rpprof "runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/config"
	"crishim/engine"
	"crishim/internal/accept"
	"crishim/state"
)

// registerMetrics adds what is counted outside the calls.
func registerMetrics(registry *prometheus.Registry, store *state.Store, network *cni.Network, engines nodeEngines) {
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, eng := range engines {
		ready := prometheus.GaugeOpts{Name: "crishim_engine_ready", Help: "1 while the engine answers.", ConstLabels: prometheus.Labels{"engine": eng.Name()}}
		registry.MustRegister(prometheus.NewGaugeFunc(ready, func() float64 {
			if store.Health(eng.Name()).Ready {
				return 1
			}
			return 0
		}))
		eng.register(registry)
	}
	gauge("crishim_pods_ready", "Pod sandboxes that are READY.", func() float64 {
		n := 0
		for _, p := range store.Pods() {
			if p.State == engine.PodReady {
				n++
			}
		}
		return float64(n)
	})
	gauge("crishim_containers_running", "Containers that are running.", func() float64 {
		n := 0
		for _, c := range store.Containers() {
			if c.State == engine.ContainerRunning {
				n++
			}
		}
		return float64(n)
	})
	gauge("crishim_records_quarantined", "Records that could not be read.", func() float64 {
		n := len(store.Quarantined())
		for _, eng := range engines {
			n += eng.quarantined()
		}
		return float64(n)
	})
	gauge("crishim_cni_owed_dels", "Pods whose CNI DEL is still owed.", func() float64 { return float64(len(network.Owed())) })
}

// page is a handler with what it is reached by.
type page struct {
	listener net.Listener
	handler  http.Handler
}

// listenPages opens /metrics and /healthz, and profiles on a socket of their own, before calls are taken. What cannot be
// opened is left out: pods are worth more than their figures.
func listenPages(c config.Metrics, registry *prometheus.Registry, store *state.Store, engines nodeEngines) []page {
	var all []page
	open := func(key, address string, handler http.Handler) {
		l, err := listenHTTP(address)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			klog.ErrorS(err, fmt.Sprintf("%s: %s is taken already: set another address, or \"\" to turn it off; going on without", key, address))
		case err != nil:
			klog.ErrorS(err, fmt.Sprintf("%s: nothing is served on %s; going on without", key, address))
		default:
			all = append(all, page{l, handler})
		}
	}
	if c.Listen != "" {
		mux := http.NewServeMux()
		mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
			if err := engines.anyReady(store); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			_, _ = fmt.Fprintln(w, "ok")
		})
		open("metrics.listen", c.Listen, mux)
	}
	if c.Pprof != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		open("metrics.pprof", c.Pprof, mux)
	}
	return all
}

func serveOn(ctx context.Context, l net.Listener, handler http.Handler) error {
	s := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	var strangers accept.Strangers
	strangers.Watch(s)
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(accept.Patiently(l)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func listenHTTP(address string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(address, "unix://")
	if !isUnix {
		return net.Listen("tcp", address)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		// One that somebody answers on is another program's, or our own by a slip in the settings: the kubelet's, most of all.
		if err := accept.Taken(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w: %w", path, syscall.EADDRINUSE, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}

func dumpGoroutines() {
	var b strings.Builder
	if err := rpprof.Lookup("goroutine").WriteTo(&b, 2); err == nil {
		klog.InfoS("Goroutines", "stacks", b.String())
	}
}

// tracing exports spans whose caller samples them; nil and a no-op without an endpoint.
func tracing(ctx context.Context, endpoint string) (trace.TracerProvider, func(), error) {
	if endpoint == "" {
		return nil, func() {}, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(endpoint), otlptracegrpc.WithInsecure())
	if err != nil {
		return nil, nil, fmt.Errorf("tracing to %s: %w", endpoint, err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
	return provider, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = provider.Shutdown(ctx)
	}, nil
}
