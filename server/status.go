package server

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/translator"
)

// kubeRuntimeAPIVersion is the kubelet's constant, which every runtime answers.
const kubeRuntimeAPIVersion = "0.1.0"

// Version answers without asking anything.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return s.version("v1"), nil
}

// version is the answer for a caller of the given version of CRI.
func (s *Server) version(api string) *runtimeapi.VersionResponse {
	if s.opts.RuntimeName == "docker" {
		api = dockerAPIVersion
	}
	return &runtimeapi.VersionResponse{
		Version:           kubeRuntimeAPIVersion,
		RuntimeName:       s.opts.RuntimeName,
		RuntimeVersion:    cmp.Or(s.defaultEngine.Info().Version, s.opts.Version),
		RuntimeApiVersion: api,
	}
}

// Status tells whether pods can be run, from what is known: it waits for nobody.
func (s *Server) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	info := s.defaultEngine.Info()
	runtimeReady := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if h := s.store.Health(s.defaultEngine.Name()); !h.Ready {
		runtimeReady = &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Reason: h.Reason, Message: h.Message}
	} else if err := s.store.WriteError(); err != nil {
		runtimeReady = &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Reason: "StateNotWritable", Message: err.Error()}
	}
	networkReady := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.networkReady(ctx); err != nil {
		networkReady = &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: err.Error()}
	}
	resp := &runtimeapi.StatusResponse{
		Status:          &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{runtimeReady, networkReady}},
		RuntimeHandlers: translator.RuntimeHandlers(s.handlerFeatures()),
		Features:        translator.RuntimeFeatures(info),
	}
	if req.GetVerbose() {
		resp.Info = s.verboseStatus(info)
	}
	return resp, nil
}

func (s *Server) networkReady(ctx context.Context) error {
	if s.opts.BridgeNetwork {
		return nil
	}
	return s.network.Status(ctx)
}

// handlerFeatures joins the configured handlers and the default engine's own OCI runtimes.
func (s *Server) handlerFeatures() map[string]engine.HandlerFeatures {
	all := map[string]engine.HandlerFeatures{}
	for name, f := range s.defaultEngine.Info().Handlers {
		all[name] = f
	}
	for name, h := range s.opts.Handlers {
		all[name] = s.engines[h.Engine].Info().Handlers[h.Runtime]
	}
	return all
}

func (s *Server) verboseStatus(info engine.Info) map[string]string {
	verbose := map[string]any{
		"config": s.opts.Settings, "golang": runtime.Version(), "version": s.opts.Version, "engine": info,
		"quarantined": s.store.Quarantined(),
	}
	if !s.opts.BridgeNetwork {
		verbose["cniconfig"] = json.RawMessage(s.network.Config())
		verbose["lastCNILoadStatus"] = "OK"
		if err := s.network.Problem(); err != nil {
			verbose["lastCNILoadStatus"] = err.Error()
		}
	}
	return jsonInfo(verbose)
}

// jsonInfo renders the values of a verbose info map, each as JSON as CRI asks.
func jsonInfo(values map[string]any) map[string]string {
	info := make(map[string]string, len(values))
	for key, value := range values {
		if raw, ok := value.(json.RawMessage); ok && len(raw) == 0 {
			continue
		}
		data, err := json.Marshal(value)
		if err != nil {
			data, _ = json.Marshal("cannot be shown: " + err.Error())
		}
		info[key] = string(data)
	}
	return info
}

// RuntimeConfig tells the kubelet the cgroup driver (required from kubelet 1.38 on).
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := s.defaultEngine.Info().CgroupDriver
	if driver == "" {
		return nil, fmt.Errorf("the cgroup driver is not known before engine %s has answered once: %w", s.defaultEngine.Name(), errdefs.ErrUnavailable)
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: translator.CgroupDriver(driver)}}, nil
}

// UpdateRuntimeConfig takes the node's pod CIDRs for CNI.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	cidrs := translator.PodCIDRs(req)
	if len(cidrs) > 0 && !s.opts.BridgeNetwork {
		if err := s.network.SetPodCIDRs(cidrs); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
