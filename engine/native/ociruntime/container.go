package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/engine/native/monitor/serve"
	"crishim/engine/native/oom"
)

// container is a serve.Container.
type container struct {
	cli
	process
	spec  *specs.Spec
	paths map[string]string

	mu sync.Mutex // guards the resources of spec
}

func (c *container) Start() error {
	if err := c.run(c.command("start")); err != nil {
		return c.startError(err)
	}
	return nil
}

// gone says that the first process has ended; it may not have been reaped.
func (c *container) gone() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, c.pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

func (c *container) Signal(sig unix.Signal) error {
	// The number follows the id: OCI's order.
	cmd := c.command("kill")
	cmd.Args = append(cmd.Args, strconv.Itoa(int(sig)))
	if err := c.run(cmd); err != nil && !c.gone() {
		return fmt.Errorf("signal container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) KillAll() error {
	if c.SharesPIDs() {
		cmd := c.command("kill", "--all")
		cmd.Args = append(cmd.Args, strconv.Itoa(int(unix.SIGKILL)))
		if err := c.run(cmd); err == nil || c.gone() {
			return nil
		}
	}
	return c.Signal(unix.SIGKILL)
}

func (c *container) SharesPIDs() bool {
	for _, n := range c.spec.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			return n.Path != ""
		}
	}
	return true
}

// Exec is serve.Container's.
func (c *container) Exec(ctx context.Context, raw json.RawMessage, stdio serve.Stdio) (serve.Process, error) {
	file, err := os.CreateTemp(c.dir, "process-")
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	defer func() { _ = os.Remove(file.Name()) }()
	_, err = file.Write(raw)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	pid, err := c.fork(func(cmd *exec.Cmd) error { return c.runUntil(ctx, cmd) }, stdio, "exec", "--detach", "--process", file.Name())
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("exec in container %s: %w: %w", c.id, ctx.Err(), err)
	}
	if err != nil {
		return nil, c.startError(err)
	}
	return process{pid}, nil
}

// runUntil runs a program, and once ctx has ended kills what it has made to become a process of the container and is still the
// program itself, as it hangs: the program then fails. Were that killed it could have let its process go just before.
func (c *cli) runUntil(ctx context.Context, cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	ran, ended := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		for {
			for _, pid := range children(cmd.Process.Pid) {
				if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.HasPrefix(line, []byte(c.program+"\x00")) {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			select {
			case <-ran:
				return
			case <-time.After(killAgain):
			}
		}
	})
	err := cmd.Wait()
	close(ran)
	if !stop() {
		<-ended
	}
	return err
}

// killAgain is the pause before the process is looked for anew, which may not be there yet.
const killAgain = 50 * time.Millisecond

// children are of all threads of a process.
func children(parent int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func (c *container) PIDs() ([]int, error) {
	cmd := c.command("ps", "--format", "json")
	var out bytes.Buffer
	cmd.Stdout = &out
	var pids []int
	if err := c.run(cmd); err != nil {
		return nil, fmt.Errorf("list the processes of container %s: %w", c.id, err)
	}
	if err := json.Unmarshal(out.Bytes(), &pids); err != nil {
		return nil, fmt.Errorf("list the processes of container %s: %w", c.id, err)
	}
	return pids, nil
}

// Update replaces the resources. A program changes only what it is told, so what lost its limit is told to be without.
func (c *container) Update(raw json.RawMessage) error {
	resources := new(specs.LinuxResources)
	if err := json.Unmarshal(raw, resources); err != nil {
		return fmt.Errorf("decode resources for container %s: %w: %w", c.id, err, errdefs.ErrInvalidArgument)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	told, err := json.Marshal(lift(*resources, c.spec.Linux.Resources))
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	cmd := c.command("update", "--resources", "-")
	cmd.Stdin = bytes.NewReader(told)
	if err := c.run(cmd); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	c.spec.Linux.Resources = resources
	return nil
}

// lift names the limits that before has and now has not.
func lift(now specs.LinuxResources, before *specs.LinuxResources) specs.LinuxResources {
	if before == nil {
		return now
	}
	none := int64(-1)
	now.Devices = nil // they stay
	if b := before.Memory; b != nil && b.Limit != nil && *b.Limit > 0 && (now.Memory == nil || now.Memory.Limit == nil) {
		memory := specs.LinuxMemory{}
		if now.Memory != nil {
			memory = *now.Memory
		}
		memory.Limit, memory.Swap = &none, &none
		now.Memory = &memory
	}
	if b := before.CPU; b != nil && b.Quota != nil && *b.Quota > 0 && (now.CPU == nil || now.CPU.Quota == nil) {
		cpu := specs.LinuxCPU{}
		if now.CPU != nil {
			cpu = *now.CPU
		}
		cpu.Quota = &none
		now.CPU = &cpu
	}
	if before.Pids != nil && now.Pids == nil {
		now.Pids = &specs.LinuxPids{Limit: &none}
	}
	return now
}

func (c *container) Pause() error {
	if err := c.run(c.command("pause")); err != nil {
		return fmt.Errorf("pause container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) Resume() error {
	if err := c.run(c.command("resume")); err != nil {
		return fmt.Errorf("resume container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) Checkpoint(context.Context, *monitor.CheckpointArgs) error {
	return fmt.Errorf("container %s: checkpoints are for the engine's own runtime: %w", c.id, errdefs.ErrNotImplemented)
}

func (c *container) CgroupPaths() map[string]string { return c.paths }

func (c *container) Destroy() error { return c.remove() }

// OOMKills is serve.Container's.
func (c *container) OOMKills() (uint64, error) { return oom.Kills(c.paths) }

// NotifyOOM is serve.Container's.
func (c *container) NotifyOOM(notify func(kills uint64)) (stop func(), err error) {
	return oom.Notify(c.paths, notify)
}

// cgroupPaths are the cgroup's directories by controller, "" for version 2's.
func cgroupPaths(pid int) (map[string]string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	return parseCgroups(string(data)), nil
}

// parseCgroups reads /proc/PID/cgroup. The root is no container's: version 1 shows it for a process that has ended.
func parseCgroups(data string) map[string]string {
	paths := map[string]string{}
	for line := range strings.Lines(data) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 || fields[2] == "/" {
			continue
		}
		for controller := range strings.SplitSeq(fields[1], ",") {
			mount := filepath.Join("/sys/fs/cgroup", controller)
			if controller == "" {
				if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err != nil {
					mount = filepath.Join(mount, "unified")
				}
			}
			if strings.HasPrefix(controller, "name=") {
				continue
			}
			paths[controller] = filepath.Join(mount, fields[2])
		}
	}
	return paths
}
