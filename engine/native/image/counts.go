package image

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// Counts are what the store has done since it was opened.
type Counts struct {
	// Running are the pulls and imports that go on; the others have ended. Abandoned are those for whom nobody waited any more.
	Running                 int64
	Done, Failed, Abandoned uint64
	// Seconds are what the ones that are done took, together.
	Seconds float64
	// FetchedBytes are of compressed content that came from registries, UnpackedBytes come out of the decompressor; both count as
	// they come.
	FetchedBytes, UnpackedBytes uint64
	// UnpackSeconds is the time in which layers were unpacked, without that in which one waited for the network; for two at
	// once it counts twice.
	UnpackSeconds float64
	// FlushSeconds are what it took to make unpacked layers durable, a part of Seconds; for two at once it counts twice.
	FlushSeconds float64
	// Quarantined are the records that lay set aside when the store was opened, or were then.
	Quarantined int
}

type counts struct {
	running                 atomic.Int64
	done, failed, abandoned atomic.Uint64
	took                    atomic.Int64 // nanoseconds, as the next ones
	unpacking, flushing     atomic.Int64
	fetched, unpacked       atomic.Uint64
}

// Counts may be called at any time.
func (s *Store) Counts() Counts {
	c := &s.counts
	return Counts{
		Running: c.running.Load(), Done: c.done.Load(), Failed: c.failed.Load(), Abandoned: c.abandoned.Load(),
		Seconds: time.Duration(c.took.Load()).Seconds(), UnpackSeconds: time.Duration(c.unpacking.Load()).Seconds(),
		FlushSeconds: time.Duration(c.flushing.Load()).Seconds(),
		FetchedBytes: c.fetched.Load(), UnpackedBytes: c.unpacked.Load(), Quarantined: len(s.aside),
	}
}

// end counts a pull or import that has ended.
func (c *counts) end(p *progress, err error) {
	c.running.Add(-1)
	switch {
	case err == nil:
		c.done.Add(1)
		c.took.Add(int64(time.Since(p.started)))
	case errors.Is(err, context.Canceled):
		c.abandoned.Add(1)
	default:
		c.failed.Add(1)
	}
}
