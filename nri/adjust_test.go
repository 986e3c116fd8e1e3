package nri

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine/native/hook"
)

var update = flag.Bool("update", false, "write the golden files")

func testSpec() *specs.Spec {
	return &specs.Spec{
		Version: "1.3.0", Root: &specs.Root{Path: "/root"}, Annotations: map[string]string{"old": "1"},
		Process: &specs.Process{
			Args: []string{"sleep", "1"}, Env: []string{"PATH=/bin", "A=1", "B=2"},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}, {Type: "RLIMIT_CORE", Soft: 3, Hard: 4}},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/a/b", Source: "/x"}, {Destination: "/c", Source: "/y"}},
		Linux: &specs.Linux{
			CgroupsPath: "/pod/ctr", Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Devices:    []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/zero", Type: "c", Major: 1, Minor: 5}},
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: "/ns/net"}},
			Sysctl:     map[string]string{"net.ipv4.ip_forward": "0"},
		},
	}
}

// host is one that can everything.
func testHost() *hook.Host {
	return &hook.Host{
		InjectCDI: func(s *specs.Spec, names []string) error {
			for _, name := range names {
				s.Process.Env = append(s.Process.Env, "CDI="+name)
			}
			return nil
		},
		CheckResources: func(*specs.LinuxResources) error { return nil },
		Relabel:        func(string) error { return nil },
	}
}

func TestAdjustmentsOfEveryKind(t *testing.T) {
	hookOf := func(path string) []*api.Hook {
		return []*api.Hook{{Path: path, Args: []string{path}, Timeout: api.Int(5)}}
	}
	for name, a := range map[string]*api.ContainerAdjustment{
		"nothing":      {},
		"annotations":  {Annotations: map[string]string{"new": "2", api.MarkForRemoval("old"): ""}},
		"args":         {Args: []string{"wrapper", "sleep", "1"}},
		"env":          {Env: []*api.KeyValue{{Key: "A", Value: "x=y"}, {Key: api.MarkForRemoval("B")}, {Key: "C", Value: "3"}}},
		"cdi":          {CDIDevices: []*api.CDIDevice{{Name: "vendor.com/gpu=0"}}},
		"rlimits":      {Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}},
		"mounts":       {Mounts: []*api.Mount{{Destination: "/a", Source: "/z", Type: "bind", Options: []string{"rbind", "ro", "relabel"}}, {Destination: api.MarkForRemoval("/c")}, {Destination: "/a/b", Source: "/w"}}},
		"hooks":        {Hooks: &api.Hooks{Prestart: hookOf("/1"), CreateRuntime: hookOf("/2"), CreateContainer: hookOf("/3"), StartContainer: hookOf("/4"), Poststart: hookOf("/5"), Poststop: hookOf("/6")}},
		"devices":      {Linux: &api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: api.FileMode(os.FileMode(0o666))}, {Path: api.MarkForRemoval("/dev/zero")}}}},
		"namespaces":   {Linux: &api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "network", Path: "/ns/other"}, {Type: api.MarkForRemoval("pid")}}}},
		"sysctl":       {Linux: &api.LinuxContainerAdjustment{Sysctl: map[string]string{"net.core.somaxconn": "9", api.MarkForRemoval("net.ipv4.ip_forward"): ""}}},
		"process":      {Linux: &api.LinuxContainerAdjustment{OomScoreAdj: api.Int(7), IoPriority: &api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 3}, Scheduler: &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 4}}},
		"memorypolicy": {Linux: &api.LinuxContainerAdjustment{MemoryPolicy: &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_BIND, Nodes: "0"}}},
		"netdevices":   {Linux: &api.LinuxContainerAdjustment{NetDevices: map[string]*api.LinuxNetDevice{"eth9": {Name: "data0"}}}},
		"seccomp":      {Linux: &api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Architectures: []string{"SCMP_ARCH_X86_64"}, Syscalls: []*api.LinuxSyscall{{Names: []string{"reboot"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: api.UInt32(uint32(1))}}}}},
		"limits": {Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{
			Memory: &api.LinuxMemory{Limit: api.Int64(int64(1 << 20)), Reservation: api.Int64(int64(5))},
			Cpu:    &api.LinuxCPU{Cpus: "0", Shares: api.UInt64(uint64(10))}, Pids: &api.LinuxPids{Limit: 8},
			HugepageLimits: []*api.HugepageLimit{{PageSize: "2MB", Limit: 3}}, Unified: map[string]string{"memory.high": "1"},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := testSpec()
			limits, err := adjust(s, a, testHost())
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(struct {
				Spec   *specs.Spec
				Limits *specs.LinuxResources `json:",omitempty"`
			}{s, limits}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != string(got)+"\n" {
				t.Errorf("the spec differs from %s:\n%s", path, got)
			}
		})
	}
}

func TestAdjustmentsThatCannotBeMadeAreRefused(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		a    *api.ContainerAdjustment
		host func(*hook.Host)
		is   func(error) bool
	}{
		"cgroup path":   {a: &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{CgroupsPath: "/x"}}, is: errdefs.IsNotImplemented},
		"RDT":           {a: &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Rdt: &api.LinuxRdt{ClosId: api.String("gold")}}}, is: errdefs.IsNotImplemented},
		"RDT class":     {a: &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{RdtClass: api.String("gold")}}}, is: errdefs.IsNotImplemented},
		"blkio class":   {a: &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{BlockioClass: api.String("slow")}}}, is: errdefs.IsNotImplemented},
		"relative path": {a: &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "a", Source: "/x"}}}, is: errdefs.IsInvalidArgument},
		"no namespace":  {a: &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "moon"}}}}, is: errdefs.IsInvalidArgument},
		"no CDI device": {
			a: &api.ContainerAdjustment{CDIDevices: []*api.CDIDevice{{Name: "a/b=c"}}}, is: func(err error) bool { return errors.Is(err, broken) },
			host: func(h *hook.Host) { h.InjectCDI = func(*specs.Spec, []string) error { return broken } },
		},
		"label": {
			a:    &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/a", Source: "/x", Options: []string{"relabel"}}}},
			is:   func(err error) bool { return errors.Is(err, broken) },
			host: func(h *hook.Host) { h.Relabel = func(string) error { return broken } },
		},
		"limits": {
			a:    &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Pids: &api.LinuxPids{Limit: 1}}}},
			is:   func(err error) bool { return errors.Is(err, broken) },
			host: func(h *hook.Host) { h.CheckResources = func(*specs.LinuxResources) error { return broken } },
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := testHost()
			if c.host != nil {
				c.host(h)
			}
			if _, err := adjust(testSpec(), c.a, h); !c.is(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}
