package server

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"runtime"
	"strings"

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
		RuntimeVersion:    parsable(cmp.Or(s.defaultEngine.Info().Version, s.opts.Version)),
		RuntimeApiVersion: api,
	}
}

// release is what a kubelet takes for the beginning of a version.
var release = regexp.MustCompile(`^v?[0-9]+\.[0-9]+`)

// parsable is a version that a kubelet can parse: where it cannot, the node's containerRuntimeVersion says Unknown. A build of
// no release has the name of its commit.
func parsable(version string) string {
	if release.MatchString(version) {
		return version
	}
	return "0.0.0+" + version
}

// Status tells whether pods can be run, from what is known: it waits for nobody.
func (s *Server) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	networkReady := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.networkReady(ctx); err != nil {
		networkReady = &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: err.Error()}
	}
	resp := &runtimeapi.StatusResponse{
		Status:          &runtimeapi.RuntimeStatus{Conditions: append([]*runtimeapi.RuntimeCondition{s.runtimeReady(), networkReady}, s.engineConditions()...)},
		RuntimeHandlers: translator.RuntimeHandlers(s.handlerFeatures()),
		Features:        translator.RuntimeFeatures(s.commonFeatures()),
	}
	if req.GetVerbose() {
		resp.Info = s.verboseStatus()
	}
	return resp, nil
}

// runtimeReady is false while no engine can run a pod: a node that is not ready loses its pods, those of an engine that
// is well too. While one of several is away it is true, with the reason. It is false, too, while the gate is closed: who is
// told that the runtime is ready must not be refused by his next call.
func (s *Server) runtimeReady() *runtimeapi.RuntimeCondition {
	condition := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	ready := false
	for i := len(s.order) - 1; i >= 0; i-- { // the default engine's reason is the one that stays
		name := s.order[i].Name()
		h := s.store.Health(name)
		switch {
		case !s.takesPods[name]:
		case h.Ready:
			ready = true
		case s.several():
			condition.Reason, condition.Message = h.Reason, notReady(name, h)
		default:
			condition.Reason, condition.Message = h.Reason, h.Message
		}
	}
	condition.Status = ready
	if err := s.store.WriteError(); err != nil {
		condition.Status, condition.Reason = false, "StateNotWritable"
		condition.Message = strings.TrimSuffix(err.Error()+"; "+condition.Message, "; ") // an engine may be away for the same reason
	}
	if condition.Status && !s.open() {
		condition.Status, condition.Reason, condition.Message = false, "Recovering", errRecovering.Error()
	}
	return condition
}

// engineConditions say how each of several engines is.
func (s *Server) engineConditions() []*runtimeapi.RuntimeCondition {
	if !s.several() {
		return nil
	}
	var all []*runtimeapi.RuntimeCondition
	for _, e := range s.order {
		h := s.store.Health(e.Name())
		all = append(all, &runtimeapi.RuntimeCondition{Type: "EngineReady/" + e.Name(), Status: h.Ready, Reason: h.Reason, Message: h.Message})
	}
	return all
}

// commonFeatures are the features of every engine that takes pods: the kubelet admits pods by them without saying which
// engine they go to. What an engine has that another lacks can still be used there.
func (s *Server) commonFeatures() engine.Info {
	info := s.defaultEngine.Info()
	for _, e := range s.order {
		f := e.Info().Features
		if s.takesPods[e.Name()] {
			info.Features.SupplementalGroupsPolicy = info.Features.SupplementalGroupsPolicy && f.SupplementalGroupsPolicy
			info.Features.MountOptions = info.Features.MountOptions && f.MountOptions
		}
	}
	return info
}

func (s *Server) networkReady(ctx context.Context) error {
	if s.opts.BridgeNetwork {
		return nil
	}
	return s.network.Status(ctx)
}

func (s *Server) verboseStatus() map[string]string {
	verbose := map[string]any{
		"config": s.opts.Settings, "golang": runtime.Version(), "version": s.opts.Version, "engine": s.defaultEngine.Info(),
		"quarantined": s.store.Quarantined(),
	}
	if s.several() {
		engines := map[string]engine.Info{}
		for _, e := range s.order {
			engines[e.Name()] = e.Info()
		}
		verbose["engines"] = engines
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

// RuntimeConfig tells the kubelet the cgroup driver (required from kubelet 1.38 on): the default engine's, or, before
// that has answered once, the other's, since one kubelet can have pods on both only where they agree.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	for _, e := range s.order {
		if driver := e.Info().CgroupDriver; driver != "" {
			return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: translator.CgroupDriver(driver)}}, nil
		}
	}
	return nil, fmt.Errorf("the cgroup driver is not known before engine %s has answered once: %w", s.defaultEngine.Name(), errdefs.ErrUnavailable)
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
