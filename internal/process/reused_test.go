package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim/internal/rowsize"
)

// Where there are few process ids each is soon another's: what is remembered of the one before, its start time or an open
// handle, never leads to the newcomer.
//
// Rows: R16
func TestProcessIDsThatAreReused(t *testing.T) {
	const inside, limit = "CRISHIM_TEST_PIDS", "/proc/sys/kernel/pid_max"
	if os.Getenv(inside) == "" {
		if os.Geteuid() != 0 {
			t.Skip("a namespace of process ids needs root")
		}
		before, err := os.ReadFile(limit)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestProcessIDsThatAreReused$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if after, _ := os.ReadFile(limit); string(after) != string(before) {
			_ = os.WriteFile(limit, before, 0)
			t.Fatalf("the host's limit was %q and is %q", before, after)
		}
		switch {
		case err != nil:
			t.Fatalf("%v\n%s", err, out)
		case strings.Contains(string(out), "--- SKIP"):
			t.Skipf("%s", out)
		}
		t.Logf("%s", out)
		return
	}
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, "")); err != nil {
		t.Fatal(err)
	}
	var kernel unix.Utsname
	var major, minor int
	if err := unix.Uname(&kernel); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(kernel.Release[:]), "%d.%d", &major, &minor); err != nil || major < 6 || major == 6 && minor < 14 {
		t.Skip("before Linux 6.14 the limit of process ids is the host's")
	}
	if err := os.WriteFile(limit, []byte("400"), 0); err != nil {
		t.Fatal(err)
	}
	exits := rowsize.Of(2000, 50_000)
	type known struct {
		ticks  uint64
		handle *Handle
	}
	before, met := map[int]known{}, 0
	for range exits {
		cmd := exec.Command("cat")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		ticks, err := StartTicks(pid)
		if err != nil {
			t.Fatal(err)
		}
		if old, ok := before[pid]; ok && old.ticks != ticks {
			met++
			if err := old.handle.Signal(unix.SIGKILL); !errors.Is(err, os.ErrProcessDone) || old.handle.Alive() {
				t.Errorf("the handle of the process before: %v, alive %v", err, old.handle.Alive())
			}
			if h, err := Open(pid, old.ticks); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("the process before was opened: %v", err)
				h.Close()
			}
			if w, err := WatchExit(pid, old.ticks); err == nil {
				if err := w.Signal(unix.SIGKILL); w.Alive() || err == nil {
					t.Errorf("the process before is watched, and takes signals: %v", err)
				}
				w.Close()
			}
			if Alive(pid, old.ticks) || !Gone(pid, old.ticks) {
				t.Error("the process before is said to live")
			}
			old.handle.Close()
			delete(before, pid)
		}
		if _, again := before[pid]; !again {
			h, err := Open(pid, ticks)
			if err != nil {
				t.Fatal(err)
			}
			before[pid] = known{ticks, h}
		}
		if _, err := io.WriteString(stdin, "unharmed"); err != nil {
			t.Error(err)
		}
		_ = stdin.Close()
		if out, err := io.ReadAll(stdout); string(out) != "unharmed" || err != nil {
			t.Errorf("the newcomer says %q, %v", out, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the newcomer: %v", err)
		}
	}
	if met < exits/2 {
		t.Errorf("only %d of %d were met again", met, exits)
	}
	t.Logf("%d of %d process ids were another's before", met, exits)
}
