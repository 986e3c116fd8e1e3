package engine

// CgroupDriver is CRI CgroupDriver.
type CgroupDriver string

// The cgroup drivers of CRI.
const (
	CgroupfsDriver CgroupDriver = "cgroupfs"
	SystemdDriver  CgroupDriver = "systemd"
)

// Info is what an engine says about itself.
type Info struct {
	// Version is the engine's own ("20.10.24"), APIVersion its protocol's ("1.41").
	Version      string
	APIVersion   string
	CgroupDriver CgroupDriver
	CgroupV2     bool
	// RootDir holds images and containers, for ImageFsInfo and disk statistics.
	RootDir string
	// Handlers are the OCI runtimes by name, "" the default one.
	Handlers map[string]HandlerFeatures
	Features Features
	// Warnings are for the operator: printed once in the log and in Status' verbose info.
	Warnings []string
}

// HandlerFeatures is CRI RuntimeHandlerFeatures.
type HandlerFeatures struct {
	RecursiveReadonlyMounts bool
	UserNamespaces          bool
}

// FeaturesOf are the features for pods of an OCI runtime: that one's where the runtimes differ.
func (i *Info) FeaturesOf(handler string) Features {
	f, own := i.Features, i.Handlers[handler]
	f.RecursiveReadonlyMounts, f.UserNamespaces = own.RecursiveReadonlyMounts, own.UserNamespaces
	return f
}

// Features says which parts of a spec the engine can express. The server refuses the others with InvalidArgument or
// Unimplemented before anything is made.
type Features struct {
	SupplementalGroupsPolicy bool
	UserNamespaces           bool
	RecursiveReadonlyMounts  bool
	MountOptions             bool
	IDMappedMounts           bool
	ImageVolumes             bool
	AmbientCapabilities      bool
	Unified                  bool
	Hugepages                bool
	CDI                      bool
	Swap                     bool
	Checkpoint               bool
	// NetworkBridge: the engine can do the pod's networking itself (docker-bridge).
	NetworkBridge bool
}
