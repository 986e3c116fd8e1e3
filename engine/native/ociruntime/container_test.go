package ociruntime

import (
	"maps"
	"testing"
)

// What is read and registered in a container's cgroup, of kills for want of memory, would be the whole host's in the root.
func TestTheRootCgroupIsNoContainers(t *testing.T) {
	for data, want := range map[string]map[string]string{
		"9:name=systemd:/\n4:memory:/\n1:cpu,cpuacct:/\n":   {},
		"4:memory:/pod/c\n1:cpu,cpuacct:/pod/c\n5:misc:/\n": {"memory": "/sys/fs/cgroup/memory/pod/c", "cpu": "/sys/fs/cgroup/cpu/pod/c", "cpuacct": "/sys/fs/cgroup/cpuacct/pod/c"},
	} {
		if got := parseCgroups(data); !maps.Equal(got, want) {
			t.Errorf("of %q: %v, want %v", data, got, want)
		}
	}
}
