package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/internal/process"
	"crishim/internal/seal"
)

// Client drives one pod's monitor. Its methods may be called at once; each is one connection, so that a slow one holds
// nothing up, and giving up its context ends it. When the monitor is dead they fail with ErrUnavailable.
type Client struct {
	dir   *os.File
	watch *process.Watch
	hello Hello
	done  chan struct{}
	once  sync.Once
}

// Connect opens the monitor whose run directory is dir and checks that it is the very process that made the record
// there. ErrNotFound where there is no record, ErrUnavailable where the process is dead: then its containers have no
// monitor any more.
func Connect(ctx context.Context, dir string) (*Client, error) {
	record, err := ReadRecord(dir)
	if err != nil {
		return nil, err
	}
	return ConnectTo(ctx, dir, record)
}

// ConnectTo is Connect where the process is known otherwise.
func ConnectTo(ctx context.Context, dir string, record Record) (*Client, error) {
	watch, err := process.WatchExit(record.PID, record.StartTicks)
	if errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("monitor %d of pod %s is dead: %w", record.PID, record.Pod, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("watch monitor %d of pod %s: %w", record.PID, record.Pod, err)
	}
	return newClient(ctx, dir, watch, nil)
}

// ReadRecord says which process is the monitor of dir. ErrNotFound where there is no record.
func ReadRecord(dir string) (Record, error) {
	var record Record
	data, err := os.ReadFile(filepath.Join(dir, RecordName))
	if errors.Is(err, os.ErrNotExist) {
		return record, fmt.Errorf("no monitor in %s: %w", dir, errdefs.ErrNotFound)
	}
	if err != nil {
		return record, fmt.Errorf("read a monitor's record: %w", err)
	}
	if record, err = DecodeRecord(data); err != nil {
		return record, fmt.Errorf("the monitor's record in %s is damaged: %w: %w", dir, err, errdefs.ErrDataLoss)
	}
	return record, nil
}

// DecodeRecord reads the content of RecordName.
func DecodeRecord(data []byte) (Record, error) {
	var record Record
	if err := seal.Unmarshal(data, &record); err != nil {
		return Record{}, err
	}
	if record.PID <= 0 {
		return Record{}, fmt.Errorf("it names process %d", record.PID)
	}
	return record, nil
}

// newClient owns watch. Reap is called once the process has ended; with it the process is a child, which is ended where it does not
// answer.
func newClient(ctx context.Context, dir string, watch *process.Watch, reap func()) (*Client, error) {
	c := &Client{watch: watch, done: make(chan struct{})}
	go func() {
		if watch.Wait() != nil {
			return // closed
		}
		if reap != nil {
			reap()
		}
		close(c.done)
	}()
	if err := c.greet(ctx, dir); err != nil {
		if reap != nil {
			_ = c.KillMonitor() // not by its number, which may be another's once it is reaped
			<-c.done
		}
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) greet(ctx context.Context, dir string) (err error) {
	if c.dir, err = os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open a monitor's run directory: %w", err)
	}
	err = c.call(ctx, Request{Op: OpHello}, nil, &c.hello)
	if err == nil && c.hello.MinVersion > Version {
		err = fmt.Errorf("the monitor in %s speaks protocol %d and later, this program %d: %w", dir, c.hello.MinVersion, Version, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Close lets go of the monitor, which goes on.
func (c *Client) Close() {
	c.once.Do(func() {
		_ = c.dir.Close()
		c.watch.Close()
	})
}

// Done is closed when the monitor's process has ended. It is not closed by Close.
func (c *Client) Done() <-chan struct{} { return c.done }

// Hello is what the monitor said of itself.
func (c *Client) Hello() Hello { return c.hello }

// PID is the monitor's process.
func (c *Client) PID() int { return c.watch.PID() }

// KillMonitor ends the monitor's process at once, as a last resort; its containers run on without one.
func (c *Client) KillMonitor() error {
	if err := c.watch.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill monitor %d: %w", c.PID(), err)
	}
	return nil
}

// link is a connection that is kept to a context's life: when that ends all its operations fail.
type link struct {
	Conn
	// unbind leaves it alone from then on; false where the context has ended before.
	unbind func() bool
}

func (l *link) stop() {
	l.unbind()
	_ = l.Close()
}

// busyPause is between tries to connect to a monitor that has more callers waiting than its socket takes: it is busy, or stopped.
const busyPause = 20 * time.Millisecond

// dial connects. The caller calls stop.
func (c *Client) dial(ctx context.Context) (*link, error) {
	var conn Conn
	for {
		err := c.connect(ctx, &conn)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil, c.explain(ctx, err)
		}
		select {
		case <-ctx.Done():
		case <-c.done:
			return nil, c.explain(ctx, err)
		case <-time.After(busyPause):
			continue
		}
		return nil, ctx.Err()
	}
	// A connection from before the monitor took the socket over has this process at its other end, which made it.
	if cred, err := conn.PeerCred(); err != nil || int(cred.Pid) != c.PID() && int(cred.Pid) != os.Getpid() {
		_ = conn.Close()
		return nil, fmt.Errorf("another process than monitor %d listens on its socket: %w", c.PID(), errdefs.ErrUnavailable)
	}
	return &link{conn, context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })}, nil
}

func (c *Client) connect(ctx context.Context, conn *Conn) error {
	// By way of the directory's descriptor the path is short enough for a socket's, whatever the directory is.
	raw, err := c.dir.SyscallConn()
	if err != nil {
		return err
	}
	var unixConn net.Conn
	cerr := raw.Control(func(fd uintptr) {
		unixConn, err = new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", fd, SocketName))
	})
	if err = errors.Join(cerr, err); err != nil {
		return err
	}
	conn.UnixConn = unixConn.(*net.UnixConn)
	return nil
}

// explain finds the cause of a failed operation of the connection. It is ErrUnavailable where the monitor may have ended, and
// ErrResourceExhausted where this process is at a limit of the node: that says nothing of the monitor.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var class error = errdefs.ErrUnavailable
	if process.Starved(err) {
		class = errdefs.ErrResourceExhausted
	}
	return fmt.Errorf("monitor %d: %w: %w", c.PID(), err, class)
}

// begin sends a request.
func (c *Client) begin(ctx context.Context, request Request, args any, files ...*os.File) (*link, error) {
	request.Version = Version
	if args != nil {
		data, err := json.Marshal(args)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", request.Op, err)
		}
		request.Args = data
	}
	l, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.Send(request, files...); err != nil {
		l.stop()
		return nil, c.explain(ctx, err)
	}
	return l, nil
}

// next receives one response.
func (c *Client) next(ctx context.Context, conn Conn, result any) ([]*os.File, error) {
	var response Response
	files, err := conn.Receive(&response)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if response.Error != nil {
		CloseFiles(files)
		return nil, response.Error.Err()
	}
	if result != nil {
		if err := json.Unmarshal(response.Result, result); err != nil {
			CloseFiles(files)
			return nil, fmt.Errorf("monitor %d sent an answer of another form: %w: %w", c.PID(), err, errdefs.ErrInternal)
		}
	}
	return files, nil
}

// call is a request with one response.
func (c *Client) call(ctx context.Context, request Request, args, result any) error {
	l, err := c.begin(ctx, request, args)
	if err != nil {
		return err
	}
	defer l.stop()
	files, err := c.next(ctx, l.Conn, result)
	CloseFiles(files)
	return err
}
