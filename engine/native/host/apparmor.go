package host

import (
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// appArmorProfiles lists what the kernel has loaded, a line each: "NAME (MODE)".
const appArmorProfiles = "/sys/kernel/security/apparmor/profiles"

// CheckAppArmor refuses a profile that the kernel has not loaded; the start would tell only later.
func (h *Host) CheckAppArmor(p *engine.Profile) error {
	if p.Type != engine.ProfileLocalhost {
		return nil
	}
	if !h.AppArmor {
		return invalid("AppArmor profile %.200q: this host has no AppArmor", p.LocalhostRef)
	}
	loaded, err := appArmorLoaded(appArmorProfiles, p.LocalhostRef)
	if err != nil {
		return err
	}
	if !loaded {
		return invalid("AppArmor profile %.200q is not loaded", p.LocalhostRef)
	}
	return nil
}

// AppArmorLoaded says whether the kernel has a profile.
func AppArmorLoaded(name string) (bool, error) { return appArmorLoaded(appArmorProfiles, name) }

func appArmorLoaded(list, name string) (bool, error) {
	data, err := os.ReadFile(list)
	if err != nil {
		return false, fmt.Errorf("AppArmor profiles: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if i := strings.LastIndex(line, " ("); i > 0 && line[:i] == name {
			return true, nil
		}
	}
	return false, nil
}
