//go:build cgo

package run

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/engine/native/monitor/serve"
	"crishim/engine/native/oom"
)

// container is a serve.Container.
type container struct {
	runtime   *Runtime
	id        string
	spec      *specs.Spec // Update changes its resources; serve lets in one at a time
	args      *monitor.CreateArgs
	container *libcontainer.Container
	paths     map[string]string
	process   proc
	// configuring, of one place, is held by what needs the configuration as it has just set it.
	configuring chan struct{}
	// begun has the pids of execs that have started and are not reaped.
	begun sync.Map
}

// proc is a serve.Process.
type proc struct {
	process *libcontainer.Process
	pid     int
	reaped  func() // may be nil
}

func (p proc) PID() int { return p.pid }

func (p proc) Wait() (unix.WaitStatus, error) {
	state, err := p.process.Wait()
	if p.reaped != nil {
		p.reaped()
	}
	if state == nil {
		return 0, err
	}
	// A failure of the process is an error here, and no failure of Wait.
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok {
		return 0, err
	}
	return unix.WaitStatus(status), nil
}

func (c *container) PID() int                       { return c.process.PID() }
func (c *container) Wait() (unix.WaitStatus, error) { return c.process.Wait() }

func (c *container) Start() error {
	exe := executable(c.PID())
	if err := c.container.Exec(); err != nil {
		return startError(c.id, err)
	}
	// The container's program replaces libcontainer's only after Exec. A signal before that ends the Go runtime of
	// libcontainer's, by whatever code that has for it, where the program would have had its say.
	for deadline := time.Now().Add(execWait); exe != nil && time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
		if now := executable(c.PID()); now == nil || !os.SameFile(now, exe) {
			break
		}
	}
	return nil
}

// execWait bounds the wait for execve, which takes as long as the root file system takes to hand out the program.
const execWait = time.Second

// executable of the process, nil of one that has ended.
func executable(pid int) os.FileInfo {
	info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return nil
	}
	return info
}

func (c *container) Signal(sig unix.Signal) error {
	// Not the container's Signal: for SIGKILL that may mean all processes.
	err := c.process.process.Signal(sig)
	if sig == unix.SIGKILL && errors.Is(err, unix.EACCES) {
		err = killCgroup(c.container, err)
	}
	if err := ignoreDone(err); err != nil {
		return fmt.Errorf("signal container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) KillAll() error {
	if err := killAll(c.container); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) SharesPIDs() bool {
	config := c.container.Config()
	return !config.Namespaces.IsPrivate(configs.NEWPID)
}

func (c *container) Exec(ctx context.Context, raw json.RawMessage, stdio serve.Stdio) (serve.Process, error) {
	spec := new(specs.Process)
	if err := json.Unmarshal(raw, spec); err != nil {
		return nil, fmt.Errorf("decode a process for container %s: %w: %w", c.id, err, errdefs.ErrInvalidArgument)
	}
	if err := checkProcess(spec); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	process, err := newProcess(spec, stdio)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	// libcontainer starts one process at a time anyway.
	select {
	case c.configuring <- struct{}{}:
		defer func() { <-c.configuring }()
	case <-ctx.Done():
		return nil, fmt.Errorf("exec in container %s, while another is begun: %w", c.id, ctx.Err())
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	c.adjustOOMScore(spec)
	c.runtime.filters.RLock()
	begun := c.killWhenDone(ctx, os.Args[0])
	err = c.container.Start(process)
	begun()
	pid, perr := process.Pid()
	if err == nil && perr == nil {
		c.begun.Store(pid, struct{}{})
	}
	c.runtime.filters.RUnlock()
	if err != nil {
		if errors.Is(err, libcontainer.ErrNotRunning) {
			return nil, fmt.Errorf("exec in container %s: %w: %w", c.id, err, errdefs.ErrFailedPrecondition)
		}
		return nil, startError(c.id, err)
	}
	if perr != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, perr)
	}
	return proc{process, pid, func() { c.begun.Delete(pid) }}, nil
}

// killWhenDone kills what Start makes, once ctx ends and until begun is called: our child in the container, with our program and
// the arguments that libcontainer gives it. Others that still have them, for execve takes its time, have begun.
func (c *container) killWhenDone(ctx context.Context, argv0 string) (begun func()) {
	started, ended := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		for {
			pids, _ := c.container.Processes()
			for _, pid := range pids {
				// Only our children's memory is read: of a process of the container's that may hang.
				if _, other := c.begun.Load(pid); other || pid == c.PID() || !isChild(pid) {
					continue
				}
				if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && string(line) == argv0+"\x00init\x00" {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			select {
			case <-started:
				return
			case <-time.After(killAgain):
			}
		}
	})
	return func() {
		close(started)
		if !stop() {
			<-ended
		}
	}
}

func isChild(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// PID (COMM) STATE PPID …; the name may have anything in it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid())
}

// killAgain is the pause before the process is looked for anew, which may not have joined the container yet.
const killAgain = 50 * time.Millisecond

// adjustOOMScore to the process's, which differs from the container's after an update. libcontainer takes it from the
// configuration that the container was made with; Config copies that, but not what it points to. Set after the start it
// would miss what the process has forked by then.
func (c *container) adjustOOMScore(p *specs.Process) {
	score := c.container.Config().OomScoreAdj
	if p.OOMScoreAdj != nil && score != nil && *score != *p.OOMScoreAdj {
		*score = *p.OOMScoreAdj
	}
}

func (c *container) PIDs() ([]int, error) { return c.container.Processes() }

func (c *container) Pause() error {
	if err := c.container.Pause(); err != nil {
		return fmt.Errorf("pause container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) Resume() error {
	// CRIU may have thawed it.
	if err := c.container.Resume(); err != nil && !errors.Is(err, libcontainer.ErrNotPaused) {
		return fmt.Errorf("resume container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) Checkpoint(ctx context.Context, args *monitor.CheckpointArgs) error {
	defer killCRIU(ctx)()
	return criuError("dump", c.container.Checkpoint(&libcontainer.CriuOpts{
		ImagesDirectory: args.ImagePath, WorkDirectory: args.WorkPath, LeaveRunning: args.LeaveRunning,
		TcpEstablished: args.TCPEstablished, FileLocks: args.FileLocks, ManageCgroupsMode: "ignore",
	}), args.WorkPath)
}

// OOMKills counts the container's own processes: whichever cgroup's limit it was, or the machine's.
func (c *container) OOMKills() (uint64, error) { return oom.Kills(c.paths) }

// NotifyOOM is serve.Container's.
func (c *container) NotifyOOM(notify func(kills uint64)) (stop func(), err error) {
	return oom.Notify(c.paths, notify)
}

func (c *container) CgroupPaths() map[string]string { return c.paths }

func (c *container) Destroy() error { return destroy(c.container) }
