//go:build cgo

package run

import (
	"fmt"
	"runtime/debug"

	"github.com/opencontainers/runc/libcontainer/seccomp"
)

// Libraries names the versions of what is linked in: "runc", "cgroups", "libseccomp" ("" without).
func Libraries() map[string]string {
	found := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			switch module.Path {
			case "github.com/opencontainers/runc":
				found["runc"] = module.Version
			case "github.com/opencontainers/cgroups":
				found["cgroups"] = module.Version
			}
		}
	}
	if major, minor, micro := seccomp.Version(); major > 0 {
		found["libseccomp"] = fmt.Sprintf("%d.%d.%d", major, minor, micro)
	}
	return found
}
