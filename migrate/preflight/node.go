// Package preflight tells whether a node's pods can be taken over from dockershim or cri-dockerd, and what has to be done
// first.
//
// Gather reads a node and changes nothing. Examine is a pure function from what was gathered to a Report, which WriteText
// prints and which is JSON as it is; its Verdict is an exit status.
package preflight

import (
	"crishim/cni"
	"crishim/engine/docker/survey"
	"crishim/migrate/kubeletfiles"
)

// Node is everything that a report is made from. As JSON it is a recording, from which the report can be made elsewhere; the
// environment, the commands and the annotations of containers are not in it.
type Node struct {
	Name string `json:"name"` // as the kubelet registers it
	// Docker is nil, and DockerError says why, where no engine answers.
	Docker      *survey.Engine `json:"docker,omitempty"`
	DockerError string         `json:"dockerError,omitempty"`
	// Daemon is daemon.json.
	Daemon  Daemon    `json:"daemon"`
	Kubelet Kubelet   `json:"kubelet"`
	Shim    Shim      `json:"shim"`
	CNI     cni.Found `json:"cni"`
	// Sandboxes is what lies on the node beside Docker's own objects, by the sandbox's id.
	Sandboxes map[string]Traces `json:"sandboxes,omitempty"`
	// GPUs are device files of graphics processors, CDI the files that describe devices to runtimes.
	GPUs []string `json:"gpus,omitempty"`
	CDI  []string `json:"cdi,omitempty"`
	// Certificates are those that dockerd shows to registries or holds them to.
	Certificates []string `json:"certificates,omitempty"`
	Own          Own      `json:"own"`
}

// Daemon is what matters here of dockerd's daemon.json.
type Daemon struct {
	Path               string   `json:"path"`
	Error              string   `json:"error,omitempty"`
	RegistryMirrors    []string `json:"registry-mirrors,omitempty"`
	InsecureRegistries []string `json:"insecure-registries,omitempty"`
	LogDriver          string   `json:"log-driver,omitempty"`
	// LogMode is the mode in its log-opts, which containers of the daemon's log driver get that are made without one.
	LogMode string `json:"log-mode,omitempty"`
}

// Kubelet is the kubelet as it runs and as it would start.
type Kubelet struct {
	Files *kubeletfiles.Files `json:"files,omitempty"`
	// FilesError says why they could not be read.
	FilesError string `json:"filesError,omitempty"`
	// Pid is 0 where none runs. Running are its arguments.
	Pid     int      `json:"pid,omitempty"`
	Running []string `json:"running,omitempty"`
	Version string   `json:"version,omitempty"` // "v1.23.17"
}

// Shim is what the kubelet uses now.
type Shim struct {
	// Root is where its checkpoints are, CacheDir libcni's cache.
	Root     string `json:"root"`
	CacheDir string `json:"cacheDir"`
	// Flags are those of cri-docker.service, none where there is no such unit.
	Flags []kubeletfiles.Flag `json:"flags,omitempty"`
}

// Traces is what a shim left of one sandbox.
type Traces struct {
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`
	// CheckpointError says that there is one which cannot be read.
	CheckpointError string `json:"checkpointError,omitempty"`
	// Networks are those of libcni's cache; CacheError says that an entry cannot be read.
	Networks   []string `json:"networks,omitempty"`
	IPs        []string `json:"ips,omitempty"`
	CacheError string   `json:"cacheError,omitempty"`
}

// Checkpoint is a shim's file about a sandbox.
type Checkpoint struct {
	Path        string        `json:"path"`
	Namespace   string        `json:"namespace"`
	Name        string        `json:"name"`
	HostNetwork bool          `json:"hostNetwork,omitempty"`
	Ports       []survey.Port `json:"ports,omitempty"` // those with a host port
	// By is the shim whose checksum it bears, "" where it is neither's.
	By string `json:"by,omitempty"`
}

// Own is what matters here of crishim's own settings.
type Own struct {
	Engine       string   `json:"engine"`
	RuntimeName  string   `json:"runtimeName"` // as it will be: "docker" unless set
	Listen       []string `json:"listen"`
	NetworkMode  string   `json:"networkMode"`
	ConfDir      string   `json:"confDir"`
	BinDirs      []string `json:"binDirs"`
	Pause        string   `json:"pause"`
	ContainerLog string   `json:"containerLog"`
	SeccompDir   string   `json:"seccompDir"`
	// AdoptRoots and AdoptCaches are where old shims' files are read, Compatibility the shim that can take pods back, which is to find
	// what it needs of them in the two folders after it.
	AdoptRoots        []string `json:"adoptRoots"`
	AdoptCaches       []string `json:"adoptCaches"`
	Compatibility     string   `json:"compatibility,omitempty"`
	CompatibilityRoot string   `json:"compatibilityRoot,omitempty"`
	CNICacheDir       string   `json:"cniCacheDir,omitempty"`
	// RegistryDirs are where mirrors and certificates of registries are read.
	RegistryDirs []string `json:"registryDirs,omitempty"`
}
