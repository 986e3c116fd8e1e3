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
