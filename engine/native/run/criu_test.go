//go:build cgo

package run

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whoever wanted a checkpoint has left, and CRIU hangs: the container would stay frozen, and could not be removed.
func TestACRIUThatHangsIsKilledOnceNobodyWaitsForIt(t *testing.T) {
	defer func(was time.Duration) { criuPatience = was }(criuPatience)
	criuPatience = 10 * time.Millisecond
	dir := t.TempDir()
	start := func(name string) (*exec.Cmd, io.Closer) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\nread line\nexit 0\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path)
		goOn, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd, goOn
	}
	killed := func(cmd *exec.Cmd) bool {
		_ = cmd.Wait()
		status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		return ok && status.Signal() == unix.SIGKILL
	}
	for name, tt := range map[string]struct {
		program              string
		before, leaves, dies bool
	}{
		"its caller has left":               {program: "criu", leaves: true, dies: true},
		"its caller waits":                  {program: "criu"},
		"it is some other program":          {program: "other", leaves: true},
		"it was there before, of another's": {program: "criu", before: true, leaves: true},
	} {
		var cmd *exec.Cmd
		var goOn io.Closer
		if tt.before {
			cmd, goOn = start(tt.program)
		}
		ctx, leave := context.WithCancel(t.Context())
		over := killCRIU(ctx)
		if !tt.before {
			cmd, goOn = start(tt.program)
		}
		if tt.leaves {
			leave()
		}
		if !tt.dies {
			time.Sleep(10 * criuPatience)
			_ = goOn.Close()
		}
		if got := killed(cmd); got != tt.dies {
			t.Errorf("%s: killed %t", name, got)
		}
		over()
		leave()
	}
}
