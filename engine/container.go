package engine

import "time"

// ContainerSpec is a container as decided: CRI ContainerConfig without defaults left to fill.
type ContainerSpec struct {
	Pod    PodID        `json:"pod"`
	PodKey PodKey       `json:"podKey"`
	Key    ContainerKey `json:"key"`
	// Handler is the pod's.
	Handler     string            `json:"handler,omitempty"`
	Image       ImageRef          `json:"image"`
	Command     []string          `json:"command,omitempty"` // empty: the image's entrypoint
	Args        []string          `json:"args,omitempty"`    // empty, with an empty Command: the image's cmd
	WorkingDir  string            `json:"workingDir,omitempty"`
	Env         []EnvVar          `json:"env,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// LogPath is absolute: LogDirectory (the pod's, trusted) joined with CRI log_path, checked. "" writes no log.
	LogPath      string `json:"logPath,omitempty"`
	LogDirectory string `json:"logDirectory,omitempty"`
	Stdin        bool   `json:"stdin,omitempty"`
	StdinOnce    bool   `json:"stdinOnce,omitempty"`
	TTY          bool   `json:"tty,omitempty"`
	// StopSignal is "SIGTERM", "SIGRTMIN+3", … or "" for the image's.
	StopSignal string     `json:"stopSignal,omitempty"`
	Mounts     []Mount    `json:"mounts,omitempty"` // sorted by depth of ContainerPath
	Devices    []Device   `json:"devices,omitempty"`
	CDIDevices []string   `json:"cdiDevices,omitempty"` // fully qualified names, no duplicates
	Namespaces Namespaces `json:"namespaces"`
	Security   Security   `json:"security"`
	Resources  Resources  `json:"resources"`
	// CgroupParent is the pod's.
	CgroupParent string `json:"cgroupParent,omitempty"`
	// Sysctls are the pod's; an engine whose containers do not share them with the pod applies them again.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Checkpoint is what StartContainer lets go on, in the place of a new process; only for a Checkpointer.
	Checkpoint *CheckpointRef `json:"checkpoint,omitempty"`
}

// ImageRef is an image as a container names it.
type ImageRef struct {
	// Ref is CRI ImageSpec.image (usually an id), UserSpecified and Annotations are answered unchanged.
	Ref            string            `json:"ref"`
	UserSpecified  string            `json:"userSpecified,omitempty"`
	Annotations    map[string]string `json:"annotations,omitempty"`
	RuntimeHandler string            `json:"runtimeHandler,omitempty"`
	// ID, RepoDigest and Name (a tag) are resolved by the server before CreateContainer. The latter two may be "".
	ID         ImageID `json:"id"`
	RepoDigest string  `json:"repoDigest,omitempty"`
	Name       string  `json:"name,omitempty"`
}

// EnvVar is CRI KeyValue; the value is bytes since v0.37.
type EnvVar struct {
	Name  string `json:"name"`
	Value []byte `json:"value,omitempty"`
}

// Propagation is CRI MountPropagation.
type Propagation string

// The propagation modes of CRI.
const (
	PropagationPrivate         Propagation = "PRIVATE"
	PropagationHostToContainer Propagation = "HOST_TO_CONTAINER"
	PropagationBidirectional   Propagation = "BIDIRECTIONAL"
)

// Mount is CRI Mount. Either HostPath or Image is set.
type Mount struct {
	ContainerPath     string      `json:"containerPath"`
	HostPath          string      `json:"hostPath,omitempty"`
	Readonly          bool        `json:"readonly,omitempty"`
	RecursiveReadonly bool        `json:"recursiveReadonly,omitempty"`
	SELinuxRelabel    bool        `json:"selinuxRelabel,omitempty"`
	Propagation       Propagation `json:"propagation"`
	UIDMappings       []IDMapping `json:"uidMappings,omitempty"`
	GIDMappings       []IDMapping `json:"gidMappings,omitempty"`
	// Image volume: Image.ID is resolved; ImageSubPath is relative to its root.
	Image        *ImageRef `json:"image,omitempty"`
	ImageSubPath string    `json:"imageSubPath,omitempty"`
	// Options are of noexec, nodev, nosuid (CRI mount_options, v0.37).
	Options []string `json:"options,omitempty"`
}

// Device is CRI Device. Permissions is of "r", "w", "m".
type Device struct {
	ContainerPath string `json:"containerPath"`
	HostPath      string `json:"hostPath"`
	Permissions   string `json:"permissions"`
}

// ProfileType is the type of CRI SecurityProfile.
type ProfileType string

// The profile types of CRI. ProfileUnset is what CRI leaves nil; for seccomp it means unconfined, for AppArmor the engine's default.
const (
	ProfileUnset          ProfileType = ""
	ProfileRuntimeDefault ProfileType = "RuntimeDefault"
	ProfileUnconfined     ProfileType = "Unconfined"
	ProfileLocalhost      ProfileType = "Localhost"
)

// Profile is CRI SecurityProfile, the deprecated string fields folded in.
type Profile struct {
	Type ProfileType `json:"type,omitempty"`
	// LocalhostRef is an absolute path (seccomp) or a profile name (AppArmor).
	LocalhostRef string `json:"localhostRef,omitempty"`
	// Content is the checked seccomp profile that the server read from LocalhostRef.
	Content []byte `json:"content,omitempty"`
}

// GroupsPolicy is CRI SupplementalGroupsPolicy.
type GroupsPolicy string

// The policies: Merge adds the user's groups of the image's /etc/group, Strict does not.
const (
	GroupsMerge  GroupsPolicy = "Merge"
	GroupsStrict GroupsPolicy = "Strict"
)

// Security is CRI LinuxContainerSecurityContext and LinuxSandboxSecurityContext, without namespaces.
type Security struct {
	Privileged bool     `json:"privileged,omitempty"`
	CapAdd     []string `json:"capAdd,omitempty"` // without CAP_, upper case, "ALL" allowed
	CapDrop    []string `json:"capDrop,omitempty"`
	CapAmbient []string `json:"capAmbient,omitempty"`
	// UID, or else Username, or else the image's user. GID only together with one of them.
	UID                *int64         `json:"uid,omitempty"`
	Username           string         `json:"username,omitempty"`
	GID                *int64         `json:"gid,omitempty"`
	SupplementalGroups []int64        `json:"supplementalGroups,omitempty"`
	GroupsPolicy       GroupsPolicy   `json:"groupsPolicy,omitempty"`
	ReadonlyRootfs     bool           `json:"readonlyRootfs,omitempty"`
	NoNewPrivs         bool           `json:"noNewPrivs,omitempty"`
	MaskedPaths        []string       `json:"maskedPaths,omitempty"` // exactly these; none when empty
	ReadonlyPaths      []string       `json:"readonlyPaths,omitempty"`
	Seccomp            Profile        `json:"seccomp"`
	AppArmor           Profile        `json:"appArmor"`
	SELinux            *SELinuxOption `json:"selinux,omitempty"`
}

// SELinuxOption is CRI SELinuxOption.
type SELinuxOption struct {
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Type  string `json:"type,omitempty"`
	Level string `json:"level,omitempty"`
}

// Resources is CRI LinuxContainerResources: zero fields are unset (no limit). Memory in bytes, CPU period and quota in µs.
type Resources struct {
	CPUPeriod   int64  `json:"cpuPeriod,omitempty"`
	CPUQuota    int64  `json:"cpuQuota,omitempty"`
	CPUShares   int64  `json:"cpuShares,omitempty"`
	CpusetCPUs  string `json:"cpusetCPUs,omitempty"`
	CpusetMems  string `json:"cpusetMems,omitempty"`
	MemoryLimit int64  `json:"memoryLimit,omitempty"`
	// MemorySwap is memory plus swap; 0 with a MemoryLimit means no swap (equal to MemoryLimit), -1 is unlimited.
	MemorySwap  int64             `json:"memorySwap,omitempty"`
	OOMScoreAdj int64             `json:"oomScoreAdj,omitempty"`
	Hugepages   []HugepageLimit   `json:"hugepages,omitempty"`
	Unified     map[string]string `json:"unified,omitempty"` // cgroup v2 file → value
}

// HugepageLimit is CRI HugepageLimit: PageSize as in "2MB", Limit in bytes.
type HugepageLimit struct {
	PageSize string `json:"pageSize"`
	Limit    uint64 `json:"limit"`
}

// ContainerState is CRI ContainerState.
type ContainerState string

// The states of a container; they only move to the right, and Unknown is only left for Exited.
const (
	ContainerCreated ContainerState = "CREATED"
	ContainerRunning ContainerState = "RUNNING"
	ContainerExited  ContainerState = "EXITED"
	ContainerUnknown ContainerState = "UNKNOWN"
)

// The reasons of an exited container that the kubelet and its users know.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
)

// ContainerStatus is a container as the engine sees it.
type ContainerStatus struct {
	ID         ContainerID
	Pod        PodID
	PodKey     PodKey
	Key        ContainerKey
	State      ContainerState
	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int32
	Reason     string // only when exited
	Message    string
	// PID and StartTicks as in PodStatus; 0 unless running.
	PID        int
	StartTicks uint64
	// CgroupPath is as in PodStatus, for reading statistics; "" unless running.
	CgroupPath string
	// UpperDir is the folder on the host with all that the container writes: its writable layer, and where it has volumes of the
	// image that one's parent. "" when unknown.
	UpperDir string
	ImageID  ImageID
	// StopSignal in effect ("SIGTERM"), User as resolved (nil until known).
	StopSignal string
	User       *User
	// Spec is what can be read back from the engine of a container that has no record of ours; nil otherwise.
	Spec *ContainerSpec
}

// User is CRI LinuxContainerUser: the ids that the first process has, Groups including GID.
type User struct {
	UID    int64   `json:"uid"`
	GID    int64   `json:"gid"`
	Groups []int64 `json:"groups,omitempty"`
}
