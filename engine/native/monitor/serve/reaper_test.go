package serve

import (
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// A specification that names a user namespace is checked by a process inside it, which nobody else may reap.
func TestHelpersOfAPlanAreNotTakenForOrphans(t *testing.T) {
	f := newFixture(t, nil)
	f.runtime.plan = func() error {
		helper := exec.Command("/bin/true")
		if err := helper.Start(); err != nil {
			return err
		}
		if err := unix.Waitid(unix.P_PID, helper.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			return fmt.Errorf("wait for the helper to exit: %w", err)
		}
		f.reaper.reap()
		return helper.Wait()
	}
	f.run("a", f.args("a", "/bin/sh", "-c", "exit 5"))
	if exit := must(f.Wait(f.ctx(), "a")); exit.Code != 5 {
		t.Fatalf("exit %+v", exit)
	}
}
