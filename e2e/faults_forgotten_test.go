package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// A dockerd that dies between the start of a process and its note of that says "created" of the container ever after; one that
// cannot reach its containerd in time says "exited". It stops and removes such a container without a look at its process. We
// end it: a container's by ourselves, for its successor may come at any time, a pod's at the stop, and nothing is left of them.
//
// Rows: R12 (part)
func TestDockerdForgetsWhatRuns(t *testing.T) {
	harness.AboutDocker(t)
	for name, state := range map[string]map[string]any{
		"ended":   {"Running": false, "Pid": 0, "StartedAt": "0001-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z"},
		"created": {"Running": false, "Pid": 0, "StartedAt": "0001-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z"},
		"exited":  {"Running": false, "Pid": 0, "ExitCode": 255, "FinishedAt": time.Now().UTC().Format(time.RFC3339Nano)},
	} {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t, harness.DockerOptions{LiveRestore: true})
			pod := n.RunPod(t, "forgotten", inDockersCgroup(n))
			c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "ignore-term"})
			c.WaitLog("ready")
			pids := map[string]int{c.ID: n.HostPID(t, c.ID), pod.ID: n.HostPID(t, pod.ID)}
			started := map[string]string{}
			for id, pid := range pids {
				started[id] = harness.StartTime(pid)
			}
			n.Docker.Kill()
			for id := range pids {
				rewriteState(t, n, id, state)
			}
			if name == "ended" {
				for _, pid := range pids {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			n.Docker.Start()
			n.Shim.WaitReady()
			for id, pid := range pids {
				if n.HostPID(t, id) != 0 || name != "ended" && harness.StartTime(pid) != started[id] {
					t.Skipf("this dockerd finds out what became of container %s: there is nothing to forget", id)
				}
			}
			ended := func(id string) error {
				if harness.StartTime(pids[id]) == started[id] {
					return fmt.Errorf("process %d of container %s runs on", pids[id], id)
				}
				return nil
			}
			harness.Eventually(t, 15*time.Second, "the end of the container's process", func() error { return ended(c.ID) })
			pod.Stop()
			for id := range pids {
				if err := ended(id); err != nil {
					t.Errorf("after the stop: %v", err)
				}
			}
			pod.Remove()
			for id := range pids {
				harness.Eventually(t, 10*time.Second, "the end of containerd's shim", func() error {
					if left := processesWith(id); len(left) > 0 {
						return fmt.Errorf("left: %q", left)
					}
					return nil
				})
			}
		})
	}
}

// rewriteState changes what a dockerd that is down will know of a container's process.
func rewriteState(t *testing.T, n *harness.Node, id string, state map[string]any) {
	t.Helper()
	file := filepath.Join(n.Docker.DataRoot, "containers", id, "config.v2.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	maps.Copy(config["State"].(map[string]any), state)
	if data, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// processesWith are the command lines that name something.
func processesWith(what string) []string {
	var list []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), what) {
			list = append(list, strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return list
}
