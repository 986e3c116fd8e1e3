package engine

import "time"

// NamespaceMode is CRI NamespaceMode.
type NamespaceMode string

// The namespace modes of CRI. The empty mode is POD for network and IPC; translator never leaves it empty.
const (
	NamespacePod       NamespaceMode = "POD"
	NamespaceContainer NamespaceMode = "CONTAINER"
	NamespaceNode      NamespaceMode = "NODE"
	NamespaceTarget    NamespaceMode = "TARGET"
)

// Namespaces is CRI NamespaceOption, resolved.
type Namespaces struct {
	Network NamespaceMode `json:"network"`
	PID     NamespaceMode `json:"pid"`
	IPC     NamespaceMode `json:"ipc"`
	// PIDTarget is set with PID == TARGET only.
	PIDTarget ContainerID `json:"pidTarget,omitempty"`
	// User is nil for the host's user namespace.
	User *UserNamespace `json:"user,omitempty"`
}

// UserNamespace is CRI UserNamespace of mode POD.
type UserNamespace struct {
	UIDs []IDMapping `json:"uids"`
	GIDs []IDMapping `json:"gids"`
}

// IDMapping is CRI IDMapping.
type IDMapping struct {
	HostID      uint32 `json:"hostID"`
	ContainerID uint32 `json:"containerID"`
	Length      uint32 `json:"length"`
}

// PodSpec is a pod sandbox as decided: CRI PodSandboxConfig without defaults left to fill.
type PodSpec struct {
	Key PodKey `json:"key"`
	// Handler is the engine's OCI runtime, "" its default; RuntimeHandler is what CRI asked for, answered unchanged.
	Handler        string            `json:"handler,omitempty"`
	RuntimeHandler string            `json:"runtimeHandler,omitempty"`
	Hostname       string            `json:"hostname,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Annotations    map[string]string `json:"annotations,omitempty"`
	LogDirectory   string            `json:"logDirectory,omitempty"`
	// CgroupParent is as CRI gives it: a path with cgroupfs, "….slice" (or a path ending in one) with systemd. "" is the engine's own.
	CgroupParent string            `json:"cgroupParent,omitempty"`
	DNS          *DNS              `json:"dns,omitempty"` // nil: the host's resolv.conf
	Ports        []PortMapping     `json:"ports,omitempty"`
	Namespaces   Namespaces        `json:"namespaces"`
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	// InterfaceSysctls are those of interfaces that come with the pod's network. No engine sets them: the caller does, then.
	InterfaceSysctls map[string]string `json:"interfaceSysctls,omitempty"`
	Security         Security          `json:"security"`
	// PauseImage is the reference of the image that holds the namespaces, where the engine needs one.
	PauseImage string     `json:"pauseImage,omitempty"`
	Overhead   *Resources `json:"overhead,omitempty"`
	Resources  *Resources `json:"resources,omitempty"`
}

// DNS is CRI DNSConfig.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// PortMapping is CRI PortMapping. HostPort 0 maps nothing.
type PortMapping struct {
	Protocol      string `json:"protocol"` // tcp, udp, sctp
	ContainerPort int32  `json:"containerPort"`
	HostPort      int32  `json:"hostPort"`
	HostIP        string `json:"hostIP,omitempty"`
}

// PodState is CRI PodSandboxState.
type PodState string

// The states of a pod sandbox.
const (
	PodReady    PodState = "READY"
	PodNotReady PodState = "NOTREADY"
)

// PodStatus is a pod sandbox as the engine sees it.
type PodStatus struct {
	ID        PodID
	Key       PodKey
	State     PodState
	CreatedAt time.Time
	// StartedAt is zero before StartPod and stays set after the end: it tells a pod that has ended from a late report of one
	// that was not started yet.
	StartedAt time.Time
	// PID is the process that holds the namespaces, 0 when there is none; StartTicks its start time in clock ticks since
	// boot (field 22 of /proc/PID/stat), which tells it from a later process with the same number.
	PID        int
	StartTicks uint64
	// NetNSPath is pinned by a bind mount; "" with the host's network and after ReleaseNetNS.
	NetNSPath string
	// IP is the engine's own address of the pod, where the engine does the networking (docker-bridge).
	IPs []string
	// CgroupPath is the pod process's own cgroup, as in /proc/PID/cgroup for memory (v1) or unified (v2).
	CgroupPath string
	// Spec is what can be read back from the engine of a pod that has no record of ours (adoption, lost record); nil otherwise.
	Spec *PodSpec
}
