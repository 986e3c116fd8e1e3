package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/state"
	"crishim/translator"
)

// ContainerStatus answers from the index.
func (s *Server) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.store.FindContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	confirmed, err := s.confirmContainers([]state.ContainerView{c})
	if err != nil {
		return nil, err
	}
	c = confirmed[0]
	resp := &runtimeapi.ContainerStatusResponse{Status: translator.ContainerStatusReply(new(containerView(&c)))}
	if req.GetVerbose() {
		resp.Info = jsonInfo(map[string]any{"info": containerInfo{
			SandboxID: string(c.PodID), PID: c.Status.PID, Engine: c.Engine, Phase: c.Phase, Runtime: c.Spec.Handler,
			CgroupPath: c.Status.CgroupPath, UpperDir: c.Status.UpperDir, Config: redactEnv(c), Leftover: c.Leftover, Adopted: c.Adopted,
		}})
	}
	return resp, nil
}

// containerInfo is the verbose "info" of a container: what people look for with crictl inspect.
type containerInfo struct {
	SandboxID  string      `json:"sandboxID"`
	PID        int         `json:"pid"`
	Engine     string      `json:"engine"`
	Phase      state.Phase `json:"phase"`
	Runtime    string      `json:"runtime"`
	CgroupPath string      `json:"cgroupPath,omitempty"`
	UpperDir   string      `json:"upperDir,omitempty"`
	Config     any         `json:"config"`
	Leftover   string      `json:"leftover,omitempty"`
	Adopted    bool        `json:"adopted,omitempty"`
}

// redactEnv keeps values of environment variables, which hold secrets, out of debugging output (docs/reliability.md S33).
func redactEnv(c state.ContainerView) any {
	spec := c.Spec
	spec.Env = append(spec.Env[:0:0], spec.Env...)
	for i := range spec.Env {
		spec.Env[i].Value = []byte("(hidden)")
	}
	return spec
}
