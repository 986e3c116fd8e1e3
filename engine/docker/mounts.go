package docker

import (
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/internal/hostpath"
)

// makeMountSources makes a folder of each host path that is not there, as every runtime does; Docker refuses a bind
// mount without a source.
func makeMountSources(mounts []engine.Mount) error {
	for _, m := range mounts {
		if m.Image != nil {
			continue
		}
		if err := hostpath.Make(m.HostPath); err != nil {
			return fmt.Errorf("mount %.200s: host path %.200s: %w", m.ContainerPath, m.HostPath, err)
		}
	}
	return nil
}

func relabelled(m *engine.Mount) bool { return m.SELinuxRelabel && m.Image == nil }

// relabelMounts gives host paths the container's SELinux label, "" without SELinux, where CRI asks for it.
func relabelMounts(spec *engine.ContainerSpec, mountLabel string, relabel func(path, label string, shared bool) error) error {
	for _, m := range spec.Mounts {
		if !relabelled(&m) {
			continue
		}
		if err := hostpath.Relabel(m.HostPath, mountLabel, relabel); err != nil {
			return fmt.Errorf("mount %.200s: %w", m.ContainerPath, err)
		}
	}
	return nil
}

// appArmorProfiles lists what the kernel has loaded, a line each: "NAME (MODE)".
const appArmorProfiles = "/sys/kernel/security/apparmor/profiles"

// checkAppArmor refuses a profile that is not in the kernel's list; Docker would tell at the start only.
func checkAppArmor(p *engine.Profile, f *facts, list string) error {
	if p.Type != engine.ProfileLocalhost {
		return nil
	}
	if !f.appArmor {
		return invalid("AppArmor profile %.200q: this engine has no AppArmor", p.LocalhostRef)
	}
	data, err := os.ReadFile(list)
	if err != nil {
		return fmt.Errorf("AppArmor profiles: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if i := strings.LastIndex(line, " ("); i > 0 && line[:i] == p.LocalhostRef {
			return nil
		}
	}
	return invalid("AppArmor profile %.200q is not loaded", p.LocalhostRef)
}
