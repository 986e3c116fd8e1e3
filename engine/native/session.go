package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine/native/monitor"
	"crishim/internal/process"
)

// killSession ends what a dead monitor left in its session: hooks, OCI runtimes and CRIU, which run beside it in the monitors'
// cgroup and may hang for ever. The pid of a session's leader is given to nobody else while the session has a process, so
// these are known by it however long ago the monitor died; what made a session of its own means to stay.
func (e *Engine) killSession(ctx context.Context, m monitor.Record) error {
	if m.PID <= 0 {
		return nil
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := e.cgroups.Processes(e.cgroups.Monitors())
		if err != nil {
			return fmt.Errorf("look for what monitor %d left running: %w", m.PID, err)
		}
		left := 0
		for _, pid := range pids {
			if killMember(pid, m) {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		klog.V(2).InfoS("Killed what a monitor left running beside it", "monitor", m.PID, "processes", left)
		select {
		case <-ctx.Done():
			return fmt.Errorf("the %d processes that monitor %d left were killed and have not ended: %w", left, m.PID, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// killMember kills pid if it is of the session of monitor m, which is dead. It says whether it is, or may be.
func killMember(pid int, m monitor.Record) bool {
	handle, err := process.Open(pid, 0)
	if err != nil {
		return !errors.Is(err, os.ErrProcessDone) // it may be, and is asked again
	}
	defer handle.Close()
	// Asked while the process is pinned: as long as it lives, its session's number has not changed hands.
	if sid, err := unix.Getsid(pid); err != nil || sid != m.PID || !handle.Alive() {
		return false
	}
	switch now, err := process.StartTicks(m.PID); {
	case process.Starved(err):
		return true // it may be another monitor's; asked again
	case err == nil && now != m.StartTicks:
		return false // the number is another monitor's now
	}
	_ = handle.Signal(unix.SIGKILL)
	return true
}
