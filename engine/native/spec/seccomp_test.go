package spec

import (
	"runtime"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// A filter for an architecture that no program can have only makes starts and execs slow.
func TestTheFilterKnowsTheX32ABIWhereTheKernelDoes(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the x32 ABI is amd64's")
	}
	for _, x32 := range []bool{false, true} {
		h := v2Host()
		h.Kernel.X32 = x32
		c := podContainer()
		c.Spec.Security.Seccomp = engine.Profile{Type: engine.ProfileRuntimeDefault}
		s, _, err := Build(h, c)
		if err != nil {
			t.Fatal(err)
		}
		archs := s.Linux.Seccomp.Architectures
		if slices.Contains(archs, specs.ArchX32) != x32 || !slices.Contains(archs, specs.ArchX86_64) || !slices.Contains(archs, specs.ArchX86) {
			t.Errorf("x32 %v: %v", x32, archs)
		}
	}
}
