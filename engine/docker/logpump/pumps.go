// Package logpump owns the way of a container's output from where Docker keeps it into its CRI log, each byte exactly once.
//
// A caller makes one Pumps with a folder for positions. It calls Start for every container that runs or has run since its
// last Finish, Reopen when the kubelet has renamed the log, Finish when the container has exited, and Forget when it is
// removed. All calls may be repeated; calls on one id are ordered by the caller. Where the operator wants dockershim's
// symlinks instead, Link and Unlink make and remove them.
//
// A disk may hang (frozen, or an NFS server that is away), and whoever touches a log on it with it: that is a pump's own goroutine,
// and Start, Link, Unlink and TakeOver, which the caller does not wait for without a bound.
//
// Exactly once rests on three things. Rendering is pure, so the same entries always give the same bytes. The saved position
// is a pair: a place in Docker's log and the place in the CRI log that holds everything before it and nothing else. And
// after a crash the CRI log itself says how much was written since: what it holds beyond its place is compared with what
// the source gives again, and passed over. So neither a write nor a position needs to be synced, a position may be old, and
// an entry torn by the crash gets just its missing bytes.
//
// Docker's file is the buffer: while the log cannot be written nothing is lost until Docker's own rotation drops it. Where
// that happens one line of the log says so.
package logpump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"crishim/internal/atomicfile"
	"crishim/internal/failpoint"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

// Options of New.
type Options struct {
	// Dir keeps the positions, one small file a container. It must survive a reboot as the logs do.
	Dir string
	// MaxSize (bytes) bounds each log: one that has so much is set aside (crilog.SetAside) and a new one begun. It may get as
	// much longer as is read at once, which is some hundred KiB. 0 is no bound.
	MaxSize int64
}

// Source opens a container's output through the Engine API: the log, followed, of both streams, with time stamps, from
// since on (all of it for the zero time).
type Source func(ctx context.Context, since time.Time) (io.ReadCloser, error)

// Container says what to pump where.
type Container struct {
	ID string
	// JSONPath is Docker's json-file (LogPath of a container inspect); it may be made later, its folder not. "" with other drivers.
	JSONPath string
	// Source is used where JSONPath is "" or its folder is not on this file system.
	Source Source
	// LogPath is the CRI log, LogRoot the trusted folder above it: below it no symlink is followed (crilog.OpenFile).
	LogPath string
	LogRoot string
	// TTY says that the container has a terminal.
	TTY bool
	// Since leaves out what is older, where neither a position nor entries in the log say where to go on. Zero leaves out nothing.
	Since time.Time
}

// Stats counts over all containers since New.
type Stats struct {
	// Bytes were written to CRI logs; Entries were read from Docker.
	Bytes   uint64
	Entries uint64
	// Gaps counts the places where Docker may have dropped output before it was read, DroppedBytes the bytes of Docker's
	// files where they are known.
	Gaps         uint64
	DroppedBytes uint64
	// WriteErrors are failed attempts to write a log (nothing is lost by one), ReadErrors to read Docker's, SaveErrors to
	// save a position; BadLines in Docker's files were no entries.
	WriteErrors uint64
	ReadErrors  uint64
	SaveErrors  uint64
	BadLines    uint64
}

// Pumps pumps the logs of many containers. Its methods may be called at once from many goroutines.
type Pumps struct {
	dir     string
	maxSize int64
	notify  *notifier
	hooks   hooks
	// saveBytes is the constant but in tests.
	saveBytes int
	cancel    context.CancelFunc
	// sources is the context of calls of a Source; New's, ended by Close.
	sources context.Context

	// closeLimit is the constant but in tests.
	closeLimit time.Duration

	mu     sync.Mutex
	pumps  map[string]*pump
	ending map[string]*ending
	closed bool

	bytes, entries, gaps, dropped, writeErrors, readErrors, saveErrors, badLines atomic.Uint64
}

// ending is a pump that is forgotten and may still be in a write that hangs: until it is over, nobody else writes to its log.
type ending struct {
	logPath string
	over    chan struct{} // closed when err is set
	err     error
}

// closeLimit bounds the wait of Close for pumps whose disk hangs.
const closeLimit = 5 * time.Second

// hooks are where tests fail or end a pump.
type hooks struct {
	write func(*os.File, []byte) (int, error)
	step  func(name string) error
}

