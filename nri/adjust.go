package nri

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine/native/hook"
)

// adjust edits the spec as the plugins together ask, and returns what they set of its limits, nil for nothing.
func adjust(s *specs.Spec, a *api.ContainerAdjustment, h *hook.Host) (*specs.LinuxResources, error) {
	if a == nil {
		return nil, nil
	}
	if err := checkAdjustment(a); err != nil {
		return nil, err
	}
	limits, err := limitsFromNRI(a.GetLinux().GetResources())
	if err != nil {
		return nil, err
	}
	for _, m := range a.GetMounts() {
		if err := relabel(m, h); err != nil {
			return nil, err
		}
	}
	// The generator takes over the limits that it knows; all of them come below.
	if l := a.GetLinux(); l != nil && l.Resources != nil {
		l.Resources = &api.LinuxResources{Devices: l.Resources.Devices}
	}
	g := generate.SpecGenerator(&generator{s}, generate.WithCDIDeviceInjector(h.InjectCDI))
	if err := g.Adjust(a); err != nil {
		return nil, err
	}
	s.Process.Rlimits = lastOfEach(s.Process.Rlimits)
	if limits == nil {
		return nil, nil
	}
	return limits, h.CheckResources(limits)
}

func checkAdjustment(a *api.ContainerAdjustment) error {
	l := a.GetLinux()
	switch {
	case l.GetCgroupsPath() != "":
		// The engine finds a container's processes, limits and statistics by its cgroup.
		return unsupported("cgroup path %.200q", l.GetCgroupsPath())
	case l.GetRdt().GetClosId() != nil, l.GetRdt().GetSchemata() != nil, l.GetRdt().GetEnableMonitoring() != nil:
		return unsupported("an RDT configuration")
	}
	for _, m := range a.GetMounts() {
		if _, removal := m.IsMarkedForRemoval(); !removal && (m.GetDestination() == "" || m.GetDestination()[0] != '/') {
			return fmt.Errorf("mount at %.200q: the path in the container is not absolute: %w", m.GetDestination(), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// relabel does what NRI's option of a mount asks, which OCI has no word for.
func relabel(m *api.Mount, h *hook.Host) error {
	if !slices.Contains(m.GetOptions(), api.SELinuxRelabel) {
		return nil
	}
	m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == api.SELinuxRelabel })
	if err := h.Relabel(m.GetSource()); err != nil {
		return fmt.Errorf("mount at %.200s: %w", m.GetDestination(), err)
	}
	return nil
}

// lastOfEach leaves one limit of a type, which OCI demands.
func lastOfEach(limits []specs.POSIXRlimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, l := range limits {
		out = append(slices.DeleteFunc(out, func(o specs.POSIXRlimit) bool { return o.Type == l.Type }), l)
	}
	return out
}
