package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func shell(ctx context.Context, script string) (stdout, stderr string, err error) {
	out, said, err := runPlugin(ctx, "/bin/sh", []byte("its stdin"), os.Environ(), "-c", script)
	return string(out), string(said), err
}

func TestHowAProgramEnds(t *testing.T) {
	out, said, err := shell(t.Context(), "cat; echo a message >&2")
	if out != "its stdin" || said != "a message\n" || err != nil {
		t.Errorf("%q, %q, %v", out, said, err)
	}

	out, said, err = shell(t.Context(), "echo no; echo why >&2; exit 3")
	var ended *exec.ExitError
	if out != "" || said != "why\n" || !errors.As(err, &ended) || ended.ExitCode() != 3 || !strings.HasSuffix(err.Error(), "why") {
		t.Errorf("%q, %q, %v", out, said, err)
	}

	_, _, err = shell(t.Context(), "kill -9 $$")
	if !errors.As(err, &ended) || ended.ExitCode() != -1 {
		t.Errorf("killed: %v", err)
	}

	if _, _, err = runPlugin(t.Context(), "/nowhere/plugin", nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestWhatAProgramLeavesRunning(t *testing.T) {
	pid := func(out string) int {
		t.Helper()
		pid, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	// It holds the pipes of a program that ended well: it may go on, even after the caller has gone.
	ctx, cancel := context.WithCancel(t.Context())
	out, _, err := shell(ctx, "sleep 300 & echo $!")
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	left := pid(out)
	time.Sleep(2 * reapDelay)
	if err := unix.Kill(left, 0); err != nil {
		t.Errorf("what a program left running was ended: %v", err)
	}
	_ = unix.Kill(left, unix.SIGKILL)

	for what, run := range map[string]func(file string) error{
		"fails": func(file string) error {
			_, _, err := shell(t.Context(), "sleep 300 & echo $! >"+file+"; exit 1")
			return err
		},
		"hangs": func(file string) error {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				for ctx.Err() == nil {
					if data, err := os.ReadFile(file); err == nil && strings.HasSuffix(string(data), "\n") {
						cancel()
					}
					time.Sleep(time.Millisecond)
				}
			}()
			_, _, err := shell(ctx, "sleep 300 & echo $! >"+file+"; sleep 300")
			if !errors.Is(err, context.Canceled) {
				return fmt.Errorf("not that its time was up: %w", err)
			}
			return err
		},
	} {
		file := t.TempDir() + "/pid"
		if err := run(file); err == nil || strings.Contains(err.Error(), "not that") {
			t.Errorf("%s: %v", what, err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		left := pid(string(data))
		eventually(t, "what a program that "+what+" left is ended", 30*time.Second, func() bool { return !runs(left) })
	}
}

// Its input is more than a pipe takes, and what has left its process group holds that without reading it.
func TestAProgramThatFailsEndsThoughItsInputIsHeld(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	script := `exec 3<&0; setsid sh -c 'echo $$ >"$0"; exec sleep 300' "$0" >/dev/null 2>&1 & while [ ! -s "$0" ]; do sleep 0.01; done; exit 1`
	ended := make(chan error, 1)
	go func() {
		_, _, err := runPlugin(t.Context(), "/bin/sh", make([]byte, 1<<20), os.Environ(), "-c", script, file)
		ended <- err
	}()
	eventually(t, "the child runs", 30*time.Second, func() bool { data, err := os.ReadFile(file); return err == nil && len(data) > 1 })
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it did not fail")
		}
	case <-time.After(2 * time.Minute):
		t.Error("it is waited for as long as its child runs")
	}
}

func TestNoProgramStaysAZombie(t *testing.T) {
	for _, script := range []string{"exit 0", "exit 1"} {
		_, _, _ = shell(t.Context(), script)
	}
	eventually(t, "all are reaped", 30*time.Second, func() bool {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if stat := statOf(entry.Name()); len(stat) > 1 && stat[0] == "Z" && stat[1] == strconv.Itoa(os.Getpid()) {
				return false
			}
		}
		return true
	})
}

// statOf are the state, the parent and what follows of a process.
func statOf(pid string) []string {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
}

func runs(pid int) bool {
	stat := statOf(strconv.Itoa(pid))
	return len(stat) > 0 && stat[0] != "Z"
}

// What takes a pod down leaves the processors to what else goes on, its children too; what sets one up does not.
func TestTakingDownYields(t *testing.T) {
	ours, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // the system call's own result: 20 less the nice value
	if err != nil {
		t.Fatal(err)
	}
	for verb, want := range map[string]string{"ADD": strconv.Itoa(20 - ours), "DEL": strconv.Itoa(delNice)} {
		var stdout bytes.Buffer
		// The value comes a moment after the start, so the script looks for a while.
		script := `for i in $(seq 50); do sh -c 'cut -d" " -f19 /proc/$$/stat' >"$0"; grep -q "^10$" "$0" && break; sleep 0.02; done; cat "$0"`
		_, err := program{
			path: "/bin/sh", args: []string{"-c", script, filepath.Join(t.TempDir(), "nice")}, environ: []string{"PATH=/usr/bin:/bin", "CNI_COMMAND=" + verb},
		}.runTo(t.Context(), &stdout)
		if got := strings.TrimSpace(stdout.String()); err != nil || got != want {
			t.Errorf("%s runs with the nice value %q, want %s; %v", verb, got, want, err)
		}
	}
}
