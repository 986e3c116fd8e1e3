package serve

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/crilog"
	"crishim/engine/native/monitor"
	"crishim/internal/failpoint"
)

// openTimeout and closeTimeout bound the waits for a log's disk that hangs: frozen, or of an NFS server that is away. What was not done
// by then is done when the disk answers. Tests lower openTimeout.
var openTimeout = 10 * time.Second

const closeTimeout = 2 * time.Second

// output takes what a container writes to its log and its attached clients. Neither a full disk nor a slow client holds
// the container up.
type output struct {
	log *crilog.Writer // nil: no log
	hub hub

	pumps sync.WaitGroup
	ended chan struct{} // closed when all was read
	files []*os.File
}

func newOutput(args *monitor.CreateArgs) (*output, error) {
	o := &output{ended: make(chan struct{})}
	if args.LogPath == "" {
		return o, nil
	}
	err := failpoint.Around("monitor.log.open", func() (err error) { o.log, err = openLog(args); return err })
	if err != nil {
		o.closeLog()
		return nil, err
	}
	return o, nil
}

// openLog opens the log; ErrUnavailable where its disk does not answer.
func openLog(args *monitor.CreateArgs) (*crilog.Writer, error) {
	type result struct {
		log *crilog.Writer
		err error
	}
	opened := make(chan result, 1)
	go func() {
		log, err := crilog.Open(args.LogRoot, args.LogPath, args.LogMaxSize)
		opened <- result{log, err}
	}()
	timeout := time.NewTimer(openTimeout)
	defer timeout.Stop()
	select {
	case r := <-opened:
		return r.log, r.err
	case <-timeout.C:
		go func() {
			if r := <-opened; r.err == nil {
				_ = r.log.Close()
			}
		}()
		return nil, fmt.Errorf("open log %s: its disk does not answer: %w", args.LogPath, errdefs.ErrUnavailable)
	}
}

// run reads the pipes until they end.
func (o *output) run(stdout, stderr *os.File) {
	o.files = []*os.File{stdout, stderr}
	o.pumps.Go(func() { o.copy(crilog.Stdout, stdout) })
	o.pumps.Go(func() { o.copy(crilog.Stderr, stderr) })
	o.finish()
}

// runTerminal reads the terminal until the container's process is dead and all is read.
func (o *output) runTerminal(master *os.File, dead <-chan struct{}) {
	o.files = []*os.File{master}
	o.pumps.Go(func() {
		r := io.TeeReader(&terminalReader{master, dead}, o.hub.writer(crilog.Stdout))
		if o.log != nil {
			_ = o.log.CopyTerminal(r)
		}
		_, _ = io.Copy(io.Discard, r)
	})
	o.finish()
}

func (o *output) finish() {
	go func() {
		o.pumps.Wait()
		o.hub.close()
		monitor.CloseFiles(o.files)
		close(o.ended)
	}()
}

func (o *output) copy(stream crilog.Stream, pipe *os.File) {
	r := io.TeeReader(pipe, o.hub.writer(stream))
	if o.log != nil {
		_ = o.log.Copy(stream, r)
	}
	_, _ = io.Copy(io.Discard, r)
}

// drain waits until all is read, at most for timeout: then what comes later, from processes outside the container, is
// still read.
func (o *output) drain(timeout time.Duration) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-o.ended:
	case <-timer.C:
	}
}

func (o *output) reopen() error {
	if o.log == nil {
		return nil
	}
	return o.log.Reopen()
}

// closeLog is for a container that is deleted, or was never made: what still comes is dropped. A disk that hangs keeps the
// container from being deleted no longer than for closeTimeout: what is being written is completed when it answers.
func (o *output) closeLog() {
	monitor.CloseFiles(o.files)
	if o.log == nil {
		return
	}
	closed := make(chan struct{})
	go func() {
		_ = o.log.Close()
		close(closed)
	}()
	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	select {
	case <-closed:
	case <-timeout.C:
		fmt.Fprintln(os.Stderr, "a log stays open until its disk answers, which hangs")
	}
}

func (o *output) attached() int { return o.hub.len() }

func (o *output) logState() monitor.LogState {
	if o.log == nil {
		return monitor.LogState{}
	}
	stats := o.log.Stats()
	return monitor.LogState{Bytes: stats.Bytes, WriteErrors: stats.WriteErrors, DroppedBytes: stats.DroppedBytes}
}

// terminalReader reads a terminal's master. EIO says that nobody has the terminal open, which is its end only where no
// process is left to open it again (a getty does).
type terminalReader struct {
	master *os.File
	dead   <-chan struct{}
}

func (t *terminalReader) Read(p []byte) (int, error) {
	for {
		n, err := t.master.Read(p)
		if n > 0 || !errors.Is(err, unix.EIO) {
			return n, err
		}
		select {
		case <-t.dead:
			return 0, io.EOF
		case <-time.After(retry):
		}
	}
}
