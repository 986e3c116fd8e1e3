package logpump

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"crishim/crilog"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

const (
	// A position is saved after so many bytes or so long after the first of them: what is read again after a crash.
	saveBytes = 1 << 20
	saveDelay = time.Second
	// retryDelay is the pause after a failed read or write.
	retryDelay = 250 * time.Millisecond
	// pollDelay is the pause between looks where inotify cannot be had; checkDelay where it should have told.
	pollDelay  = 100 * time.Millisecond
	checkDelay = 30 * time.Second
)

// checks are counted from here by all pumps: each time that an idle process gets up costs more than the looks of a hundred pumps.
var checks = time.Now()

// pump is one container's goroutine. Everything but the channels belongs to it.
//
//	    ┌────────── bytes moved ─────────┐
//	    ▼                                │
//	  step ── nothing ──► wait ── woken, ┴ called, retry, save, check
//	    │                   │
//	    │ error: wait       └── stop ──► save, end
//	    ▼
//	finishing and drained ──► save for good, answer, end
type pump struct {
	owner   *Pumps
	id      string
	path    string // of the position
	source  source
	log     *criLog
	watched bool   // otherwise it polls
	unwatch func() // nil where nothing is watched

	pending  []byte // rendered, but the log did not take it: nothing is read before it does
	trouble  error  // of the last step
	retryAt  time.Time
	unsaved  int // bytes since the position was saved
	dirty    bool
	dirtyAt  time.Time
	savedIn  fileID         // the log that the saved position tells of, where it was saved here
	finished []chan<- error // who waits for the end
	last     atomic.Bool    // nothing will go on where it ends; the pump may be ending by itself when it is set

	wake  chan struct{}
	calls chan call
	stop  chan struct{} // closed once by halt
	done  chan struct{} // closed when the goroutine has ended
}

type callKind int

const (
	reopenCall callKind = iota
	finishCall
)

type call struct {
	kind   callKind
	answer chan<- error
}

