package process

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Watch is one process, pinned as by Handle, whose end can be waited for without holding a thread. Any process will do,
// not only a child.
type Watch struct {
	pid  int
	file *os.File
	raw  syscall.RawConn
}

// WatchExit pins the process pid that started at startTicks (0: whatever runs there now). The error is
// os.ErrProcessDone when it is gone or another process has the pid; a zombie is still watched.
func WatchExit(pid int, startTicks uint64) (*Watch, error) {
	h, err := Open(pid, startTicks)
	if err != nil {
		return nil, err
	}
	// With O_NONBLOCK the descriptor goes into the runtime's poller.
	if err := unix.SetNonblock(h.fd, true); err != nil {
		h.Close()
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	w := &Watch{pid: pid, file: os.NewFile(uintptr(h.fd), "pidfd")}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	return w, nil
}

// Wait returns nil when the process has exited, reaped or not, and os.ErrClosed when the Watch was closed before.
func (w *Watch) Wait() error {
	return w.raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

// Alive says whether the process has not exited.
func (w *Watch) Alive() bool {
	alive := false
	_ = w.raw.Control(func(fd uintptr) { alive = !readable(int(fd)) })
	return alive
}

// Signal sends sig; os.ErrProcessDone when the process has exited.
func (w *Watch) Signal(sig unix.Signal) error {
	var err error
	if cerr := w.raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); cerr != nil {
		return cerr
	}
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// PID is the process's pid.
func (w *Watch) PID() int { return w.pid }

// Close drops the pin and ends a Wait.
func (w *Watch) Close() { _ = w.file.Close() }

func readable(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err != nil || n > 0
	}
}
