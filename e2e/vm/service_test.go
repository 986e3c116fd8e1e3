package vm

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const monitors = "/sys/fs/cgroup/crishim.slice/crishim-monitors.scope"

func TestCheckPassesAndTheDriverIsSystemd(t *testing.T) {
	h := onNode(t)
	config, err := h.RuntimeConfig(within(t), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || config.Linux.CgroupDriver != runtimeapi.CgroupDriver_SYSTEMD {
		t.Errorf("%v, %v", config, err)
	}
	t.Log(run(t, "crishim", "check"))
}

func TestTheWatchdogIsFed(t *testing.T) {
	onNode(t)
	if limit := property(t, "crishim", "WatchdogUSec"); limit != "20s" {
		t.Fatalf("WatchdogUSec=%s", limit)
	}
	first := property(t, "crishim", "WatchdogTimestampMonotonic")
	eventually(t, "the next word to the watchdog", func() error {
		if property(t, "crishim", "WatchdogTimestampMonotonic") == first {
			return fmt.Errorf("none since %s µs", first)
		}
		return nil
	})
	if n := property(t, "crishim", "NRestarts"); n != "0" {
		t.Errorf("%s restarts", n)
	}
}

// Rows: R01 (part)
//
// The container, its process and its monitor are the same after the service did what each step does, and an exec works.
func TestContainersOutliveTheService(t *testing.T) {
	h := onNode(t)
	p := h.pod(t, "vmservice.slice")
	id := p.sleeper(t, "c", nil)
	before, monitor := pids(t, scope(t, id)), pids(t, monitors)
	if len(before) != 1 || len(monitor) == 0 {
		t.Fatalf("processes %v, monitors %v", before, monitor)
	}
	if limit, err := os.ReadFile(monitors + "/pids.max"); err != nil || string(limit) != "max\n" {
		t.Errorf("of monitors there may be %q, %v", limit, err)
	}
	service := "/sys/fs/cgroup" + property(t, "crishim", "ControlGroup")
	if main := pids(t, service); len(main) != 1 || strconv.Itoa(main[0]) != property(t, "crishim", "MainPID") {
		t.Errorf("the service's cgroup has %v", main)
	}
	for _, step := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"restart", func(t *testing.T) { run(t, "systemctl", "restart", "crishim") }},
		{"stop and start", func(t *testing.T) {
			run(t, "systemctl", "stop", "crishim")
			if !alive(before[0]) || !alive(monitor[0]) {
				t.Error("the stop of the service ended the container or its monitor")
			}
			run(t, "systemctl", "start", "crishim")
		}},
		{"kill", func(t *testing.T) {
			was := property(t, "crishim", "MainPID")
			run(t, "systemctl", "kill", "-s", "KILL", "crishim")
			eventually(t, "the service comes back", func() error {
				if now := property(t, "crishim", "MainPID"); now == "0" || now == was || property(t, "crishim", "ActiveState") != "active" {
					return fmt.Errorf("main process %s, was %s", now, was)
				}
				return nil
			})
		}},
		{"reload", func(t *testing.T) { run(t, "systemctl", "reload", "crishim") }},
		{"daemon-reload", func(t *testing.T) { run(t, "systemctl", "daemon-reload") }},
		{"upgrade of the package", func(t *testing.T) { run(t, "dpkg", "-i", share+"/crishim.deb") }},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do(t)
			if state := h.status(t, id).State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Fatalf("the container is %v", state)
			}
			// An exec's process may take a moment to leave the cgroup.
			if out, code := h.exec(t, id, "echo here"); out != "here" || code != 0 {
				t.Errorf("exec: %q, %d", out, code)
			}
			eventually(t, "the same processes", func() error {
				if now, m := pids(t, scope(t, id)), pids(t, monitors); !slices.Equal(now, before) || !slices.Equal(m, monitor) {
					return fmt.Errorf("processes %v, were %v; monitors %v, were %v", now, before, m, monitor)
				}
				return nil
			})
		})
	}
}

func TestTheSocketUnitHoldsConnectionsWhileTheServiceIsDown(t *testing.T) {
	h := onNode(t)
	run(t, "systemctl", "stop", "crishim")
	run(t, "systemctl", "start", "crishim.socket")
	t.Cleanup(func() { run(t, "systemctl", "restart", "crishim") })
	if state := property(t, "crishim", "ActiveState"); state != "inactive" {
		t.Fatalf("the service is %s", state)
	}
	// The connection starts the service.
	eventually(t, "an answer", func() error {
		_, err := h.Version(within(t), &runtimeapi.VersionRequest{})
		return err
	})
	if state := property(t, "crishim", "ActiveState"); state != "active" {
		t.Errorf("the service is %s", state)
	}
	if !strings.Contains(run(t, "ss", "-xlH"), "/run/crishim/crishim.sock") {
		t.Error("nobody listens")
	}
	out, err := exec.Command("systemctl", "--failed", "--plain", "--no-legend").Output()
	if err != nil || len(strings.TrimSpace(string(out))) > 0 {
		t.Errorf("failed units: %s, %v", out, err)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }
