package engine

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestResourcesThatNoEngineCanSet(t *testing.T) {
	good := Resources{
		CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 2, MemoryLimit: 64 << 20, MemorySwap: -1, OOMScoreAdj: -1000,
		Hugepages: []HugepageLimit{{"64KB", 1}, {"2MB", 1}, {"1GB", 0}}, Unified: map[string]string{"memory.high": "max"},
	}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for _, bad := range []Resources{
		{MemoryLimit: -1}, {MemorySwap: -2}, {MemoryLimit: 2, MemorySwap: 1}, {CPUQuota: 999}, {CPUPeriod: 999}, {CPUPeriod: 1000001},
		{CPUShares: -1}, {OOMScoreAdj: 1001}, {OOMScoreAdj: -1001},
		{Hugepages: []HugepageLimit{{PageSize: "2M"}}}, {Hugepages: []HugepageLimit{{PageSize: "0MB"}}}, {Hugepages: []HugepageLimit{{PageSize: "B"}}},
		{Unified: map[string]string{"memory.high": "1\x00"}},
	} {
		if err := bad.Check(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, file := range []string{"cgroup.freeze", "../memory.max", "memory", "a/b.c", ".max", "memory.\n"} {
		if err := (&Resources{Unified: map[string]string{file: "1"}}).Check(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q passes for a limit", file)
		}
	}
}

func TestTheMemoryLimitInEffectIsTheFilesOfCgroupV2(t *testing.T) {
	for text, want := range map[string]int64{
		"16777216": 16 << 20, "16M": 16 << 20, " 16m\n": 16 << 20, "0x1000": 4096, "0": 0, "1E": 1 << 60, "max": 0, "": 0, "K": 0, "8E": 0, "64 M": 0,
	} {
		if got := MemoryMax(5, map[string]string{"memory.max": text}); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if got := MemoryMax(5, map[string]string{"memory.high": "1"}); got != 5 {
		t.Errorf("without the file: %d", got)
	}
}
