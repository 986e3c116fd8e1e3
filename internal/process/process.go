// Package process names a process so that another with a recycled pid is never taken for it: pid plus start time,
// held by a pidfd.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Boot names this run of the machine's kernel, within which a pid and its start time name one process.
func Boot() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("learn the boot id: %w", err)
	}
	return string(bytes.TrimSpace(id)), nil
}

// StartTicks reads the start time of pid in clock ticks since boot: field 22 of /proc/PID/stat.
func StartTicks(pid int) (uint64, error) {
	_, ticks, err := stat(pid)
	return ticks, err
}

// stat reads the kernel's flags (PF_*) and the start time of pid, fields 9 and 22 of /proc/PID/stat.
func stat(pid int) (flags, startTicks uint64, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The command (field 2) may hold spaces and parentheses: count from the last ")".
	end := bytes.LastIndexByte(data, ')')
	fields := bytes.Fields(data[end+1:])
	if end < 0 || len(fields) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat has an unknown form", pid)
	}
	if flags, err = strconv.ParseUint(string(fields[6]), 10, 64); err != nil {
		return 0, 0, err
	}
	startTicks, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return flags, startTicks, err
}

// Handle is one process, pinned: signals through it never reach a later process with the same pid.
type Handle struct{ fd int }

// Open pins the process pid that started at startTicks (0: whatever runs there now). The error is os.ErrProcessDone
// when it is gone or another process has the pid.
func Open(pid int, startTicks uint64) (*Handle, error) {
	if pid <= 0 {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		// ENOENT, and EINVAL before Linux 6.15: the number is a thread's by now, so the process that had it is gone.
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return nil, os.ErrProcessDone
		}
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	h := &Handle{fd: fd}
	if startTicks != 0 {
		// Read after the pidfd is open: the pid cannot be recycled to another while a living process is pinned.
		switch ticks, err := StartTicks(pid); {
		case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH):
			h.Close()
			return nil, fmt.Errorf("start time of %d: %w", pid, err)
		case err != nil, ticks != startTicks:
			h.Close()
			return nil, os.ErrProcessDone
		}
	}
	return h, nil
}

// Alive says whether the process has not exited.
func (h *Handle) Alive() bool { return !readable(h.fd) }

// Signal sends sig; os.ErrProcessDone when the process has exited.
func (h *Handle) Signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(h.fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// Close drops the pin.
func (h *Handle) Close() { _ = unix.Close(h.fd) }

// Alive says whether the process pid that started at startTicks is known to run.
func Alive(pid int, startTicks uint64) bool {
	h, err := Open(pid, startTicks)
	if err != nil {
		return false
	}
	defer h.Close()
	return h.Alive()
}

// Gone says whether the process pid that started at startTicks is known to have ended. Where this process can ask nobody, at its
// limit of descriptors, it is neither gone nor alive.
func Gone(pid int, startTicks uint64) bool {
	h, err := Open(pid, startTicks)
	if err != nil {
		return errors.Is(err, os.ErrProcessDone)
	}
	defer h.Close()
	return !h.Alive()
}

// Ending says whether the process pid that started at startTicks is known to have ended or to be about to. The first process of a PID
// namespace has not ended (Gone) until the kernel has killed all others in it and each is reaped.
func Ending(pid int, startTicks uint64) bool {
	const exiting = 0x4 // PF_EXITING of the kernel's sched.h
	flags, ticks, err := stat(pid)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	return ticks != startTicks || flags&exiting != 0
}
