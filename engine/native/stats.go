package native

import (
	"sync/atomic"

	"crishim/engine/native/image"
)

// Stats are the engine's figures for its operator. Those that count do so since the engine was made.
type Stats struct {
	// Monitors run; MonitorsLost ended while their pods ran, MonitorsKilled hung and were killed by us.
	Monitors                     int
	MonitorsLost, MonitorsKilled uint64
	// Clamped are containers that got less than was asked for, as this host allows no more.
	Clamped uint64
	// Filters are the seccomp profiles that were compiled.
	Filters uint64
	// Quarantined are the records of pods, containers, ends and images that could not be believed and lie set aside.
	Quarantined int
	// ImageBytes is what the image store takes on disk.
	ImageBytes uint64
	Images     image.Counts
}

type counts struct {
	monitorsLost, monitorsKilled, clamped, filters atomic.Uint64
}

// Stats may be called at any time; it does no I/O.
func (e *Engine) Stats() Stats {
	s := Stats{
		MonitorsLost: e.counts.monitorsLost.Load(), MonitorsKilled: e.counts.monitorsKilled.Load(), Clamped: e.counts.clamped.Load(),
		Filters: e.counts.filters.Load(), ImageBytes: e.images.Usage().UsedBytes, Images: e.images.Counts(),
	}
	s.Quarantined = e.aside.count() + s.Images.Quarantined
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.pods {
		if p.client != nil {
			s.Monitors++
		}
	}
	return s
}
