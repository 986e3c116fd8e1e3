package imageset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/internal/flight"
)

const (
	// reportEvery is how often an image on its way is told of.
	reportEvery = 10 * time.Second
	// stalledAfter ends a carry of which nothing moved for so long: longer than any layer takes to be unpacked.
	stalledAfter = 15 * time.Minute
	// answerBefore is how long before its deadline, but at most a tenth of its time, a caller is told how far it is.
	answerBefore = 2 * time.Second
)

// Progress is an image on its way between two stores.
type Progress struct {
	Image    string // a name of it, else its id
	From, To string // engines
	// Moved of about Total bytes: stores count layers compressed or not.
	Moved, Total uint64
	Done         bool
	Err          error // why it ended, with Done
}

// Percent is from 0 to 99 until it is done.
func (p *Progress) Percent() int {
	if p.Done && p.Err == nil {
		return 100
	}
	if p.Total == 0 {
		return 0
	}
	return int(min(99, 100*p.Moved/p.Total))
}

type carryKey struct {
	to string
	id engine.ImageID
}

// carry is one image on its way; callers join it and may leave, it goes on.
type carry struct {
	now   Progress // without From and Moved
	from  atomic.Pointer[string]
	moved atomic.Uint64
	done  chan struct{}
	err   error // written before done is closed
}

func (c *carry) progress() Progress {
	p := c.now
	p.Moved = c.moved.Load()
	if from := c.from.Load(); from != nil {
		p.From = *from
	}
	return p
}

// Ensure makes sure that the named engine's store has the image, and returns it as that store has it, and under which id
// the set tells of it. The reference means what Find says, the store of prefer asked first. What another store has is
// carried over, verified: that may outlast ctx, which is answered ErrUnavailable shortly before its deadline then, with
// how far it is; the next call joins.
func (s *Set) Ensure(ctx context.Context, engineName, ref, prefer string) (img *engine.Image, told engine.ImageID, err error) {
	to := s.index(engineName)
	if to < 0 {
		return nil, "", fmt.Errorf("image %.300q: there is no store of engine %q: %w", ref, engineName, errdefs.ErrFailedPrecondition)
	}
	if len(s.stores) == 1 {
		img, err := s.stores[0].Image(ctx, ref)
		if err != nil {
			return nil, "", err
		}
		return img, img.ID, nil
	}
	e, err := s.find(ctx, ref, prefer)
	if err != nil {
		return nil, "", err
	}
	if e[to] != nil {
		return e[to], e.first().ID, nil
	}
	if err := s.await(ctx, s.begin(e, to)); err != nil {
		return nil, "", err
	}
	// By the id: a tag may mean another image by now.
	if e, err = s.find(ctx, string(e.first().ID), ""); err != nil {
		return nil, "", err
	}
	if e[to] == nil {
		return nil, "", fmt.Errorf("image %.300q was removed right after it was carried to engine %s, try again: %w", ref, engineName, errdefs.ErrUnavailable)
	}
	return e[to], e.first().ID, nil
}

// Underway are the images that are on their way now.
func (s *Set) Underway() []Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Progress
	for _, c := range s.flights {
		all = append(all, c.progress())
	}
	return all
}

// begin starts to carry, or joins what is on its way.
func (s *Set) begin(e entry, to int) *carry {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := e.told()
	key := carryKey{s.stores[to].Engine, told.ID}
	if c := s.flights[key]; c != nil {
		return c
	}
	c := &carry{done: make(chan struct{})}
	c.now = Progress{Image: nameOf(&told), To: s.stores[to].Engine, Total: told.Size}
	s.flights[key] = c
	s.carries.Go(func() {
		func() {
			defer flight.Caught(&c.err)
			c.err = s.carry(c, e, &told, to)
		}()
		s.mu.Lock()
		delete(s.flights, key)
		s.mu.Unlock()
		if end := c.progress(); end.From != "" || c.err != nil { // else it was there
			end.Done, end.Err = true, c.err
			s.progress(end)
		}
		close(c.done)
	})
	return c
}

