package translator

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// Container decides a container of the pod. Image.ID and RepoDigest, those of image volumes, and Security.Seccomp.Content
// are left for the server.
func Container(pod *engine.PodSpec, podID engine.PodID, cfg *runtimeapi.ContainerConfig, d Defaults) (*engine.ContainerSpec, error) {
	var p problems
	return &engine.ContainerSpec{Pod: podID, PodKey: pod.Key}, p.err("container")
}
