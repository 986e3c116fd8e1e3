//go:build cgo

package run

import (
	"encoding/json"

	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"

	"crishim/engine/native/monitor"
)

// Prepare is serve.Runtime's: a container is planned that nobody makes, and told of as libcontainer tells of one. What is
// looked up once in a process's life, above all how types are encoded, the first real container then finds.
func (r *Runtime) Prepare() {
	made, err := r.Plan("prepare", &monitor.CreateArgs{Spec: json.RawMessage(example)})
	if err != nil {
		return
	}
	config := made.(*plan).config
	state := libcontainer.State{BaseState: libcontainer.BaseState{Config: *config}}
	_, _ = json.Marshal(&state)
	_, _ = manager.New(config.Cgroups)
}

// example has the parts that every container's specification has.
const example = `{
	"ociVersion": "1.2.0", "root": {"path": "/nowhere"}, "hostname": "example",
	"process": {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
		"capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
		"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}], "oomScoreAdj": 0},
	"mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
		{"destination": "/etc/hosts", "type": "bind", "source": "/nowhere", "options": ["rbind", "rprivate"]}],
	"linux": {"cgroupsPath": "/crishim/prepare", "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc", "path": "/nowhere"}],
		"maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
		"devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}],
		"resources": {"devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 1}, "cpu": {"shares": 2}, "pids": {"limit": 1}},
		"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
			"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}}}`
