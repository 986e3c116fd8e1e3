package serve

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/internal/process"
)

// fakeRuntime runs the processes of specifications as they are, without any container.
type fakeRuntime struct {
	mu       sync.Mutex
	removed  []string
	startErr error
	shares   bool
	// kills are what the container's cgroup counts; gone fails who asks it. notify is the last container's.
	kills  uint64
	gone   error
	notify func(kills uint64)
	// plan runs within Plan, unless it is nil.
	plan func() error
	// terminal has a container's process send something else in the place of its terminal. made is the last container.
	terminal bool
	made     *fakeContainer
	// cloneFlags are of a container's processes. exec, unless it is nil, runs in the place of an exec, which fails with its error.
	cloneFlags uintptr
	exec       func(*fakeContainer) error
	// checkpoint, unless it is nil, makes one.
	checkpoint func(context.Context) error
}

type fakeSpec struct {
	Args []string `json:"args"`
}

type fakePlan struct {
	runtime *fakeRuntime
	spec    fakeSpec
}

func (r *fakeRuntime) Prepare() {}

func (r *fakeRuntime) Plan(_ string, args *monitor.CreateArgs) (Plan, error) {
	if r.plan != nil {
		if err := r.plan(); err != nil {
			return nil, err
		}
	}
	plan := &fakePlan{runtime: r}
	if err := json.Unmarshal(args.Spec, &plan.spec); err != nil || len(plan.spec.Args) == 0 {
		return nil, errors.Join(errors.New("bad spec"), err, errdefs.ErrInvalidArgument)
	}
	return plan, nil
}

func (r *fakeRuntime) Remove(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = append(r.removed, id)
	return nil
}

func (p *fakePlan) Terminal() bool    { return p.runtime.terminal }
func (p *fakePlan) Owner() (int, int) { return os.Getuid(), os.Getgid() }

func (p *fakePlan) Create(stdio Stdio) (Container, error) {
	program, err := exec.LookPath(p.spec.Args[0])
	if err != nil {
		return nil, &monitor.StartError{ExitCode: 127, Message: err.Error()}
	}
	held, gate, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close() }()
	c := &fakeContainer{runtime: p.runtime, cloneFlags: p.runtime.cloneFlags, gate: gate}
	// The program starts when the gate is closed, as one of a container does at its start and not at its creation.
	c.fakeProcess, err = c.run(append([]string{"/bin/sh", "-c", `read _ <&3; exec 3<&- "$0" "$@"`, program}, p.spec.Args[1:]...), stdio, held)
	if err != nil {
		_ = gate.Close()
		return nil, err
	}
	if stdio.Console != nil {
		_, _ = stdio.Console.WriteString("no terminal")
	}
	p.runtime.mu.Lock()
	defer p.runtime.mu.Unlock()
	p.runtime.made = c
	return c, nil
}

func (p *fakePlan) Restore(stdio Stdio, _ *monitor.RestoreArgs) (Container, error) {
	c, err := p.Create(stdio)
	if err != nil {
		return nil, err
	}
	return c, c.Start()
}

type fakeProcess struct{ cmd *exec.Cmd }

func (p *fakeProcess) PID() int { return p.cmd.Process.Pid }

func (p *fakeProcess) Wait() (unix.WaitStatus, error) {
	_ = p.cmd.Wait()
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return 0, errors.New("no status")
	}
	return unix.WaitStatus(status), nil
}

type fakeContainer struct {
	*fakeProcess
	runtime    *fakeRuntime
	cloneFlags uintptr
	gate       *os.File

	mu   sync.Mutex
	pids []int
}

func (c *fakeContainer) run(args []string, stdio Stdio, files ...*os.File) (*fakeProcess, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.Stdin, stdio.Stdout, stdio.Stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: c.cloneFlags}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.pids = append(c.pids, cmd.Process.Pid)
	c.mu.Unlock()
	return &fakeProcess{cmd}, nil
}

func (c *fakeContainer) Start() error {
	if err := c.runtime.startErr; err != nil {
		return err
	}
	return c.gate.Close()
}

