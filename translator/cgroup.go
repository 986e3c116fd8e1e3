package translator

import (
	"path"
	"strings"

	"crishim/engine"
)

// maxCgroupParent is far above what the kubelet makes and far below PATH_MAX, which the cgroups below it need too.
const maxCgroupParent = 1024

// cgroupParent checks the pod's parent cgroup: a clean absolute path, or with the systemd driver also a slice alone. ""
// leaves the choice to the engine.
func cgroupParent(p *problems, s string, driver engine.CgroupDriver) string {
	const field = "linux.cgroup_parent"
	if s == "" {
		return ""
	}
	if len(s) > maxCgroupParent {
		p.add(field, "has %d bytes, at most %d are allowed", len(s), maxCgroupParent)
		return ""
	}
	if !onlyRunes(s, func(r rune) bool { return isAlnum(r) || strings.ContainsRune("/_.:@-\\", r) }) || hasDotDot(s) {
		p.add(field, "%.80q is no path of a cgroup", s)
		return ""
	}
	clean := path.Clean(s)
	isSlice := strings.HasSuffix(clean, ".slice") && path.Base(clean) != ".slice"
	switch {
	case clean == "/" || clean == ".":
		p.add(field, "%.80q is the root of the cgroups", s)
	case driver == engine.SystemdDriver && !isSlice:
		p.add(field, "%.80q does not end in a \".slice\", which the systemd cgroup driver needs", s)
	case driver == engine.SystemdDriver && !validSlice(path.Base(clean)):
		p.add(field, "%.80q ends in no valid name of a slice", s)
	case driver == engine.CgroupfsDriver && !path.IsAbs(clean), driver == "" && !path.IsAbs(clean) && !isSlice:
		p.add(field, "%.80q is not absolute", s)
	}
	return clean
}

// validSlice follows systemd.slice(5): dashes separate the levels, so none may be empty; "-.slice" is the root.
func validSlice(name string) bool {
	for level := range strings.SplitSeq(strings.TrimSuffix(name, ".slice"), "-") {
		if level == "" {
			return false
		}
	}
	return true
}
