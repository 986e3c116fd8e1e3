package engine

// The ids are types of their own so that one cannot be passed for another.
type (
	// PodID is the CRI pod_sandbox_id.
	PodID string
	// ContainerID is the CRI container_id.
	ContainerID string
	// ImageID is the CRI Image.id: one value in every answer, whatever the store derives it from.
	ImageID string
)

// PodKey identifies a pod sandbox before it has an id: CRI PodSandboxMetadata. No two live sandboxes share one.
type PodKey struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
	Attempt   uint32 `json:"attempt"`
}

// ContainerKey identifies a container within its pod: CRI ContainerMetadata.
type ContainerKey struct {
	Name    string `json:"name"`
	Attempt uint32 `json:"attempt"`
}