func (c *fakeContainer) Signal(sig unix.Signal) error {
	if err := c.cmd.Process.Signal(sig); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (c *fakeContainer) KillAll() error   { return c.Signal(unix.SIGKILL) }
func (c *fakeContainer) SharesPIDs() bool { return c.runtime.shares }

func (c *fakeContainer) Exec(_ context.Context, raw json.RawMessage, stdio Stdio) (Process, error) {
	var spec fakeSpec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, err
	}
	if c.runtime.exec != nil {
		return nil, c.runtime.exec(c)
	}
	p, err := c.run(spec.Args, stdio)
	if err != nil {
		return nil, &monitor.StartError{ExitCode: 127, Message: err.Error()}
	}
	return p, nil
}

func (c *fakeContainer) PIDs() ([]int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]int(nil), c.pids...), nil
}

func (c *fakeContainer) Update(json.RawMessage) error   { return nil }
func (c *fakeContainer) Pause() error                   { return nil }
func (c *fakeContainer) Resume() error                  { return nil }
func (c *fakeContainer) CgroupPaths() map[string]string { return map[string]string{"": "/fake"} }

func (c *fakeContainer) Checkpoint(ctx context.Context, _ *monitor.CheckpointArgs) error {
	if c.runtime.checkpoint != nil {
		return c.runtime.checkpoint(ctx)
	}
	return errdefs.ErrNotImplemented
}

func (c *fakeContainer) OOMKills() (uint64, error) {
	c.runtime.mu.Lock()
	defer c.runtime.mu.Unlock()
	return c.runtime.kills, c.runtime.gone
}

func (c *fakeContainer) NotifyOOM(notify func(uint64)) (stop func(), err error) {
	c.runtime.mu.Lock()
	defer c.runtime.mu.Unlock()
	c.runtime.notify = notify
	return func() {}, nil
}

func (c *fakeContainer) Destroy() error {
	_ = c.gate.Close() // of one that never started
	return nil
}

// fixture is a server in this process with a client that sees it as a monitor.
type fixture struct {
	*monitor.Client
	t       *testing.T
	dir     string
	runtime *fakeRuntime
	reaper  *Reaper
	server  *Server
	served  chan error
}

func newFixture(t *testing.T, edit func(*monitor.Config)) *fixture {
	t.Helper()
	f := serving(t, edit)
	var err error
	if f.Client, err = monitor.Connect(f.ctx(), f.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	t.Cleanup(func() {
		states, err := f.List(context.Background())
		if err != nil && !errdefs.IsUnavailable(err) { // a server that has ended
			t.Errorf("list: %v", err)
		}
		for _, state := range states {
			if err := f.Delete(context.Background(), state.ID); err != nil {
				t.Errorf("delete %s: %v", state.ID, err)
			}
		}
	})
	return f
}

// serving is a fixture whose server no client has met yet.
func serving(t *testing.T, edit func(*monitor.Config)) *fixture {
	t.Helper()
	// A path too long for a socket: only the directory's descriptor makes it fit.
	dir := filepath.Join(t.TempDir(), "a-folder-whose-name-alone-is-nearly-as-long-as-the-path-of-a-unix-socket-may-be-which-is-107")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	config := &monitor.Config{Pod: "pod", Dir: dir, StateRoot: dir}
	if edit != nil {
		edit(config)
	}
	f := &fixture{t: t, dir: dir, runtime: &fakeRuntime{}, reaper: &Reaper{}, served: make(chan error, 1)}
	handle, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = handle.Close() }()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: "/proc/self/fd/" + itoa(int(handle.Fd())) + "/" + monitor.SocketName})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	ticks, err := process.StartTicks(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	record := monitor.Record{Version: monitor.Version, Pod: "pod", PID: os.Getpid(), StartTicks: ticks}
	data, _ := json.Marshal(record)
	if err := os.WriteFile(filepath.Join(dir, monitor.RecordName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	f.server = New(config, f.runtime, monitor.Hello{Record: record, Build: "test"}, f.reaper)
	go func() { f.served <- f.server.Serve(listener) }()
	return f
}

func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	f.t.Cleanup(cancel)
	return ctx
}

func (f *fixture) args(id string, args ...string) *monitor.CreateArgs {
	spec, _ := json.Marshal(fakeSpec{args})
	return &monitor.CreateArgs{Spec: spec, LogRoot: f.dir, LogPath: filepath.Join(f.dir, "log", id), ExitFile: filepath.Join(f.dir, id+".exit")}
}

func (f *fixture) run(id string, args *monitor.CreateArgs) {
	f.t.Helper()
	if _, err := f.Create(f.ctx(), id, args); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.Start(f.ctx(), id); err != nil {
		f.t.Fatal(err)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
