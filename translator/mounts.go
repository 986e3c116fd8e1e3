package translator

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// mountOptions are those of CRI Mount.mount_options.
var mountOptions = []string{"nodev", "noexec", "nosuid"}

// mounts are sorted by depth, so that none hides another one inside it.
func mounts(p *problems, in []*runtimeapi.Mount) []engine.Mount {
	var out []engine.Mount
	seen := make(map[string]int, len(in))
	for i, m := range in {
		field := fmt.Sprintf("mounts[%d]", i)
		mount := translateMount(p, field, m)
		if first, ok := seen[mount.ContainerPath]; ok && m.GetContainerPath() != "" {
			p.add(field+".container_path", "%.80q is that of mounts[%d] too", mount.ContainerPath, first)
		}
		seen[mount.ContainerPath] = i
		out = append(out, mount)
	}
	slices.SortStableFunc(out, func(a, b engine.Mount) int { return cmp.Compare(depth(a.ContainerPath), depth(b.ContainerPath)) })
	return out
}

func translateMount(p *problems, field string, in *runtimeapi.Mount) engine.Mount {
	m := engine.Mount{
		ContainerPath:     checkPath(p, field+".container_path", in.GetContainerPath()),
		Readonly:          in.GetReadonly(),
		RecursiveReadonly: in.GetRecursiveReadOnly(),
		SELinuxRelabel:    in.GetSelinuxRelabel(),
		Propagation:       propagation(p, field+".propagation", in.GetPropagation()),
		UIDMappings:       idMappings(p, field+".uidMappings", in.GetUidMappings()),
		GIDMappings:       idMappings(p, field+".gidMappings", in.GetGidMappings()),
	}
	if m.ContainerPath == "/" {
		p.add(field+".container_path", "is the root of the container")
	}
	if (len(m.UIDMappings) == 0) != (len(m.GIDMappings) == 0) {
		p.add(field, "uidMappings and gidMappings go together")
	}
	if m.RecursiveReadonly && (!m.Readonly || m.Propagation != engine.PropagationPrivate) {
		p.add(field+".recursive_read_only", "needs readonly and propagation PROPAGATION_PRIVATE")
	}
	for _, o := range in.GetMountOptions() {
		if !slices.Contains(mountOptions, o) {
			p.add(field+".mount_options", "%.80q is none of %s", o, strings.Join(mountOptions, ", "))
		} else if !slices.Contains(m.Options, o) {
			m.Options = append(m.Options, o)
		}
	}
	slices.Sort(m.Options)
	if in.GetImage().GetImage() != "" {
		imageMount(p, field, in, &m)
		return m
	}
	m.HostPath = checkPath(p, field+".host_path", in.GetHostPath())
	if in.GetImageSubPath() != "" {
		p.add(field+".image_sub_path", "needs an image")
	}
	return m
}

// imageMount applies CRI's rules for image volumes: read-only, and nothing of the host.
func imageMount(p *problems, field string, in *runtimeapi.Mount, m *engine.Mount) {
	ref := imageRef(p, field+".image", in.GetImage())
	m.Image = &ref
	if in.GetHostPath() != "" {
		p.add(field+".host_path", "%.80q excludes an image", in.GetHostPath())
	}
	if !m.Readonly {
		p.add(field+".readonly", "must be set for an image")
	}
	if m.Propagation != engine.PropagationPrivate {
		p.add(field+".propagation", "must be PROPAGATION_PRIVATE for an image")
	}
	sub := in.GetImageSubPath()
	switch {
	case sub == "":
		return
	case len(sub) > maxPath, hasControl(sub), path.IsAbs(sub), hasDotDot(sub):
		p.add(field+".image_sub_path", "%.80q is no path relative to the image's root without \"..\"", sub)
	}
	if sub = path.Clean(sub); sub != "." {
		m.ImageSubPath = sub
	}
}

func propagation(p *problems, field string, in runtimeapi.MountPropagation) engine.Propagation {
	switch in {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return engine.PropagationPrivate
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		return engine.PropagationHostToContainer
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return engine.PropagationBidirectional
	}
	p.add(field, "%s is unknown", in)
	return engine.PropagationPrivate
}
