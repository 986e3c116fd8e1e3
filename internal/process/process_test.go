package process

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Rows: R16 (part)
func TestHandleFollowsOneProcess(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	ticks, err := StartTicks(pid)
	if err != nil || ticks == 0 {
		t.Fatalf("start ticks %d, %v", ticks, err)
	}
	if _, err := Open(pid, ticks+1); !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("opened a process with another start time: %v", err)
	}
	h, err := Open(pid, ticks)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if !h.Alive() || !Alive(pid, ticks) || Ending(pid, ticks) {
		t.Fatal("a sleeping process is not alive")
	}
	if !Ending(pid, ticks+1) {
		t.Error("a process whose number another has is not ending")
	}
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if h.Alive() || Alive(pid, ticks) || !Ending(pid, ticks) {
		t.Fatal("a killed process is alive")
	}
	if err := h.Signal(unix.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("signal to a dead process: %v", err)
	}
}

// The number of a process that is gone may be a thread's of another one by now.
//
// Rows: R16 (part)
func TestAThreadIsNoProcess(t *testing.T) {
	tid, end := make(chan int), make(chan struct{})
	defer close(end)
	thread := os.Getpid()
	for thread == os.Getpid() { // the first one is the process
		go func() {
			runtime.LockOSThread()
			tid <- unix.Gettid()
			<-end
		}()
		thread = <-tid
	}
	for _, ticks := range []uint64{0, 1} {
		if _, err := Open(thread, ticks); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("a thread's number, start time %d: %v", ticks, err)
		}
	}
	if Alive(thread, 0) {
		t.Error("a thread is alive as a process")
	}
}

func TestStartTicksOfCommandWithParentheses(t *testing.T) {
	script := t.TempDir() + "/a) 1 (b"
	if err := os.WriteFile(script, []byte("#!/bin/sh\nread x\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	own, err := StartTicks(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if ticks, err := StartTicks(cmd.Process.Pid); err != nil || ticks < own {
		t.Errorf("start ticks %d, %v; want at least our own %d", ticks, err, own)
	}
	_ = stdin.Close()
	_ = cmd.Wait()
}
