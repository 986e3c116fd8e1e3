//go:build cgo

package run

import (
	"testing"

	"github.com/opencontainers/cgroups"
)

func TestLimitsThatAreNotNamedAnyMoreAreLifted(t *testing.T) {
	pids := int64(10)
	before := &cgroups.Resources{Memory: 1 << 20, MemorySwap: 1 << 20, MemoryReservation: 1 << 19, CpuQuota: 5000, CpuPeriod: 10000, CpuShares: 2, PidsLimit: &pids}
	now := &cgroups.Resources{}
	lift(now, before)
	if now.Memory != -1 || now.MemorySwap != -1 || now.MemoryReservation != -1 || now.CpuQuota != -1 || now.CpuPeriod != 100_000 ||
		now.CpuShares != 1024 || now.CpuWeight != cgroups.ConvertCPUSharesToCgroupV2Value(1024) || *now.PidsLimit != -1 {
		t.Errorf("%+v", now)
	}
	kept := &cgroups.Resources{Memory: 2 << 20, CpuQuota: 7}
	lift(kept, &cgroups.Resources{Memory: 1 << 20, CpuQuota: -1})
	if kept.Memory != 2<<20 || kept.MemorySwap != 0 || kept.CpuQuota != 7 || kept.CpuShares != 0 || kept.PidsLimit != nil {
		t.Errorf("%+v", kept)
	}
}
