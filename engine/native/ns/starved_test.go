package ns

import (
	"testing"

	"crishim/internal/process"
	"crishim/internal/starving"
)

// pinned is the Set of the pod of a test.
func pinned(t *testing.T, p *Pins) Set {
	t.Helper()
	set, err := p.Set("pod")
	if err != nil {
		t.Error(err)
	}
	return set
}

func TestPinsThatCannotBeOpenedNowAreNotAbsent(t *testing.T) {
	p := &Pins{t.TempDir()}
	var err error
	starving.Opening(t, 0, 0, func() { _, err = p.Set("pod") })
	if !process.Starved(err) {
		t.Errorf("looked with %v", err)
	}
	if set := pinned(t, p); len(set) != 0 {
		t.Errorf("%v", set)
	}
}
