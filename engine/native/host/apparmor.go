package host

import (
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/apparmor"

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

// appArmorDefault is the name of the default profile; it is Docker's and containerd's, under a name of our own.
const appArmorDefault = "crishim-default"

// LoadAppArmorDefault loads the default profile, by apparmor_parser, unless the kernel has it; call it before h is shared.
// Without it containers that name no profile run unconfined by AppArmor. No effect on a host without AppArmor.
func (h *Host) LoadAppArmorDefault() error {
	if !h.AppArmor {
		return nil
	}
	loaded, err := appArmorLoaded(appArmorProfiles, appArmorDefault)
	if err == nil && !loaded {
		err = apparmor.InstallDefault(appArmorDefault)
	}
	if err != nil {
		return fmt.Errorf("load the default AppArmor profile (is the package apparmor installed?): %w", err)
	}
	h.AppArmorDefault = appArmorDefault
	return nil
}

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
