package host

import (
	"context"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// Device is a device node of the host as a container gets it.
type Device struct {
	specs.LinuxDevice
	// Access is of "r", "w", "m".
	Access string
}

// Devices looks up what CRI asks for: links are followed, a folder stands for all device nodes in it. ErrInvalidArgument
// when a path is no device.
func Devices(asked []engine.Device) ([]Device, error) { return nil, errdefs.ErrNotImplemented }

// AllDevices are the host's, for privileged containers, without terminals and what a container has of its own.
func AllDevices() ([]Device, error) { return nil, errdefs.ErrNotImplemented }

// Labels are SELinux labels: of processes and of files. Both "" where SELinux is off.
type Labels struct {
	Process, Mount string
}

// PodLabels reserves labels for a pod; what asked leaves open is the policy's default with a level of its own.
func PodLabels(asked *engine.SELinuxOption) (Labels, error) {
	return Labels{}, errdefs.ErrNotImplemented
}

// ContainerLabels are a container's in a pod: the pod's level unless asked for another. Privileged ones are not confined.
func ContainerLabels(pod Labels, asked *engine.SELinuxOption, privileged bool) (Labels, error) {
	return Labels{}, errdefs.ErrNotImplemented
}

// ReleaseLabels gives a pod's level back.
func ReleaseLabels(pod Labels) {}

// ReserveLabels keeps the level of a pod that was found at the start from being given to another.
func ReserveLabels(pod Labels) {}

// Injector adds devices described by CDI files to a spec.
type Injector struct{}

// NewInjector reads the CDI files in dirs, the standard ones when none are named.
func NewInjector(dirs ...string) (*Injector, error) { return nil, errdefs.ErrNotImplemented }

// Inject edits spec for the fully qualified names. ErrInvalidArgument when no file describes one; the files are read
// again first. Hooks in CDI files run as the host's root: who may write these files owns the node.
func (i *Injector) Inject(ctx context.Context, spec *specs.Spec, names []string) error {
	return errdefs.ErrNotImplemented
}

// CheckAppArmor refuses a profile that the kernel has not loaded.
func (h *Host) CheckAppArmor(p *engine.Profile) error { return errdefs.ErrNotImplemented }
