package spec

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine/native/host"
)

// devices denies all but those that are given and those that every container has (libcontainer adds null, zero, full,
// random, urandom, tty and the pseudo terminals itself). A privileged container may use any.
func (b *builder) devices() error {
	rules := []specs.LinuxDeviceCgroup{{Allow: b.c.Spec.Security.Privileged, Access: "rwm"}}
	// The last of two at one path is meant: what CRI asks for comes after all of the host's.
	at := map[string]int{}
	for i := range b.c.Devices {
		d := &b.c.Devices[i]
		if err := checkDevice(d); err != nil {
			return err
		}
		if j, ok := at[d.Path]; ok {
			b.s.Linux.Devices[j] = d.LinuxDevice
		} else {
			at[d.Path] = len(b.s.Linux.Devices)
			b.s.Linux.Devices = append(b.s.Linux.Devices, d.LinuxDevice)
		}
		if !b.c.Spec.Security.Privileged {
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: d.Access})
		}
	}
	b.s.Linux.Resources = &specs.LinuxResources{Devices: rules}
	return nil
}

func checkDevice(d *host.Device) error {
	if d.Access == "" || strings.Trim(d.Access, "rwm") != "" {
		return invalid("permissions %.20q of device %.200q are not of r, w and m", d.Access, d.Path)
	}
	if !strings.HasPrefix(d.Path, "/") {
		return invalid("device path %.200q is not absolute", d.Path)
	}
	return nil
}
