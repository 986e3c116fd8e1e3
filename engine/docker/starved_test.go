package docker

import (
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/internal/starving"
)

// What an exec that has timed out has left is killed as soon as it can be looked at: a daemon without descriptors sees no
// processes, which does not say that there are none.
//
// Rows: R49 (part)
func TestAnExecIsKilledOnceThereAreDescriptors(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	told := make(chan struct{})
	given := starving.Process(t)
	go func() {
		killSession(t.Context(), cmd.Process.Pid, "") // every cgroup's name has the empty id
		close(told)
	}()
	select {
	case <-told:
		t.Error("the end of an exec was told that was not looked at")
	case <-time.After(100 * time.Millisecond):
	}
	given()
	if !t.Failed() {
		_ = cmd.Wait()
		<-told
	}
}

// Rows: R49 (part)
func TestAContainerHasNotEndedWhereNobodyCouldLook(t *testing.T) {
	f := &facts{cgroupV2: true, cgroupRoot: t.TempDir()}
	listIn(t, f, "/"+testContainer, 1)
	for name, known := range map[string]bool{"in its cgroup": true, "in all of /proc": false} {
		t.Run(name, func(t *testing.T) {
			e := &Engine{}
			if known {
				e.cgroups.paths.Store(testContainer, filepath.Join("/", testContainer))
			}
			var err error
			starving.Opening(t, 0, unix.O_PATH, func() { err = e.killForgotten(t.Context(), testContainer, f) })
			if !errdefs.IsResourceExhausted(err) {
				t.Errorf("it has ended, with %v", err)
			}
		})
	}
}
