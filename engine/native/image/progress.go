package image

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// localPatience is how many times longer than the network the local disk, and the wait for a turn to unpack, may take
// without a sign: it ends nothing to give up on them.
const localPatience = 10

// progress is what a piece of work last did, with what takes part in it. Its methods may be called from any goroutine.
type progress struct {
	last     atomic.Int64 // since started
	started  time.Time
	local    atomic.Int32 // how many wait for this machine
	fetched  atomic.Int64
	unpacked atomic.Int64
	total    atomic.Int64
	all      atomic.Int32
	ready    atomic.Int32

	mu    sync.Mutex
	parts []*progress
}

func newProgress() *progress { return &progress{started: time.Now()} }

func (p *progress) touch() { p.last.Store(int64(time.Since(p.started))) }

func (p *progress) fetch(n int) {
	p.fetched.Add(int64(n))
	p.touch()
}

func (p *progress) unpack(n int) {
	p.unpacked.Add(int64(n))
	p.touch()
}

// onDisk runs what depends on this machine alone.
func (p *progress) onDisk(work func() error) error {
	p.local.Add(1)
	defer p.local.Add(-1)
	err := work()
	p.touch()
	return err
}

func (p *progress) attach(part *progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parts = append(p.parts, part)
}

// sum is the whole of p and its parts.
func (p *progress) sum() (fetched, unpacked int64, last time.Time, local bool) {
	fetched, unpacked = p.fetched.Load(), p.unpacked.Load()
	last, local = p.started.Add(time.Duration(p.last.Load())), p.local.Load() > 0
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, part := range p.parts {
		f, u, l, onDisk := part.sum()
		fetched, unpacked, local = fetched+f, unpacked+u, local || onDisk
		if l.After(last) {
			last = l
		}
	}
	return fetched, unpacked, last, local
}

// Left is how long the work may still go on without progress under the limit; 0 or less when it was too long already.
func (p *progress) Left(limit time.Duration) time.Duration {
	_, _, last, local := p.sum()
	if local {
		limit *= localPatience
	}
	return limit - time.Since(last)
}

// WatchProgress calls tell with the progress of every pull and import, once a second each, from several goroutines, until stop
// is called, and perhaps once more. It must not block.
func (s *Store) WatchProgress(tell func(Progress)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[&tell] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, &tell)
	}
}

func (s *Store) tell(p Progress) {
	if s.options.Progress != nil {
		s.options.Progress(p)
	}
	s.mu.Lock()
	watchers := slices.Collect(maps.Keys(s.watchers))
	s.mu.Unlock()
	for _, tell := range watchers {
		(*tell)(p)
	}
}

// report counts a pull or import, and tells of it once a second, until done is called with its result. The log says how far it is
// once in a logInterval, with 0 never.
func (s *Store) report(ref string, p *progress, logInterval time.Duration) (done func(error)) {
	s.counts.running.Add(1)
	now := func(phase string, err error) Progress {
		fetched, unpacked, _, _ := p.sum()
		return Progress{
			Ref: ref, Phase: phase, Fetched: fetched, Total: p.total.Load(), Unpacked: unpacked,
			Layers: int(p.all.Load()), Ready: int(p.ready.Load()), Elapsed: time.Since(p.started), Err: err,
		}
	}
	ended, stopped := make(chan struct{}), make(chan struct{})
	s.tell(now(phaseResolving, nil))
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		var logging <-chan time.Time
		if logInterval > 0 {
			logger := time.NewTicker(logInterval)
			defer logger.Stop()
			logging = logger.C
		}
		for {
			tell := s.tell
			select {
			case <-ended:
				return
			case <-ticker.C:
			case <-logging:
				tell = logProgress
			}
			state := now(phaseFetching, nil)
			switch {
			case state.Total == 0:
				state.Phase = phaseResolving
			case state.Fetched >= state.Total:
				state.Phase = phaseUnpacking
			}
			tell(state)
		}
	}()
	return func(err error) {
		s.counts.end(p, err)
		close(ended)
		<-stopped
		if err != nil {
			s.tell(now(phaseFailed, err))
			return
		}
		s.tell(now(phaseDone, nil))
	}
}

func logProgress(p Progress) {
	klog.InfoS("Pulling image", "image", p.Ref, "phase", p.Phase, "fetched", p.Fetched, "of", p.Total,
		"ready", p.Ready, "layers", p.Layers, "duration", p.Elapsed.Round(time.Second))
}

// The phases of Progress.
const (
	phaseResolving = "resolving"
	phaseFetching  = "fetching"
	phaseUnpacking = "unpacking"
	phaseDone      = "done"
	phaseFailed    = "failed"
)
