package serve

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

// terminalTimeout bounds the wait for the terminal's master, which was sent before the create returned.
const terminalTimeout = 10 * time.Second

// stdio has both ends of a container's standard streams.
type stdio struct {
	child Stdio
	// stdin is nil where it is /dev/null. With a terminal all are nil but console.
	stdin, stdout, stderr *os.File
	console               *net.UnixConn
}

func newStdio(plan Plan, args *monitor.CreateArgs) (_ *stdio, err error) {
	io := &stdio{}
	defer func() {
		if err != nil {
			io.closeChild()
			io.closeParent()
		}
	}()
	if plan.Terminal() {
		io.console, io.child.Console, err = consoleSocket()
		return io, err
	}
	if args.Stdin {
		if io.child.Stdin, io.stdin, err = os.Pipe(); err != nil {
			return nil, err
		}
	} else if io.child.Stdin, err = null(); err != nil {
		return nil, err
	}
	if io.stdout, io.child.Stdout, err = os.Pipe(); err != nil {
		return nil, err
	}
	if io.stderr, io.child.Stderr, err = os.Pipe(); err != nil {
		return nil, err
	}
	uid, gid := plan.Owner()
	return io, own(uid, gid, io.child.Stdin, io.child.Stdout, io.child.Stderr)
}

// own gives pipes to the container's root, so that a process in a user namespace can open /dev/stdout. Anything else
// that a client passes keeps its owner.
func own(uid, gid int, files ...*os.File) error {
	for _, file := range files {
		if file == nil {
			continue
		}
		info, err := file.Stat()
		if err != nil {
			return err
		}
		if info.Mode()&os.ModeNamedPipe == 0 {
			continue
		}
		if err := file.Chown(uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// consoleSocket is a pair by which a runtime sends a terminal's master.
func consoleSocket() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	child := os.NewFile(uintptr(fds[1]), "console")
	parent := os.NewFile(uintptr(fds[0]), "console")
	defer func() { _ = parent.Close() }()
	conn, err := net.FileConn(parent)
	if err != nil {
		_ = child.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), child, nil
}

// receiveTerminal takes the master out of the console socket, for use with the poller.
func (s *stdio) receiveTerminal() (*os.File, error) {
	return receiveTerminal(s.console)
}

func receiveTerminal(console *net.UnixConn) (*os.File, error) {
	defer func() { _ = console.Close() }()
	_ = console.SetDeadline(time.Now().Add(terminalTimeout))
	master, err := monitor.ReceiveFile(console)
	if err != nil {
		return nil, err
	}
	defer func() { _ = master.Close() }()
	return pollable(master)
}

// pollable is a duplicate of file in the runtime's poller, so that reads and writes hold no thread and can be given up.
func pollable(file *os.File) (*os.File, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	duplicate := -1
	if cerr := raw.Control(func(fd uintptr) { duplicate, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(duplicate, true); err != nil {
		_ = unix.Close(duplicate)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(duplicate), file.Name()), nil
}

func (s *stdio) closeChild() {
	monitor.CloseFiles([]*os.File{s.child.Stdin, s.child.Stdout, s.child.Stderr, s.child.Console})
}

func (s *stdio) closeParent() {
	monitor.CloseFiles([]*os.File{s.stdin, s.stdout, s.stderr})
	if s.console != nil {
		_ = s.console.Close()
	}
}
