package docker

import (
	"cmp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crishim/engine"
)

// sortPorts and sortMounts give what comes out of Docker's maps one order.
func sortPorts(ports []engine.PortMapping) {
	slices.SortFunc(ports, func(a, b engine.PortMapping) int {
		return cmp.Or(cmp.Compare(a.ContainerPort, b.ContainerPort), cmp.Compare(a.Protocol, b.Protocol),
			cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.HostIP, b.HostIP))
	})
}

func sortMounts(mounts []engine.Mount) {
	slices.SortFunc(mounts, func(a, b engine.Mount) int {
		return cmp.Or(cmp.Compare(strings.Count(a.ContainerPath, "/"), strings.Count(b.ContainerPath, "/")),
			cmp.Compare(a.ContainerPath, b.ContainerPath))
	})
}

// nameOfSignal is "SIGTERM" for 15, and "" for a number without a name.
func nameOfSignal(n int) string { return unix.SignalName(unix.Signal(n)) }
