package translator

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// Pod decides a pod sandbox. Handler and Security.Seccomp.Content are left for the server.
func Pod(cfg *runtimeapi.PodSandboxConfig, runtimeHandler string, d Defaults) (*engine.PodSpec, error) {
	var p problems
	return &engine.PodSpec{RuntimeHandler: runtimeHandler}, p.err("pod sandbox")
}
