//go:build cgo

package run

import (
	"maps"
	"testing"

	"github.com/opencontainers/cgroups"
)

func TestLimitsThatAreNotNamedAnyMoreAreLifted(t *testing.T) {
	pids := int64(10)
	before := &cgroups.Resources{Memory: 1 << 20, MemorySwap: 1 << 20, MemoryReservation: 1 << 19, CpuQuota: 5000, CpuPeriod: 10000, CpuShares: 2, PidsLimit: &pids}
	now := &cgroups.Resources{}
	lift(now, before, false)
	if now.Memory != -1 || now.MemorySwap != -1 || now.MemoryReservation != -1 || now.CpuQuota != -1 || now.CpuPeriod != 100_000 ||
		now.CpuShares != 1024 || now.CpuWeight != cgroups.ConvertCPUSharesToCgroupV2Value(1024) || *now.PidsLimit != -1 {
		t.Errorf("%+v", now)
	}
	kept := &cgroups.Resources{Memory: 2 << 20, CpuQuota: 7}
	lift(kept, &cgroups.Resources{Memory: 1 << 20, CpuQuota: -1}, false)
	if kept.Memory != 2<<20 || kept.MemorySwap != 0 || kept.CpuQuota != 7 || kept.CpuShares != 0 || kept.PidsLimit != nil {
		t.Errorf("%+v", kept)
	}
}

func TestAReservationThatIsLiftedOnCgroupV2ProtectsNothing(t *testing.T) {
	before := &cgroups.Resources{MemoryReservation: 1 << 19}
	for want, now := range map[string]*cgroups.Resources{
		"0":    {Unified: map[string]string{"memory.high": "1048576"}},
		"4096": {Unified: map[string]string{"memory.low": "4096", "memory.high": "1048576"}},
	} {
		given := maps.Clone(now.Unified)
		lift(now, before, true)
		given["memory.low"] = want
		if now.MemoryReservation != 0 || !maps.Equal(now.Unified, given) {
			t.Errorf("%+v", now)
		}
	}
}
