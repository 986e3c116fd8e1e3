package pause

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program writes the embedded binary to a file that can be started.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(path, Program(), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSignalsEndItWithZeroAtOnceAsInitToo(t *testing.T) {
	path := program(t)
	for _, init := range []bool{false, true} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(fmt.Sprintf("init=%v %s", init, sig), func(t *testing.T) {
				cmd := exec.Command(path)
				if init {
					if os.Getuid() != 0 {
						t.Skip("a pid namespace needs root")
					}
					cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				waitWaiting(t, cmd.Process.Pid)
				sent := time.Now()
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Wait(); err != nil {
					t.Fatalf("ended with %v, want status 0", err)
				}
				if took := time.Since(sent); took > 10*time.Second {
					t.Fatalf("took %v", took)
				}
			})
		}
	}
}

// waitWaiting waits until the program, and not the one that becomes it, sleeps in its wait for signals.
func waitWaiting(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(stat, []byte(" (pause) S ")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the program does not wait: %s", stat)
		}
	}
}

// An orphan of a shared pid namespace is given to the program, which must reap it and go on.
func TestReapsOrphansAsInitAndKeepsRunning(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a pid namespace needs root")
	}
	// The shell becomes the program after leaving it children that end later.
	cmd := exec.Command("/bin/sh", "-c", `for i in 1 2 3 4 5; do sh -c "exit $i" & done; exec `+program(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	waitWaiting(t, pid)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			t.Fatalf("the program is gone: %v", err)
		}
		if len(bytes.TrimSpace(children)) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("children %s were not reaped", children)
		}
	}
	// Whatever else is sent does not end an init.
	if err := cmd.Process.Signal(syscall.SIGCHLD); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("ended with %v, want status 0", err)
	}
}

func TestCommittedBinariesAreBuiltFromTheSource(t *testing.T) {
	made, err := os.ReadFile("pause.compiler")
	if err != nil {
		t.Fatal(err)
	}
	compilers := map[string]string{"amd64": "x86_64-linux-gnu-gcc", "arm64": "aarch64-linux-gnu-gcc"}
	for line := range strings.Lines(string(made)) {
		arch, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		t.Run(arch, func(t *testing.T) {
			compiler, err := exec.LookPath(compilers[arch])
			if err != nil {
				t.Skipf("no compiler: %v", err)
			}
			// The name that a compiler was called by begins its version line.
			out, err := exec.Command(compiler, "--version").Output()
			if err != nil {
				t.Fatal(err)
			}
			here, _, _ := strings.Cut(string(out), "\n")
			if _, here, _ = strings.Cut(here, " "); !strings.HasSuffix(version, here) {
				t.Skipf("the binary was made by %q, here is %q", version, here)
			}
			built := filepath.Join(t.TempDir(), "pause")
			if out, err := exec.Command("sh", "build.sh", arch, compiler, built).CombinedOutput(); err != nil {
				t.Fatalf("build: %v\n%s", err, out)
			}
			got, err := os.ReadFile(built)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile("pause-" + arch)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("pause-%s is not what pause.c builds to: run build.sh", arch)
			}
		})
	}
}
