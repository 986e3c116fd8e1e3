//go:build cgo

package run

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/engine/native/monitor/serve"
)

// full has every field of a process set.
func full() *specs.Process {
	score := 321
	return &specs.Process{
		Terminal:    true,
		ConsoleSize: &specs.Box{Width: 81, Height: 26},
		User:        specs.User{UID: 1001, GID: 2002, Umask: new(uint32(0o027)), AdditionalGids: []uint32{3003, 4004}},
		Args:        []string{"/bin/cmd", "arg"},
		Env:         []string{"A=b", "C="},
		Cwd:         "/work",
		Capabilities: &specs.LinuxCapabilities{
			Bounding: []string{"CAP_CHOWN"}, Effective: []string{"CAP_KILL"}, Inheritable: []string{"CAP_FOWNER"},
			Permitted: []string{"CAP_SETUID"}, Ambient: []string{"CAP_SETGID"},
		},
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20, Soft: 10}, {Type: "RLIMIT_CORE"}},
		NoNewPrivileges: true,
		ApparmorProfile: "profile",
		OOMScoreAdj:     &score,
		Scheduler:       &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5},
		SelinuxLabel:    "u:r:t:s0",
		IOPriority:      &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 3},
		ExecCPUAffinity: &specs.CPUAffinity{Initial: "0", Final: "0-1"},
	}
}

// What each field of specs.Process becomes. A field that a new release adds fails the test until it is here.
func TestEveryFieldOfAProcessArrives(t *testing.T) {
	file := os.Stdin
	spec := full()
	process, err := newProcess(spec, serve.Stdio{Stdin: file, Stdout: file, Stderr: file, Console: file})
	if err != nil {
		t.Fatal(err)
	}
	arrived := map[string]bool{
		"Terminal":        process.ConsoleSocket == file,
		"ConsoleSize":     process.ConsoleWidth == 81 && process.ConsoleHeight == 26,
		"User":            process.UID == 1001 && process.GID == 2002 && reflect.DeepEqual(process.AdditionalGroups, []int{3003, 4004}),
		"Args":            reflect.DeepEqual(process.Args, spec.Args),
		"Env":             reflect.DeepEqual(process.Env, spec.Env),
		"Cwd":             process.Cwd == "/work",
		"Capabilities":    reflect.DeepEqual(process.Capabilities, &configs.Capabilities{Bounding: []string{"CAP_CHOWN"}, Effective: []string{"CAP_KILL"}, Inheritable: []string{"CAP_FOWNER"}, Permitted: []string{"CAP_SETUID"}, Ambient: []string{"CAP_SETGID"}}),
		"Rlimits":         reflect.DeepEqual(process.Rlimits, []configs.Rlimit{{Type: unix.RLIMIT_NOFILE, Hard: 20, Soft: 10}, {Type: unix.RLIMIT_CORE}}),
		"NoNewPrivileges": *process.NoNewPrivileges,
		"ApparmorProfile": process.AppArmorProfile == "profile",
		"Scheduler":       process.Scheduler == spec.Scheduler,
		"SelinuxLabel":    process.Label == "u:r:t:s0",
		"IOPriority":      process.IOPriority == spec.IOPriority,
		"ExecCPUAffinity": process.CPUAffinity != nil && process.CPUAffinity.Initial != nil && process.CPUAffinity.Final != nil,
		// Only the container's configuration has it: see the next test.
		"OOMScoreAdj": true,
		// Windows.
		"CommandLine": true,
	}
	for field := range reflect.TypeFor[specs.Process]().Fields() {
		if !arrived[field.Name] {
			t.Errorf("%s is lost", field.Name)
		}
	}
}

