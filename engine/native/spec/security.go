package spec

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// security sets what hides and protects paths, and the AppArmor profile. The lists of paths are exactly CRI's, which knows
// the defaults.
func (b *builder) security() error {
	s := &b.c.Spec.Security
	b.s.Linux.MaskedPaths, b.s.Linux.ReadonlyPaths = s.MaskedPaths, s.ReadonlyPaths
	var err error
	b.s.Process.ApparmorProfile, err = b.appArmor(&s.AppArmor)
	return err
}

// appArmor is "" where the host has none: a name would fail the start.
func (b *builder) appArmor(p *engine.Profile) (string, error) {
	switch p.Type {
	case engine.ProfileUnconfined:
		return "", nil
	case engine.ProfileUnset:
		return b.h.AppArmorDefault, nil
	case engine.ProfileRuntimeDefault:
		if b.h.AppArmor && b.h.AppArmorDefault == "" {
			return "", fmt.Errorf("the default AppArmor profile is not loaded (install the package apparmor): %w", errdefs.ErrFailedPrecondition)
		}
		return b.h.AppArmorDefault, nil
	case engine.ProfileLocalhost:
		switch {
		case p.LocalhostRef == "":
			return "", invalid("AppArmor profile without a name")
		case !b.h.AppArmor:
			return "", invalid("AppArmor profile %.200q: this host has no AppArmor", p.LocalhostRef)
		}
		return p.LocalhostRef, nil
	}
	return "", invalid("AppArmor profile type %q", p.Type)
}

// seccomp never ends in no filter where a profile was asked for (docs/reliability.md S20). Privileged containers have none.
func (b *builder) seccomp() error {
	p := &b.c.Spec.Security.Seccomp
	if b.c.Spec.Security.Privileged || p.Type == engine.ProfileUnset || p.Type == engine.ProfileUnconfined {
		return nil
	}
	if !b.h.Seccomp {
		return fmt.Errorf("a seccomp profile is asked for, and this kernel has no seccomp: %w", errdefs.ErrFailedPrecondition)
	}
	var err error
	switch p.Type {
	case engine.ProfileRuntimeDefault:
		b.s.Linux.Seccomp, err = seccomp.GetDefaultProfile(b.s)
	case engine.ProfileLocalhost:
		b.s.Linux.Seccomp, err = seccomp.LoadProfile(string(p.Content), b.s)
	default:
		return invalid("seccomp profile type %q", p.Type)
	}
	switch {
	case err != nil:
		return invalid("seccomp profile %.200q: %w", p.LocalhostRef, err)
	case b.s.Linux.Seccomp == nil || b.s.Linux.Seccomp.DefaultAction == "":
		// The library takes it for "no filter".
		return invalid("seccomp profile %.200q has no defaultAction", p.LocalhostRef)
	}
	if !b.h.Kernel.X32 {
		// Each architecture makes the filter, which every start and every exec compiles anew, some 20 ms more expensive.
		b.s.Linux.Seccomp.Architectures = slices.DeleteFunc(b.s.Linux.Seccomp.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	}
	return nil
}
