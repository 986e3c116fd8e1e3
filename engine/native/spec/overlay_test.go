package spec

import (
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/host"
)

func TestAnOverlaySetsWhatItNamesAndLeavesTheRest(t *testing.T) {
	base := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(100)), Quota: ptr(int64(50000)), Cpus: "0-3"},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(1 << 20))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}, {Pagesize: "1GB", Limit: 2}},
		Unified:        map[string]string{"memory.high": "1", "memory.low": "2"},
		Devices:        []specs.LinuxDeviceCgroup{{Allow: true}},
	}
	over := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Cpus: "1", Shares: ptr(uint64(200))},
		Memory:         &specs.LinuxMemory{Reservation: ptr(int64(5))},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(7))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 9}},
		Unified:        map[string]string{"memory.high": "3"},
		Devices:        []specs.LinuxDeviceCgroup{{Allow: false}},
	}
	want := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(200)), Quota: ptr(int64(50000)), Cpus: "1"},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(1 << 20)), Reservation: ptr(int64(5))},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(7))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 2}, {Pagesize: "2MB", Limit: 9}},
		Unified:        map[string]string{"memory.high": "3", "memory.low": "2"},
		Devices:        []specs.LinuxDeviceCgroup{{Allow: true}},
	}
	if got := Overlay(base, over); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if base.Unified["memory.high"] != "1" || *base.CPU.Shares != 100 || base.HugepageLimits[0].Limit != 1 {
		t.Errorf("the base was changed: %+v", base)
	}
	if got := Overlay(nil, over); got.Devices != nil || *got.CPU.Shares != 200 {
		t.Errorf("over nothing: %+v", got)
	}
	if got := Overlay(base, nil); !reflect.DeepEqual(got, base) {
		t.Errorf("under nothing: %+v", got)
	}
}

func TestAPluginsLimitYieldsToALaterWordOfCRI(t *testing.T) {
	over := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Cpus: "1", Shares: ptr(uint64(200))},
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(5)), Swap: ptr(int64(5)), Reservation: ptr(int64(4))},
		Unified: map[string]string{"memory.high": "3", "memory.low": "1"},
	}
	before := &engine.Resources{CPUShares: 2, CpusetCPUs: "0", MemoryLimit: 10, Unified: map[string]string{"memory.low": "9"}}
	after := &engine.Resources{CPUShares: 2, CpusetCPUs: "0-1", MemoryLimit: 20, Unified: map[string]string{"memory.low": "8"}}
	want := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: ptr(uint64(200))}, Memory: &specs.LinuxMemory{Reservation: ptr(int64(4))},
		Unified: map[string]string{"memory.high": "3"},
	}
	if got := Yield(over, before, after); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if over.CPU.Cpus != "1" || over.Memory.Limit == nil || len(over.Unified) != 2 {
		t.Errorf("the overlay itself was changed: %+v", over)
	}
	if got := Yield(over, before, before); !reflect.DeepEqual(got, over) {
		t.Errorf("without a change: %+v", got)
	}
	if Yield(nil, before, after) != nil {
		t.Error("nothing became something")
	}
}

func TestLimitsOfPluginsAreCheckedAgainstTheHost(t *testing.T) {
	v1 := &host.Host{Swap: true, Controllers: []string{"memory"}}
	memory := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(5))}}
	if err := CheckOverlay(v1, memory); err != nil || memory.Memory.Swap == nil || *memory.Memory.Swap != 5 {
		t.Errorf("a limit of memory does not bound swap: %+v, %v", memory.Memory, err)
	}
	if err := CheckOverlay(&host.Host{}, memory); err != nil || memory.Memory.Swap != nil {
		t.Errorf("swap is limited where it cannot be: %+v, %v", memory.Memory, err)
	}
	if err := CheckOverlay(v1, &specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unified on cgroup v1: %v", err)
	}
	if err := CheckOverlay(&host.Host{CgroupV2: true}, &specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file that is no limit: %v", err)
	}
	if err := CheckOverlay(v1, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("cpuset without the controller: %v", err)
	}
	if err := CheckOverlay(v1, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("huge pages that the host has not: %v", err)
	}
}

func TestWhatARefusedOverlayHadSetIsLifted(t *testing.T) {
	h := &host.Host{CgroupV2: true, CPUs: "0-3", MemoryNodes: "0-1", HugePageSizes: []string{"2MB"}}
	over := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(200)), Quota: ptr(int64(5000)), Period: ptr(uint64(10000)), Cpus: "1", Mems: "1"},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(1 << 20))},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(7))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 9}},
		Unified:        map[string]string{"memory.high": "3"},
	}
	limits := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(100))}}
	want := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(100)), Quota: ptr(int64(-1)), Period: ptr(uint64(100000)), Cpus: "0-3", Mems: "0-1"},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(-1))},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(-1))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: noLimit}},
		Unified:        map[string]string{"memory.high": "max"},
	}
	if got := Lift(h, limits, over); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if got := Lift(h, limits, nil); got != limits {
		t.Errorf("of nothing: %+v", got)
	}
}
