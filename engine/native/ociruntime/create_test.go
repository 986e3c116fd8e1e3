package ociruntime

import (
	"encoding/json"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine/native/monitor"
)

// The pipes of a container are its root's: a process in there could not open /dev/stdout else.
func TestTheContainersRootOwnsItsStdio(t *testing.T) {
	for name, c := range map[string]struct {
		uids, gids []specs.LinuxIDMapping
		uid, gid   int
	}{
		"the host's users": {},
		"users of its own": {
			[]specs.LinuxIDMapping{{ContainerID: 1, HostID: 7, Size: 10}, {ContainerID: 0, HostID: 100000, Size: 1}},
			[]specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}, 100000, 200000,
		},
		"no root": {[]specs.LinuxIDMapping{{ContainerID: 1, HostID: 7, Size: 10}}, nil, 0, 0},
	} {
		spec, err := json.Marshal(&specs.Spec{Process: &specs.Process{Args: []string{"sh"}}, Root: &specs.Root{Path: "/"}, Linux: &specs.Linux{
			UIDMappings: c.uids, GIDMappings: c.gids,
		}})
		if err != nil {
			t.Fatal(err)
		}
		plan, err := new(Runtime).Plan("c", &monitor.CreateArgs{Spec: spec, OCIRuntime: "/usr/sbin/runc"})
		if err != nil {
			t.Fatal(err)
		}
		if uid, gid := plan.Owner(); uid != c.uid || gid != c.gid {
			t.Errorf("%s: %d:%d, want %d:%d", name, uid, gid, c.uid, c.gid)
		}
	}
}
