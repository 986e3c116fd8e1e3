package translator

import (
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim/engine"
)

// CheckPod refuses what the engine cannot express: ErrNotImplemented, naming the CRI field.
func CheckPod(spec *engine.PodSpec, f engine.Features) error {
	var p problems
	if spec.Namespaces.User != nil && !f.UserNamespaces {
		cannot(&p, namespaceField+".userns_options", "user namespaces")
	}
	checkGroupsPolicy(&p, &spec.Security, f)
	return p.err("pod sandbox")
}

// CheckContainer is CheckPod for containers.
func CheckContainer(spec *engine.ContainerSpec, f engine.Features) error {
	var p problems
	if spec.Namespaces.User != nil && !f.UserNamespaces {
		cannot(&p, namespaceField+".userns_options", "user namespaces")
	}
	checkGroupsPolicy(&p, &spec.Security, f)
	if len(spec.Security.CapAmbient) > 0 && !f.AmbientCapabilities {
		cannot(&p, securityField+".capabilities.add_ambient_capabilities", "ambient capabilities")
	}
	if len(spec.CDIDevices) > 0 && !f.CDI {
		cannot(&p, "CDI_devices", "CDI devices")
	}
	for i := range spec.Mounts {
		checkMount(&p, &spec.Mounts[i], f)
	}
	checkResources(&p, "linux.resources", &spec.Resources, f)
	return p.err("container")
}

// CheckUpdate is CheckPod for an update of resources. Only what the request itself names is checked: the rest the container has
// already, also where this host could not be asked for it. Without swap accounting Docker notes that swap is unlimited (-1)
// whatever another shim had asked for, and that must not keep the kubelet from changing the CPUs.
func CheckUpdate(update *runtimeapi.LinuxContainerResources, f engine.Features) error {
	var p problems
	asked := eachResource(&p, "linux", update)
	checkResources(&p, "linux", &asked, f)
	return p.err("update of resources")
}

func checkGroupsPolicy(p *problems, s *engine.Security, f engine.Features) {
	if s.GroupsPolicy == engine.GroupsStrict && !f.SupplementalGroupsPolicy {
		cannot(p, securityField+".supplemental_groups_policy", "the policy Strict")
	}
}

func checkMount(p *problems, m *engine.Mount, f engine.Features) {
	field := fmt.Sprintf("mounts (at %.80q)", m.ContainerPath)
	if m.Image != nil && !f.ImageVolumes {
		cannot(p, field+".image", "image volumes")
	}
	// An image has no mounts inside it: read-only is recursive.
	if m.RecursiveReadonly && m.Image == nil && !f.RecursiveReadonlyMounts {
		// The kubelet looks for the word of crierrors in the text.
		p.addClass(errdefs.ErrNotImplemented, field+".recursive_read_only", "%s: this engine, or the OCI runtime of the pod's handler, cannot do recursive read-only mounts", crierrors.ErrRROUnsupported)
	}
	if len(m.Options) > 0 && !f.MountOptions {
		cannot(p, field+".mount_options", "mount options")
	}
	if len(m.UIDMappings) > 0 && !f.IDMappedMounts {
		cannot(p, field+".uidMappings", "id-mapped mounts")
	}
}

func checkResources(p *problems, field string, r *engine.Resources, f engine.Features) {
	if len(r.Unified) > 0 && !f.Unified {
		cannot(p, field+".unified", "cgroup v2 files")
	}
	for _, h := range r.Hugepages {
		// The kubelet sends a limit of 0 for every page size that the host has; that is no wish for huge pages.
		if h.Limit > 0 && !f.Hugepages {
			cannot(p, field+".hugepage_limits", "limits of huge pages")
		}
	}
	// Equal to the memory limit means no swap, which a host without swap accounting cannot promise but usually has.
	if r.MemorySwap != 0 && r.MemorySwap != r.MemoryLimit && !f.Swap {
		cannot(p, field+".memory_swap_limit_in_bytes", "limits of swap")
	}
}

func cannot(p *problems, field, what string) {
	p.addClass(errdefs.ErrNotImplemented, field, "asks for %s, which this engine, or the OCI runtime of the pod's handler, cannot do", what)
}