// New makes the folder where it is missing. The context is passed on to each Source; Close ends everything.
func New(ctx context.Context, o Options) (*Pumps, error) {
	return newPumps(ctx, o, hooks{write: (*os.File).Write, step: failpoint.Hit})
}

func newPumps(ctx context.Context, o Options, h hooks) (*Pumps, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of log positions: %w", err)
	}
	ps := &Pumps{dir: o.Dir, maxSize: o.MaxSize, notify: newNotifier(), hooks: h, saveBytes: saveBytes, closeLimit: closeLimit, pumps: map[string]*pump{}, ending: map[string]*ending{}}
	ps.sources, ps.cancel = context.WithCancel(ctx)
	return ps, nil
}

// Start begins to pump, or goes on where the position says. OK when it is being pumped already. The log exists when it
// returns; ErrInvalidArgument where its path is not safe, ErrNotFound where there is nothing to read from. While the log's disk
// hangs it does not return.
func (ps *Pumps) Start(c Container) error {
	path, err := positionPath(ps.dir, c.ID)
	if err != nil {
		return err
	}
	if ps.running(c.ID) != nil {
		return nil
	}
	ps.awaitEnd(c)
	p, err := ps.newPump(c, path)
	if err != nil {
		return fmt.Errorf("log of container %s: %w", c.ID, err)
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed {
		p.close()
		return fmt.Errorf("log of container %s: shutting down: %w", c.ID, errdefs.ErrUnavailable)
	}
	if old := ps.pumps[c.ID]; old != nil && !old.ended() {
		p.close()
		return nil
	}
	ps.pumps[c.ID] = p
	go p.run()
	return nil
}

// Reopen goes on in a new file at the log's path (CRI ReopenContainerLog). When it returns, everything that was read is
// written and the old file gets nothing more. On an error the old file stays in use: ErrFailedPrecondition where the
// container is not pumped, ErrResourceExhausted while the log cannot be written.
func (ps *Pumps) Reopen(ctx context.Context, id string) error {
	p := ps.running(id)
	if p == nil {
		return fmt.Errorf("reopen log of container %s: no log is being written: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err := p.call(ctx, reopenCall); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", id, err)
	}
	return nil
}

// Finish writes what is left of an exited container's output, saves the position and ends the pump. It is called after
// Docker has said that the container exited ("die"), because dockerd has then written its last line. When ctx ends first
// its error is returned, and the pump goes on by itself and ends when it is done. OK when it is not being pumped.
func (ps *Pumps) Finish(ctx context.Context, id string) error {
	p := ps.running(id)
	if p == nil {
		return nil
	}
	if err := p.call(ctx, finishCall); err != nil {
		return fmt.Errorf("finish log of container %s: %w", id, err)
	}
	select {
	case <-p.done: // its files are closed
	case <-ctx.Done():
		return fmt.Errorf("finish log of container %s: %w", id, ctx.Err())
	}
	ps.drop(id, p)
	return nil
}

// Forget ends the pump where it is and removes the position; the logs stay. When ctx ends first, because the log's disk hangs,
// its error is returned, and that is done when the disk answers. OK when there is none.
func (ps *Pumps) Forget(ctx context.Context, id string) error {
	path, err := positionPath(ps.dir, id)
	if err != nil {
		return err
	}
	ps.mu.Lock()
	e, p := ps.ending[id], ps.pumps[id]
	if e == nil && p != nil {
		e = &ending{logPath: p.log.path, over: make(chan struct{})}
		ps.ending[id] = e
		delete(ps.pumps, id)
		p.last.Store(true)
		go ps.end(id, p, e)
	}
	ps.mu.Unlock()
	if e == nil {
		return removePosition(path)
	}
	select {
	case <-e.over:
		return e.err
	case <-ctx.Done():
		return fmt.Errorf("forget log of container %s: %w", id, ctx.Err())
	}
}

func (ps *Pumps) end(id string, p *pump, e *ending) {
	p.halt()
	e.err = removePosition(p.path)
	ps.mu.Lock()
	delete(ps.ending, id)
	ps.mu.Unlock()
	close(e.over)
}

// awaitEnd returns when no pump that is forgotten writes to the container's log.
func (ps *Pumps) awaitEnd(c Container) {
	for {
		var over chan struct{}
		ps.mu.Lock()
		for id, e := range ps.ending {
			if id == c.ID || e.logPath == c.LogPath {
				over = e.over
			}
		}
		ps.mu.Unlock()
		if over == nil {
			return
		}
		<-over
	}
}

// Known lists the ids that have a position, or a part of one, so that the caller can forget containers that were removed behind
// its back.
func (ps *Pumps) Known() ([]string, error) {
	entries, err := os.ReadDir(ps.dir)
	if err != nil {
		return nil, fmt.Errorf("list log positions: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		if id, ok := strings.CutSuffix(entry.Name(), positionSuffix); ok {
			ids = append(ids, strings.TrimPrefix(id, atomicfile.TempPrefix))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Knows says whether the id has a position.
func (ps *Pumps) Knows(id string) bool {
	path, err := positionPath(ps.dir, id)
	if err != nil {
		return false
	}
	_, err = os.Stat(path)
	return err == nil
}

// Stats returns the counters.
func (ps *Pumps) Stats() Stats {
	return Stats{
		Bytes: ps.bytes.Load(), Entries: ps.entries.Load(), Gaps: ps.gaps.Load(), DroppedBytes: ps.dropped.Load(),
		WriteErrors: ps.writeErrors.Load(), ReadErrors: ps.readErrors.Load(), SaveErrors: ps.saveErrors.Load(),
		BadLines: ps.badLines.Load(),
	}
}

// Close saves the positions and ends every pump. One whose disk hangs is not waited for long, and does so when the disk answers.
func (ps *Pumps) Close() {
	ps.mu.Lock()
	ps.closed = true
	pumps := ps.pumps
	ps.pumps = map[string]*pump{}
	ps.mu.Unlock()
	var all sync.WaitGroup
	for _, p := range pumps {
		all.Go(p.halt)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		all.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(ps.closeLimit):
		klog.InfoS("Container logs are left in the middle of a write: their disk does not answer")
	}
	ps.cancel()
	ps.notify.close()
}

func (ps *Pumps) running(id string) *pump {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.pumps[id]; p != nil && !p.ended() {
		return p
	}
	return nil
}

func (ps *Pumps) drop(id string, p *pump) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.pumps[id] == p {
		delete(ps.pumps, id)
	}
}

func (ps *Pumps) write(f *os.File, b []byte) (int, error) {
	n, err := ps.hooks.write(f, b)
	ps.bytes.Add(uint64(n))
	return n, err
}

// newPump opens both ends at the position.
func (ps *Pumps) newPump(c Container, path string) (*pump, error) {
	pos, err := loadPosition(path)
	if err != nil {
		return nil, err
	}
	file, err := readsFile(c)
	if err != nil {
		return nil, err
	}
	if pos != nil && file != (pos.API == nil) {
		pos = nil // the other source's place says nothing here
	}
	log, from, intact, err := openLog(c.LogRoot, c.LogPath, ps.write, pos)
	if err != nil {
		return nil, err
	}
	p := &pump{
		owner: ps, id: c.ID, path: path, log: log, watched: true,
		wake: make(chan struct{}, 1), calls: make(chan call), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if pos != nil {
		p.savedIn = pos.Log.File
	}
	render := renderer{tty: c.TTY, from: from}
	switch {
	case intact:
		render.from = pos.From
	case c.Since.After(from):
		render.from = c.Since
		fallthrough
	default:
		pos = &position{}
	}
	if !file {
		p.source = newAPISource(ps.sources, c.Source, render, pos.API, p.wake, func(err error) {
			ps.readErrors.Add(1)
			klog.ErrorS(err, "Cannot read a container's log", "container", c.ID)
		})
		return p, nil
	}
	p.unwatch = ps.notify.watch(filepath.Dir(c.JSONPath), p.wake)
	p.watched = p.unwatch != nil
	p.source = newJSONSource(c.JSONPath, render, pos.JSON)
	if info, err := os.Stat(c.JSONPath); err == nil && info.Size() > 0 && *pos == (position{}) && log.size+log.held == 0 {
		// A long past is carried over. From here on a crash finds a pair, and need not go by times, which Docker's entries
		// have not always in order.
		if err := p.trySave(false); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// readsFile chooses between Docker's file and the API.
func readsFile(c Container) (bool, error) {
	if c.JSONPath != "" {
		_, err := os.Stat(filepath.Dir(c.JSONPath))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, os.ErrNotExist) || c.Source == nil {
			return false, fmt.Errorf("read Docker's log: %w: %w", err, errdefs.ErrNotFound)
		}
	}
	if c.Source == nil {
		return false, fmt.Errorf("its log driver has no file and no stream to read: %w", errdefs.ErrNotFound)
	}
	return false, nil
}