func nameOf(img *engine.Image) string {
	for _, names := range [][]string{img.RepoTags, img.RepoDigests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return string(img.ID)
}

// await waits for a carry, or until it is time to say how far it is.
func (s *Set) await(ctx context.Context, c *carry) error {
	soon := ctx
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		var cancel context.CancelFunc
		soon, cancel = context.WithTimeout(ctx, left-min(answerBefore, left/10))
		defer cancel()
	}
	select {
	case <-c.done:
		return c.err
	case <-soon.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		p := c.progress()
		return fmt.Errorf("image %s is on its way from engine %s to %s, %d %% of about %.1f MiB are there; try again: %w",
			p.Image, p.From, p.To, p.Percent(), float64(p.Total)/(1<<20), errdefs.ErrUnavailable)
	}
}

// carry brings an image to a store from the first that can give it.
func (s *Set) carry(c *carry, e entry, told *engine.Image, to int) error {
	target, ok := s.stores[to].Images.(engine.ImageCarrier)
	if !ok {
		return fmt.Errorf("image %s: engine %s takes no images from other engines: %w", c.now.Image, c.now.To, errdefs.ErrNotImplemented)
	}
	// Who found that it is not there may have looked before an earlier carry ended.
	if now, err := s.find(s.life, string(told.ID), ""); err == nil && now[to] != nil {
		return nil
	}
	var errs []error
	for from, img := range e {
		source, ok := s.stores[from].Images.(engine.ImageCarrier)
		if img == nil || !ok {
			continue
		}
		c.from.Store(&s.stores[from].Engine)
		err := s.carryFrom(c, source, img, target, told)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("carry image %s from engine %s to %s: %w", c.now.Image, s.stores[from].Engine, c.now.To, err))
	}
	return errors.Join(errs...)
}

func (s *Set) carryFrom(c *carry, source engine.ImageCarrier, img *engine.Image, target engine.ImageCarrier, told *engine.Image) error {
	ctx, cancel := context.WithCancelCause(s.life)
	defer cancel(nil)
	c.moved.Store(0)
	stop := s.watch(c, cancel)
	defer stop()
	if err := failpoint.Hit("image.carry.before"); err != nil {
		return err
	}
	r, w := io.Pipe()
	defer func() { _ = r.Close() }() // also where the import panics
	exporting, stopExport := context.WithCancel(ctx)
	defer stopExport()
	exported := make(chan error, 1)
	go func() {
		err := func() (err error) {
			defer flight.Caught(&err)
			return source.ExportImage(exporting, img.ID, &counter{w, &c.moved})
		}()
		_ = w.CloseWithError(err)
		exported <- err
	}()
	got, err := target.ImportImage(ctx, r, told)
	if err == nil {
		_, _ = io.Copy(io.Discard, r) // what follows the archive's end
	}
	_ = r.CloseWithError(errors.New("the other store reads no more"))
	if err != nil {
		stopExport() // a store that hangs writes nothing, and would not see it
	}
	exportErr := <-exported
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && exportErr != nil && !errors.Is(err, exportErr) && !errors.Is(exportErr, context.Canceled):
		return fmt.Errorf("%w (%w)", err, exportErr)
	case err != nil:
		return err
	case !got.SameContent(img):
		return fmt.Errorf("what came, %s, has other content: %w", got.ID, errdefs.ErrDataLoss)
	}
	return failpoint.Hit("image.carry.after")
}

// watch tells of a carry from time to time and ends one that stands still.
func (s *Set) watch(c *carry, end context.CancelCauseFunc) (stop func()) {
	done := make(chan struct{})
	s.progress(c.progress())
	s.carries.Go(func() {
		ticker := time.NewTicker(reportEvery)
		defer ticker.Stop()
		last, since := c.moved.Load(), time.Now()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			if moved := c.moved.Load(); moved != last {
				last, since = moved, time.Now()
			} else if time.Since(since) > stalledAfter {
				end(fmt.Errorf("nothing moved for %v: %w", stalledAfter, errdefs.ErrUnavailable))
			}
			s.progress(c.progress())
		}
	})
	return func() { close(done) }
}

// counter counts what is written.
type counter struct {
	io.Writer
	n *atomic.Uint64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n.Add(uint64(n))
	return n, err
}