// call hands a call to the goroutine and waits for its answer.
func (p *pump) call(ctx context.Context, kind callKind) error {
	answer := make(chan error, 1)
	select {
	case p.calls <- call{kind, answer}:
	case <-p.done:
		return p.endedEarly(kind)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-p.done:
		select {
		case err := <-answer:
			return err
		default:
			return p.endedEarly(kind)
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pump) endedEarly(kind callKind) error {
	if kind == finishCall {
		return nil
	}
	return fmt.Errorf("the container's log has ended: %w", errdefs.ErrFailedPrecondition)
}

// halt ends the goroutine and waits for it.
func (p *pump) halt() {
	p.owner.mu.Lock()
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	p.owner.mu.Unlock()
	<-p.done
}

func (p *pump) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// close gives back what newPump opened.
func (p *pump) close() {
	if p.unwatch != nil {
		p.unwatch()
	}
	p.source.close()
	if p.last.Load() {
		p.log.cut()
	}
	p.log.close()
}

func (p *pump) run() {
	defer close(p.done)
	defer p.close()
	timer := time.NewTimer(checkDelay)
	defer timer.Stop()
	for {
		progress, err := p.step()
		p.note(err)
		if p.dirty && (p.unsaved >= p.owner.saveBytes || time.Since(p.dirtyAt) >= saveDelay) {
			p.save()
		}
		if progress {
			if p.called() {
				return
			}
			continue
		}
		if len(p.finished) > 0 && err == nil && p.source.drained() {
			p.end()
			return
		}
		timer.Reset(p.patience())
		select {
		case <-p.wake:
		case <-timer.C:
		case c := <-p.calls:
			p.answer(c)
		case <-p.stop:
			p.save()
			return
		}
	}
}

// called answers calls that wait while there is always more to do, and says whether the pump must stop.
func (p *pump) called() (stop bool) {
	select {
	case c := <-p.calls:
		p.answer(c)
	case <-p.stop:
		p.save()
		return true
	default:
	}
	return false
}

// patience is how long to wait for something to happen.
func (p *pump) patience() time.Duration {
	patience := checkDelay - time.Since(checks)%checkDelay
	if !p.watched {
		patience = pollDelay
	}
	if p.trouble != nil {
		patience = min(patience, time.Until(p.retryAt))
	}
	if p.dirty && len(p.pending) == 0 {
		patience = min(patience, saveDelay-time.Since(p.dirtyAt))
	}
	return max(0, patience)
}

// step moves one batch.
func (p *pump) step() (progress bool, err error) {
	if p.trouble != nil && time.Now().Before(p.retryAt) {
		// What Docker rotates meanwhile is held, so that it is there when the trouble is over.
		_ = p.source.look()
		return false, p.trouble
	}
	p.retryAt = time.Time{} // note says when after this try; a look that was slow puts none off
	switch back, err := p.log.goBack(); {
	case err != nil:
		p.owner.writeErrors.Add(1)
		return false, err
	case back:
		p.mark()
	}
	if len(p.pending) > 0 {
		return p.put(p.pending)
	}
	if p.log.outgrown(p.owner.maxSize) && p.savedIn != p.log.id {
		// The position tells of the overflow, which goes when this log gets its name.
		if err := p.trySave(false); err != nil {
			p.owner.saveErrors.Add(1)
			return false, err
		}
	}
	buf := bufferPool.Get().(*buffers)
	defer bufferPool.Put(buf)
	b, err := p.source.read(buf)
	if cap(b.out) <= maxLine {
		buf.out = b.out[:0]
	}
	if err != nil {
		p.owner.readErrors.Add(1)
		return false, err
	}
	if !b.advanced {
		return false, nil
	}
	p.count(b)
	if b.gap {
		p.log.forget()
	}
	p.mark()
	if b.save {
		p.unsaved = p.owner.saveBytes
	}
	return p.put(b.out)
}

// mark notes that the position is to be saved.
func (p *pump) mark() {
	if !p.dirty {
		p.dirty, p.dirtyAt = true, time.Now()
	}
}

// put writes to the log; what it does not take becomes pending.
func (p *pump) put(b []byte) (progress bool, err error) {
	n, err := 0, error(nil)
	if len(b) > 0 && p.log.outgrown(p.owner.maxSize) && p.savedIn == p.log.id { // else what is pending goes here still
		err = p.setAside()
	}
	if err == nil {
		before := p.log.size
		n, err = p.log.put(b)
		p.unsaved += max(0, int(p.log.size-before))
	}
	if err != nil {
		p.owner.writeErrors.Add(1)
		p.pending = slices.Clone(b[n:])
		return false, err
	}
	p.pending = nil
	_ = p.owner.hooks.step("logpump/written")
	return true, nil
}

func (p *pump) count(b batch) {
	p.owner.entries.Add(uint64(b.entries))
	p.owner.badLines.Add(uint64(b.garbage))
	p.owner.gaps.Add(uint64(b.gaps))
	p.owner.dropped.Add(uint64(b.lost))
}

// note logs when trouble begins, and when it ends.
func (p *pump) note(err error) {
	switch {
	case err != nil && p.trouble == nil:
		klog.ErrorS(err, "Container log is stuck; it goes on where it is when the cause is gone", "container", p.id)
	case err == nil && p.trouble != nil:
		klog.InfoS("Container log goes on", "container", p.id)
	}
	if err != nil && p.retryAt.IsZero() {
		p.retryAt = time.Now().Add(retryDelay)
	}
	p.trouble = err
}

// save saves the pair of places. While bytes are pending there is none, and the last one stays good.
func (p *pump) save() {
	if len(p.pending) > 0 || !p.dirty {
		return
	}
	if err := p.trySave(false); err != nil {
		p.owner.saveErrors.Add(1)
		klog.ErrorS(err, "Cannot save log position", "container", p.id)
	}
	p.dirty, p.unsaved = false, 0
}

func (p *pump) trySave(finished bool) error {
	pos := &position{Finished: finished}
	if p.log.file != nil {
		pos.Log = logOffset{File: p.log.id, Offset: p.log.size}
	}
	if err := p.source.fill(pos); err != nil {
		return err
	}
	if err := p.owner.hooks.step("logpump/save"); err != nil {
		return err
	}
	if err := savePosition(p.path, pos); err != nil {
		return err
	}
	p.savedIn = pos.Log.File
	return p.owner.hooks.step("logpump/saved")
}

func (p *pump) answer(c call) {
	switch c.kind {
	case reopenCall:
		c.answer <- p.reopen()
	case finishCall:
		p.finished = append(p.finished, c.answer)
		p.source.finish()
	}
}

// reopen changes to the file at the path, between two entries.
func (p *pump) reopen() error {
	// What a crash left to be compared is in the old file, or in the one after it, and must not come again in the new one.
	for p.log.held > 0 {
		progress, err := p.step()
		if err != nil {
			return fmt.Errorf("what was written before a crash is still compared: %w: %w", err, errdefs.ErrUnavailable)
		}
		if !progress {
			break // the source has it not yet, or not any more
		}
	}
	if len(p.pending) > 0 {
		// Some of it is in the old file and some would be in the new one, and no pair of places could say so.
		if _, err := p.put(p.pending); err != nil {
			return fmt.Errorf("it cannot be written: %w: %w", err, errdefs.ErrResourceExhausted)
		}
	}
	// A crash right after it must find what is in the old file, which nothing at the path tells of any more.
	p.save()
	if p.log.file != nil && p.savedIn != p.log.id {
		// The position tells of a log before this one. From there a crash would find the newest, and nothing of this.
		if err := p.trySave(false); err != nil {
			return fmt.Errorf("its position cannot be saved: %w: %w", err, errdefs.ErrResourceExhausted)
		}
	}
	if p.log.held > 0 {
		return p.log.leave()
	}
	if err := p.log.reopen(); err != nil {
		return err
	}
	_ = p.owner.hooks.step("logpump/reopened")
	p.mark()
	p.save()
	return nil
}

// setAside goes on in a new file after the log has been given its overflow's name, where a crash finds what the position
// tells of.
func (p *pump) setAside() error {
	if err := crilog.SetAside(p.log.root, p.log.path, p.log.file); err != nil {
		return err
	}
	_ = p.owner.hooks.step("logpump/set aside")
	err := p.log.reopen()
	_ = p.owner.hooks.step("logpump/begun anew")
	return err
}

// end saves the position of a container that will write nothing more.
func (p *pump) end() {
	err := p.trySave(true)
	if err != nil {
		p.owner.saveErrors.Add(1)
	}
	for _, answer := range p.finished {
		answer <- err
	}
}
