package spec

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/host"
)

func TestNoSwapIsSaidInTheWordsOfCgroup2(t *testing.T) {
	h := &host.Host{CgroupV2: true, Swap: true}
	for _, tt := range []struct {
		name string
		r    engine.Resources
		want string
	}{
		{"no limits", engine.Resources{}, "0"},
		{"memory alone", engine.Resources{MemoryLimit: 64 << 20}, "0"},
		{"the same limit", engine.Resources{MemoryLimit: 64 << 20, MemorySwap: 64 << 20}, "0"},
		{"some swap", engine.Resources{MemoryLimit: 64 << 20, MemorySwap: 80 << 20}, ""},
		{"all swap", engine.Resources{MemoryLimit: 64 << 20, MemorySwap: -1}, ""},
		{"asked for", engine.Resources{MemoryLimit: 64 << 20, Unified: map[string]string{swapMax: "5"}}, "5"},
	} {
		out := &specs.LinuxResources{Memory: &specs.LinuxMemory{}}
		if value, given := tt.r.Unified[swapMax]; given {
			setUnified(out, swapMax, value)
		}
		lowerMemory(h, &tt.r, out)
		if got := out.Unified[swapMax]; got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// CRI's 0 beside a limit of memory is no swap: cgroup v1 has to be told so by the limit of both, as a limit of memory alone leaves
// swap without one. Where swap is not accounted nothing of it can be said, and what needs nothing said is not refused.
func TestALimitOfMemoryIsOneOfSwapOnCgroup1(t *testing.T) {
	const limit = 64 << 20
	for _, tt := range []struct {
		name       string
		swap       bool
		r          engine.Resources
		wantSwap   int64 // 0: not set
		swappiness bool
	}{
		{"memory alone", true, engine.Resources{MemoryLimit: limit}, limit, false},
		{"some swap", true, engine.Resources{MemoryLimit: limit, MemorySwap: limit + 5}, limit + 5, false},
		{"all swap", true, engine.Resources{MemoryLimit: limit, MemorySwap: -1}, -1, false},
		{"no limits", true, engine.Resources{}, 0, true},
		{"memory alone, not accounted", false, engine.Resources{MemoryLimit: limit}, 0, false},
		{"the same limit, not accounted", false, engine.Resources{MemoryLimit: limit, MemorySwap: limit}, 0, false},
	} {
		h := v1Host()
		h.Swap = tt.swap
		out, err := Resources(h, &tt.r, nil)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var got int64
		if out.Memory.Swap != nil {
			got = *out.Memory.Swap
		}
		if got != tt.wantSwap || (out.Memory.Swappiness != nil) != tt.swappiness {
			t.Errorf("%s: swap %d, swappiness set: %t", tt.name, got, out.Memory.Swappiness != nil)
		}
	}
}
