package ociruntime

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/engine/native/monitor/serve"
)

type plan struct {
	cli
	spec *specs.Spec
	args *monitor.CreateArgs
}

func (p *plan) Terminal() bool { return p.spec.Process.Terminal }

// Owner is read in the specification: which mapping a namespace has that it joins only a process in there could see.
func (p *plan) Owner() (uid, gid int) {
	return hostRoot(p.spec.Linux.UIDMappings), hostRoot(p.spec.Linux.GIDMappings)
}

func hostRoot(mappings []specs.LinuxIDMapping) int {
	for _, m := range mappings {
		if m.ContainerID == 0 && m.Size > 0 {
			return int(m.HostID)
		}
	}
	return 0
}

func (p *plan) Restore(serve.Stdio, *monitor.RestoreArgs) (serve.Container, error) {
	return nil, fmt.Errorf("container %s: checkpoints are for the engine's own runtime: %w", p.id, errdefs.ErrNotImplemented)
}

func (p *plan) Create(stdio serve.Stdio) (_ serve.Container, err error) {
	if err := os.MkdirAll(filepath.Join(p.dir, bundleDir), 0o700); err != nil {
		return nil, fmt.Errorf("create container %s: %w", p.id, err)
	}
	defer func() {
		if err != nil {
			if rerr := p.remove(); rerr != nil {
				err = fmt.Errorf("%w (and its removal failed: %w)", err, rerr)
			}
		}
	}()
	spec, err := json.Marshal(p.spec)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", p.id, err)
	}
	for name, data := range map[string][]byte{programFile: []byte(p.program), filepath.Join(bundleDir, "config.json"): spec} {
		if err := os.WriteFile(filepath.Join(p.dir, name), data, 0o600); err != nil {
			return nil, fmt.Errorf("create container %s: %w", p.id, err)
		}
	}
	options := []string{"--bundle", filepath.Join(p.dir, bundleDir)}
	if p.args.NoNewKeyring {
		options = append(options, "--no-new-keyring")
	}
	pid, err := p.fork((*exec.Cmd).Run, stdio, "create", options...)
	if err != nil {
		return nil, p.startError(err)
	}
	c := &container{cli: p.cli, process: process{pid}, spec: p.spec}
	if c.paths, err = cgroupPaths(pid); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = c.Wait()
		return nil, fmt.Errorf("create container %s: %w", p.id, err)
	}
	return c, nil
}

// fork has do run an operation that leaves a process, which is our child once it has returned: its parent is gone.
func (c *cli) fork(do func(*exec.Cmd) error, stdio serve.Stdio, operation string, options ...string) (pid int, err error) {
	file := c.numbered(pidFile)
	defer func() { _ = os.Remove(file) }()
	options = append(options, "--pid-file", file)
	if stdio.Console != nil {
		var socket *net.UnixListener
		if socket, err = c.console(stdio.Console); err != nil {
			return 0, err
		}
		defer func() {
			if err != nil {
				_ = socket.Close()
				return
			}
			// What the program has sent may wait there still; who hands it on closes the socket.
			_ = socket.SetDeadline(time.Now().Add(consolePatience))
		}()
		options = append(options, "--console-socket", socket.Addr().String())
	}
	cmd := c.command(operation, options...)
	if operation == "create" && c.systemd {
		cmd.Args = slices.Insert(cmd.Args, 1, "--systemd-cgroup")
	}
	if stdio.Console == nil {
		// Files as they are: what is wrapped would be copied here, by way of pipes that the process keeps open.
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.Stdin, stdio.Stdout, stdio.Stderr
	}
	if err := c.runUnguarded(cmd, func() error { return do(cmd) }); err != nil { // its caller's start guards, until the process is known
		return 0, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("%s says no process id: %w", filepath.Base(c.program), err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(data))); err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s says the process id %.40q: %w", filepath.Base(c.program), data, errdefs.ErrInternal)
	}
	return pid, nil
}

// consolePatience bounds the wait for a terminal's master that was sent before the program ended.
const consolePatience = 10 * time.Second

// console listens for the terminal's master, which the program sends to a socket that has a name, and hands it on.
func (c *cli) console(to *os.File) (*net.UnixListener, error) {
	// A socket's name has 107 bytes at most.
	dir, err := os.MkdirTemp(c.runtime.Root, "t")
	if err != nil {
		return nil, err
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	raw, err := unix.FcntlInt(to.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), socket.Close(), os.RemoveAll(dir))
	}
	go func() {
		target := os.NewFile(uintptr(raw), "console")
		defer func() { _ = target.Close() }()
		defer func() { _ = os.RemoveAll(dir) }()
		defer func() { _ = socket.Close() }()
		conn, err := socket.AcceptUnix()
		if err != nil {
			return // the program failed before, or sends nothing
		}
		defer func() { _ = conn.Close() }()
		master, err := monitor.ReceiveFile(conn)
		if err != nil {
			return
		}
		defer func() { _ = master.Close() }()
		// Whoever waits at the other end finds that nothing came.
		_ = unix.Sendmsg(int(target.Fd()), []byte(master.Name()), unix.UnixRights(int(master.Fd())), nil, 0)
	}()
	return socket, nil
}

// process is a serve.Process that somebody else started for us.
type process struct{ pid int }

func (p process) PID() int { return p.pid }

func (p process) Wait() (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(p.pid, &status, unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return status, err
		}
	}
}
