package serve

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

// What ends an exec in the making together with its container's processes is told as the container's end, not as a command that
// cannot start, although the container's first process has not ended by then.
//
// Rows: R07 (part)
func TestAnExecThatDiesWithItsContainerDoesNotBlameItsCommand(t *testing.T) {
	died := &monitor.StartError{ExitCode: 128, Message: "procReady not received"}
	check := func(f *fixture) {
		t.Helper()
		f.run("a", f.args("a", "/bin/sleep", "1000"))
		_, err := f.Exec(f.ctx(), "a", []byte(`{"args":["/bin/true"]}`), monitor.Stdio{})
		var start *monitor.StartError
		if !errdefs.IsFailedPrecondition(err) || errors.As(err, &start) {
			t.Errorf("%v", err)
		}
	}
	t.Run("the kernel kills a PID namespace", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("making a PID namespace takes root")
		}
		f := newFixture(t, nil)
		f.runtime.cloneFlags = unix.CLONE_NEWPID
		f.runtime.exec = func(c *fakeContainer) error {
			joined, err := joinPIDs(c.PID())
			if err != nil {
				return err
			}
			// Until it is waited for the first process cannot end.
			t.Cleanup(func() { _ = joined.Wait() })
			if err := c.Signal(unix.SIGKILL); err != nil {
				t.Error(err)
			}
			if err := waitDead(joined.Process.Pid); err != nil {
				t.Error(err)
			}
			return died
		}
		check(f)
	})
	t.Run("it is asked to be killed", func(t *testing.T) {
		f := newFixture(t, nil)
		f.runtime.exec = func(c *fakeContainer) error {
			f.server.containers["a"].noteOutlived() // as a kill does, before it kills in any order
			return died
		}
		check(f)
	})
	t.Run("and of one that lives it does", func(t *testing.T) {
		f := newFixture(t, nil)
		f.runtime.exec = func(*fakeContainer) error { return died }
		f.run("a", f.args("a", "/bin/sleep", "1000"))
		_, err := f.Exec(f.ctx(), "a", []byte(`{"args":["/bin/true"]}`), monitor.Stdio{})
		if start := new(monitor.StartError); !errors.As(err, &start) || start.ExitCode != 128 {
			t.Errorf("%v", err)
		}
	})
}

// joinPIDs starts a process in the PID namespace of pid.
func joinPIDs(pid int) (*exec.Cmd, error) {
	cmd := exec.Command("/bin/sleep", "1000")
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		started <- func() error {
			namespace, err := os.Open("/proc/" + itoa(pid) + "/ns/pid")
			if err != nil {
				return err
			}
			defer func() { _ = namespace.Close() }()
			if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWPID); err != nil {
				return err
			}
			return cmd.Start()
		}()
	}()
	return cmd, <-started
}

// waitDead waits for the end of a child, which stays a zombie.
func waitDead(pid int) error {
	return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
}
