package spec

import (
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/host"
)

// Build is the OCI spec of a container. Warnings say what it gets less of than was asked for, because the host cannot give
// it (capabilities, oom_score_adj, limits). ErrInvalidArgument for what cannot be expressed at all.
func Build(h *host.Host, c *Container) (s *specs.Spec, warnings []string, err error) {
	return nil, nil, errdefs.ErrNotImplemented
}

// Pause is the process that is pid 1 of a pod's shared PID namespace.
type Pause struct {
	// Rootfs holds the program and nothing else (rootfs.PauseRoot).
	Rootfs      string
	Pins        Pins
	CgroupsPath string
	Labels      host.Labels
	Security    *engine.Security
}

// BuildPause is the OCI spec of the pod's pause process: a PID namespace of its own, which the pod's containers join.
func BuildPause(h *host.Host, p *Pause) (*specs.Spec, error) { return nil, errdefs.ErrNotImplemented }

// BuildExec is a further process in the container that runs s, with the rights of its first one.
func BuildExec(s *specs.Spec, e *engine.ExecSpec) (*specs.Process, error) {
	return nil, errdefs.ErrNotImplemented
}

// Resources are the limits for UpdateContainer: all of them, an unset one lifts what was there. OOMScoreAdj is not among
// them, OCI has it in the process.
func Resources(h *host.Host, r *engine.Resources) (*specs.LinuxResources, error) {
	return nil, errdefs.ErrNotImplemented
}

// StopSignal is the one in effect ("SIGTERM").
func StopSignal(s *engine.ContainerSpec, image string) string { return "" }
