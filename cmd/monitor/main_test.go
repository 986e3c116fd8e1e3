//go:build cgo

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

const busybox = "/bin/busybox"

// program is the helper, built as `make` builds it; "" where it cannot be, with the reason.
var program, missing string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("/var/tmp", "crishim-monitor-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		program = filepath.Join(dir, "monitor")
		switch built := os.Getenv("CRISHIM_TEST_MONITOR"); {
		case os.Geteuid() != 0:
			missing = "needs root"
		case built != "": // a machine without a compiler
			program = built
		case exec.Command("pkg-config", "--exists", "libseccomp").Run() != nil:
			missing = "needs libseccomp-dev and pkg-config (hack/packages.sh build)"
		default:
			if _, err := os.Stat(busybox); err != nil {
				missing = "needs busybox-static"
				break
			}
			build := exec.Command("go", "build", "-tags", "netgo osusergo seccomp",
				"-trimpath", "-ldflags", "-s -w -linkmode external -extldflags -static", "-o", program, ".")
			build.Env = append(os.Environ(), "CGO_ENABLED=1")
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build the helper: %v\n%s", err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// pod is a monitor with a place for its containers.
type pod struct {
	*monitor.Client
	t      testing.TB
	helper *os.File
	config monitor.Config
	base   string
	name   string
}

func newPod(t testing.TB) *pod {
	t.Helper()
	helper := sealed(t)
	t.Cleanup(func() { _ = helper.Close() })
	return podOf(t, helper)
}

func podOf(t testing.TB, helper *os.File) *pod {
	t.Helper()
	// Short, and on a file system that lets programs run.
	base, err := os.MkdirTemp("/var/tmp", "cm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	p := &pod{t: t, helper: helper, base: base, name: filepath.Base(base)}
	p.config = monitor.Config{Pod: p.name, Dir: base + "/pod", StateRoot: base + "/state"}
	p.Client, err = monitor.Spawn(within(t), helper, &p.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	return p
}

// end leaves nothing behind, whatever the test did.
func (p *pod) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	select {
	case <-p.Done():
		p.Close()
		client, err := monitor.Spawn(ctx, p.helper, &p.config)
		if err != nil {
			p.t.Errorf("a monitor to clean up after the dead one: %v", err)
			return
		}
		p.Client = client
	default:
	}
	defer p.Close()
	entries, _ := os.ReadDir(p.config.StateRoot)
	for _, entry := range entries {
		if err := p.Delete(ctx, entry.Name()); err != nil {
			p.t.Errorf("delete %s: %v", entry.Name(), err)
		}
	}
	states, err := p.List(ctx)
	if err != nil {
		p.t.Errorf("list: %v", err)
	}
	for _, state := range states {
		if err := p.Delete(ctx, state.ID); err != nil {
			p.t.Errorf("delete %s: %v", state.ID, err)
		}
	}
	if err := p.Shutdown(ctx); err != nil {
		p.t.Errorf("shutdown: %v", err)
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.t.Error("the monitor does not end")
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (p *pod) spec(edit func(*specs.Spec), args ...string) *specs.Spec {
	p.t.Helper()
	root := p.base + "/root"
	if _, err := os.Stat(root); err != nil {
		for _, dir := range []string{"bin", "proc", "dev", "tmp", "etc"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				p.t.Fatal(err)
			}
		}
		data, err := os.ReadFile(busybox)
		if err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(root+"/bin/busybox", data, 0o755); err != nil {
			p.t.Fatal(err)
		}
		for _, name := range []string{"sh", "cat", "true", "false", "sleep", "ls", "id", "tail", "head", "stty", "yes", "readlink", "dd", "kill", "echo", "setsid"} {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	score := 500
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: root},
		Process: p.process(args...),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/crishim-test-" + p.name,
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys"},
			ReadonlyPaths: []string{"/proc/sys"},
			Resources:     &specs.LinuxResources{},
		},
	}
	spec.Process.OOMScoreAdj = &score
	if edit != nil {
		edit(spec)
	}
	return spec
}

func (p *pod) process(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
}

func (p *pod) args(spec *specs.Spec, id string) *monitor.CreateArgs {
	p.t.Helper()
	spec.Linux.CgroupsPath += "-" + id
	data, err := json.Marshal(spec)
	if err != nil {
		p.t.Fatal(err)
	}
	return &monitor.CreateArgs{Spec: data, LogRoot: p.base + "/log", LogPath: p.logPath(id), ExitFile: p.exitFile(id)}
}

func (p *pod) logPath(id string) string  { return p.base + "/log/" + id + "/0.log" }
func (p *pod) exitFile(id string) string { return p.base + "/exit-" + id }

// run makes and starts a container.
func (p *pod) run(id string, args *monitor.CreateArgs) monitor.State {
	p.t.Helper()
	if _, err := p.Create(within(p.t), id, args); err != nil {
		p.t.Fatal(err)
	}
	state, err := p.Start(within(p.t), id)
	if err != nil {
		p.t.Fatal(err)
	}
	return state
}

// sh runs a script in a container and returns its exit.
func (p *pod) sh(id, script string, edit func(*specs.Spec)) monitor.Exit {
	p.t.Helper()
	p.run(id, p.args(p.spec(edit, "/bin/sh", "-c", script), id))
	exit, err := p.Wait(within(p.t), id)
	if err != nil {
		p.t.Fatal(err)
	}
	return exit
}

func (p *pod) log(id string) string {
	p.t.Helper()
	data, err := os.ReadFile(p.logPath(id))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(data)
}

// output is the log without the heads of its lines.
func (p *pod) output(id string) string {
	var all strings.Builder
	for line := range strings.Lines(p.log(id)) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) == 4 {
			all.WriteString(fields[3])
		}
	}
	return all.String()
}

// exec runs a command and returns its output and end.
func (p *pod) exec(ctx context.Context, id string, process *specs.Process) (string, monitor.ExecExited, error) {
	p.t.Helper()
	data, err := json.Marshal(process)
	if err != nil {
		p.t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	run, err := p.Exec(ctx, id, data, monitor.Stdio{Stdout: w, Stderr: w})
	_ = w.Close()
	if err != nil {
		return "", monitor.ExecExited{}, err
	}
	exited, err := run.Wait(ctx)
	_ = r.SetReadDeadline(time.Now().Add(time.Minute))
	out, _ := readAll(r)
	return out, exited, err
}

func readAll(r *os.File) (string, error) {
	var all strings.Builder
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			return all.String(), err
		}
	}
}

// eventually polls what only another process can say.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func itoa(i int) string { return strconv.Itoa(i) }

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

func mountSmall(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// sealed is the program as the daemon runs it (engine/native/helper, which embeds what make built).
func sealed(t testing.TB) *os.File {
	t.Helper()
	if missing != "" {
		t.Skip("a real monitor " + missing)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("crishim-monitor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "crishim-monitor")
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
	return f
}
