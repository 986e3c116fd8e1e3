package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a daemon that a test started; its output goes to a file.
type Process struct {
	Name    string
	LogFile string
	cmd     *exec.Cmd
	done    chan struct{}
}

// start runs a daemon. Output is appended to the log, so that a restart keeps what was before.
func start(t T, name, logFile string, env []string, command string, args ...string) *Process {
	t.Helper()
	return startBy(t, (*exec.Cmd).Start, name, logFile, env, command, args...)
}

// startBy is start by other means than exec's.
func startBy(t T, begin func(*exec.Cmd) error, name, logFile string, env []string, command string, args ...string) *Process {
	t.Helper()
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatalf("opening the log of %s: %v", name, err)
	}
	defer log.Close()
	p := &Process{Name: name, LogFile: logFile, cmd: exec.Command(command, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), env...)
	if err := begin(p.cmd); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is asked of ProcessState
		close(p.done)
	}()
	return p
}

// PID is the daemon's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running says whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal; a process that ended gets none.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Kill ends it with SIGKILL and returns when it is gone.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Pause stops it with SIGSTOP, as if it hung.
func (p *Process) Pause() { p.Signal(syscall.SIGSTOP) }

// Resume lets it go on.
func (p *Process) Resume() { p.Signal(syscall.SIGCONT) }

// Terminate asks it to end, waits for limit, and reports an error where it had to be killed.
func (p *Process) Terminate(limit time.Duration) error {
	p.Signal(syscall.SIGCONT)
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(limit):
	}
	// What it waits for: a Go program writes all its stacks.
	asked := len(readString(p.LogFile))
	p.Signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.Kill()
	}
	log := readString(p.LogFile)
	return fmt.Errorf("%s did not end within %v of SIGTERM and was killed while it did:\n%s", p.Name, limit, log[min(asked, len(log)):])
}

// ExitCode is its exit status once it ended, -1 by a signal.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// LogTail is the end of its output, for failure messages.
func (p *Process) LogTail() string {
	data, err := os.ReadFile(p.LogFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(data), "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// processesNaming finds the processes whose command line contains text: those that were started for a folder of ours.
func processesNaming(text string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(data, []byte(text)) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(file, "/")[2]); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
