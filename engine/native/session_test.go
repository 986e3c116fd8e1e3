package native

import (
	"os/exec"
	"syscall"
	"testing"

	"crishim/engine/native/monitor"
	"crishim/internal/process"
	"crishim/internal/starving"
)

// The number of a dead monitor may be another process's by now, which only its start time tells. Without a descriptor to read that
// nobody is killed: it could be another pod's monitor, and it is asked again.
func TestASessionIsNotTakenForADeadMonitorsUnread(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	pid := cmd.Process.Pid
	ticks, err := process.StartTicks(pid)
	if err != nil {
		t.Fatal(err)
	}
	dead := monitor.Record{PID: pid, StartTicks: ticks - 1} // another process had the number then
	left := false
	starving.Opening(t, 0, 0, func() { left = killMember(pid, dead) })
	if !left {
		t.Error("it is taken for nobody of the session, unread")
	}
	if killMember(pid, dead) {
		t.Error("it is taken for one of the session, read")
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if by := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); by != syscall.SIGTERM {
		t.Errorf("another monitor's session was ended by %v", by)
	}
}
