// Package ociruntime owns containers that a program makes by OCI's command line (runc, crun, a sandboxed one): it is what
// the monitor (engine/native/monitor/serve) drives in the place of libcontainer for pods of such a handler.
//
// The program makes a container's processes, and they become the monitor's children when it ends, as the monitor is a
// subreaper. All that it keeps of a container is in one folder of ours, ROOT/ID: its state, the bundle, its log.
package ociruntime

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/engine/native/monitor/serve"
	"crishim/internal/mounttree"
)

// Runtime is a serve.Runtime for containers whose CreateArgs name a program; the others are Other's.
type Runtime struct {
	// Root is a folder of its own, absolute, on a file system that a reboot empties.
	Root  string
	Other serve.Runtime
	// Guard keeps the reaper of orphans from the programs that it runs (serve.Reaper.Guard).
	Guard func(func() error) error

	number atomic.Uint64 // of files

	mu     sync.Mutex
	failed map[string]int // how often a program could not remove a container
}

// The files of a container's folder.
const (
	programFile = "program" // which one it is, for Remove
	stateDir    = "state"   // the program's own
	bundleDir   = "bundle"
	logFile     = "log" // of a call that is under way, with a number
	pidFile     = "pid"
)

// version is said to be the specification's: older programs refuse newer ones, and skip fields that they do not know.
const version = "1.0.2"

// Prepare is serve.Runtime's.
func (r *Runtime) Prepare() { r.Other.Prepare() }

// Plan is serve.Runtime's.
func (r *Runtime) Plan(id string, args *monitor.CreateArgs) (serve.Plan, error) {
	if args.OCIRuntime == "" {
		return r.Other.Plan(id, args)
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(args.Spec, spec); err != nil {
		return nil, fmt.Errorf("decode the specification of container %s: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	switch {
	case !filepath.IsAbs(args.OCIRuntime):
		return nil, fmt.Errorf("container %s: the OCI runtime %q is not absolute: %w", id, args.OCIRuntime, errdefs.ErrInvalidArgument)
	case filepath.Base(id) != id:
		return nil, fmt.Errorf("container %q: the id is no file name: %w", id, errdefs.ErrInvalidArgument)
	case spec.Process == nil || len(spec.Process.Args) == 0 || spec.Root == nil || spec.Linux == nil:
		return nil, fmt.Errorf("container %s: the specification has no process, root or Linux part: %w", id, errdefs.ErrInvalidArgument)
	}
	spec.Version = version
	return &plan{cli{r, id, args.OCIRuntime, filepath.Join(r.Root, id), args.SystemdCgroup}, spec, args}, nil
}

// Remove is serve.Runtime's.
func (r *Runtime) Remove(id string) error {
	dir := filepath.Join(r.Root, id)
	program, err := os.ReadFile(filepath.Join(dir, programFile))
	if errors.Is(err, os.ErrNotExist) {
		return errors.Join(mounttree.RemoveAll(dir), r.Other.Remove(id))
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return (&cli{r, id, string(program), dir, false}).remove()
}

// cli calls the program for a container.
type cli struct {
	runtime          *Runtime
	id, program, dir string
	// systemd says that cgroups are named as systemd's.
	systemd bool
}

// command is `PROGRAM OPERATION options... ID`, to be run by run.
func (c *cli) command(operation string, options ...string) *exec.Cmd {
	args := append([]string{"--root", filepath.Join(c.dir, stateDir), operation}, options...)
	return exec.Command(c.program, append(args, c.id)...)
}

// outputDelay is how long the output of a program that has ended is waited for: what it has left running, as a hook of the container's, may
// hold it open for ever. Tests lower it.
var outputDelay = 5 * time.Second

// numbered is a file that no other call has.
func (c *cli) numbered(name string) string {
	return filepath.Join(c.dir, name+"-"+strconv.FormatUint(c.runtime.number.Add(1), 10))
}

// run runs the program; its error tells what it logged.
func (c *cli) run(cmd *exec.Cmd) error {
	return c.runtime.Guard(func() error { return c.runUnguarded(cmd, cmd.Run) })
}

// runUnguarded is run where the caller guards, with what runs the command. Its log is its own: others run beside it.
func (c *cli) runUnguarded(cmd *exec.Cmd, do func() error) error {
	log := c.numbered(logFile)
	_ = os.Remove(log) // of a monitor that died
	defer func() { _ = os.Remove(log) }()
	cmd.Args = slices.Insert(cmd.Args, 1, "--log", log, "--log-format", "json")
	cmd.WaitDelay = outputDelay
	var said bytes.Buffer
	if cmd.Stderr == nil {
		cmd.Stderr = &said
	}
	err := do()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) { // that is of one that has ended well
		return nil
	}
	if exited := new(exec.ExitError); !errors.As(err, &exited) {
		return fmt.Errorf("run the OCI runtime: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	why := lastLogged(log)
	if why == "" {
		why = strings.TrimSpace(said.String())
	}
	return fmt.Errorf("%s: %w: %s", filepath.Base(c.program), err, why)
}

// startError tells a program of the container that cannot start from a runtime that cannot be run.
func (c *cli) startError(err error) error {
	if exited := new(exec.ExitError); errors.As(err, &exited) {
		return monitor.ClassifyStart(c.id, err)
	}
	return fmt.Errorf("container %s: %w", c.id, err)
}

// lastLogged is the last error of a log in JSON.
func lastLogged(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	why := ""
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			why = entry.Msg
		}
	}
	return why
}

// removeTries is how often a program is asked to remove a container. One that fails each time would keep the pod from ending for ever:
// the rest is then removed without it, the cgroup and the mounts by the daemon. What it keeps elsewhere may stay. That the node has no process left
// for it does not count.
const removeTries = 5

// remove deletes what the program has of the container, and the folder.
func (c *cli) remove() error {
	// Without a state there is nothing that it could delete; some then fail, whatever the force.
	if _, err := os.Stat(filepath.Join(c.dir, stateDir, c.id)); err == nil {
		// What a program that is gone knew of has its cgroup and its mounts removed by the daemon.
		if err := c.run(c.command("delete", "--force")); err != nil && !errors.Is(err, os.ErrNotExist) {
			unasked := slices.ContainsFunc([]error{unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE}, func(want error) bool { return errors.Is(err, want) })
			if unasked || c.runtime.failedToRemove(c.id) < removeTries {
				return fmt.Errorf("remove container %s: %w", c.id, err)
			}
			fmt.Fprintf(os.Stderr, "container %s is removed without its OCI runtime, which cannot do it: %v\n", c.id, err)
		}
	}
	// A runc of before 1.2 that was killed, with an exec that was given up or with its monitor, leaves its own program mounted here.
	if err := mounttree.RemoveAll(c.dir); err != nil {
		return err
	}
	c.runtime.mu.Lock()
	defer c.runtime.mu.Unlock()
	delete(c.runtime.failed, c.id)
	return nil
}

// failedToRemove counts another failure.
func (r *Runtime) failedToRemove(id string) (times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == nil {
		r.failed = map[string]int{}
	}
	r.failed[id]++
	return r.failed[id]
}
