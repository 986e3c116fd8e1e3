package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are Docker's and containerd's.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// capabilities are the default ones with what was added and without what was dropped, "ALL" before single ones, and no more
// than the host has. Nothing is inheritable or ambient that was not asked for as such (moby CVE-2022-24769).
func (b *builder) capabilities() *specs.LinuxCapabilities {
	s := &b.c.Spec.Security
	set := slices.Clone(defaultCapabilities)
	add, drop := withPrefix(s.CapAdd), withPrefix(s.CapDrop)
	switch {
	case s.Privileged:
		set, add, drop = slices.Clone(b.h.Capabilities), nil, nil
	case slices.Contains(drop, all):
		set = nil // also where all are added, as in containerd
	case slices.Contains(add, all):
		set = slices.Clone(b.h.Capabilities)
	}
	ambient := withPrefix(s.CapAmbient)
	if slices.Contains(ambient, all) {
		ambient = slices.Clone(b.h.Capabilities)
	}
	for _, c := range slices.Concat(add, ambient) {
		if c != all && !slices.Contains(set, c) {
			set = append(set, c)
		}
	}
	set = slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) })
	set = slices.DeleteFunc(set, func(c string) bool {
		if b.h.Can(c) {
			return false
		}
		b.warn("capability %s is not given, this host does not have it", c)
		return true
	})
	ambient = slices.DeleteFunc(ambient, func(c string) bool { return !slices.Contains(set, c) })
	slices.Sort(set)
	slices.Sort(ambient)
	return &specs.LinuxCapabilities{
		Bounding: set, Effective: slices.Clone(set), Permitted: slices.Clone(set),
		Inheritable: slices.Compact(ambient), Ambient: slices.Clone(slices.Compact(ambient)),
	}
}

const all = "CAP_ALL"

func withPrefix(names []string) []string {
	var out []string
	for _, name := range names {
		out = append(out, "CAP_"+strings.TrimPrefix(name, "CAP_"))
	}
	return out
}