func TestContainerConfigurationHasTheRest(t *testing.T) {
	spec := &specs.Spec{Version: specs.Version, Process: full(), Root: &specs.Root{Path: "/"}, Linux: &specs.Linux{}}
	plan := mustPlan(t, spec, &Runtime{})
	if adj := plan.config.OomScoreAdj; adj == nil || *adj != 321 {
		t.Errorf("OOM score %v", adj)
	}
	if umask := plan.config.Umask; umask == nil || *umask != 0o027 {
		t.Errorf("umask %v", umask)
	}
	if !plan.Terminal() {
		t.Error("no terminal")
	}
	spec.Process.OOMScoreAdj = nil
	if adj := mustPlan(t, spec, &Runtime{OOMScoreAdj: 7}).config.OomScoreAdj; adj == nil || *adj != 7 {
		t.Errorf("a container without an OOM score has the monitor's: %v", adj)
	}
}

func TestProcessWithoutCapabilitiesHasNone(t *testing.T) {
	spec := full()
	spec.Capabilities = nil
	process, err := newProcess(spec, serve.Stdio{})
	if err != nil || process.Capabilities == nil || !reflect.DeepEqual(*process.Capabilities, configs.Capabilities{}) {
		t.Fatalf("%+v, %v: nil means the container's", process.Capabilities, err)
	}
}

func TestOwnerOfTheStdioInAUserNamespace(t *testing.T) {
	mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 65536, Size: 1000}}
	spec := &specs.Spec{Version: specs.Version, Process: full(), Root: &specs.Root{Path: "/"}, Linux: &specs.Linux{
		Namespaces:  []specs.LinuxNamespace{{Type: specs.UserNamespace}, {Type: specs.MountNamespace}},
		UIDMappings: mapping, GIDMappings: mapping,
	}}
	if uid, gid := mustPlan(t, spec, &Runtime{}).Owner(); uid != 65536 || gid != 65536 {
		t.Fatalf("owner %d:%d", uid, gid)
	}
}

func TestBadSpecificationsAreRefused(t *testing.T) {
	good := func() *specs.Spec {
		return &specs.Spec{Version: specs.Version, Process: full(), Root: &specs.Root{Path: "/"}, Linux: &specs.Linux{}}
	}
	for name, edit := range map[string]func(*specs.Spec){
		"no process":        func(s *specs.Spec) { s.Process = nil },
		"no command":        func(s *specs.Spec) { s.Process.Args = nil },
		"relative cwd":      func(s *specs.Spec) { s.Process.Cwd = "x" },
		"no root":           func(s *specs.Spec) { s.Root = nil },
		"relative root":     func(s *specs.Spec) { s.Root.Path = "x" },
		"unknown namespace": func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "flavour"}} },
	} {
		spec := good()
		edit(spec)
		data, _ := json.Marshal(spec)
		if _, err := (&Runtime{}).Plan("a", &monitor.CreateArgs{Spec: data}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	spec := full()
	spec.Rlimits[0].Type = "RLIMIT_FUN"
	if _, err := newProcess(spec, serve.Stdio{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown limit: %v", err)
	}
}

func mustPlan(t *testing.T, spec *specs.Spec, r *Runtime) *plan {
	t.Helper()
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	made, err := r.Plan("a", &monitor.CreateArgs{Spec: data})
	if err != nil {
		t.Fatal(err)
	}
	p, ok := made.(*plan)
	if !ok {
		t.Fatalf("%T", made)
	}
	return p
}

// Rows: R18 (part)
func TestStartErrorsHaveTheCodesOfTheShell(t *testing.T) {
	for text, code := range map[string]int{
		`unable to start container process: error during container init: exec: "nope": executable file not found in $PATH`:                127,
		`unable to start container process: error during container init: exec: "/bin/nope": stat /bin/nope: no such file or directory`:    127,
		`unable to start container process: error during container init: exec: "/bin/plain": permission denied`:                           126,
		`unable to start container process: error during container init: exec: "/tmp": is a directory`:                                    126,
		`unable to start container process: error during container init: error mounting "x" to rootfs at "/y": no such file or directory`: 128,
		`unable to start container process: error during container init: error mounting "x" to rootfs: permission denied`:                 128,
		`unable to start container process: unable to apply caps: operation not permitted`:                                                128,
	} {
		var start *monitor.StartError
		if err := startError("a", errors.New(text)); !errors.As(err, &start) || start.ExitCode != code {
			t.Errorf("%s: %v, want %d", text, err, code)
		}
	}
}
