//go:build cgo

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// libcontainer joins a container's namespaces by the number of its first process alone. While the output of one that has ended
// is still awaited, which a process elsewhere prolongs that holds it open, the number may be another's: here one of the host's.
//
// Rows: R16 (part)
func TestAnExecJoinsNoProcessThatHasTheNumberOfADeadOne(t *testing.T) {
	p := newPod(t)
	state := p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	held, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", state.PID), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	outside := filepath.Join(p.base, "outside")
	if err := os.WriteFile(outside, []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(state.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its number is free", func() bool { return errors.Is(unix.Kill(state.PID, 0), unix.ESRCH) })
	startAs(t, state.PID)
	out, exited, err := p.exec(within(t), "a", p.process("/bin/cat", outside))
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an exec in a container that has ended: %q, %+v, %v", out, exited, err)
	}
}

// startAs starts a process of a number that is free.
func startAs(t *testing.T, pid int) {
	t.Helper()
	for range 100 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Skip(err)
		}
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		if cmd.Process.Pid == pid {
			return
		}
	}
	t.Skip("others were given the number")
}
