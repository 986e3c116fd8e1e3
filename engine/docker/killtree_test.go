package docker

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/internal/process"
)

// The end of an exec is told when its process is gone from the container's ps, not while it is a zombie.
//
// Rows: S51 (part)
func TestKilledExecIsReapedWhenItsEndIsTold(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	pid := cmd.Process.Pid
	ticks, err := process.StartTicks(pid)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	go func() {
		killSession(t.Context(), pid, "") // every cgroup's name has the empty id
		close(told)
	}()
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-told:
		t.Error("the end was told of a zombie")
	case <-time.After(reapLimit / 5):
	}
	_ = cmd.Wait() // killed
	<-told
	if now, err := process.StartTicks(pid); err == nil && now == ticks {
		t.Error("it is still there")
	}
}
