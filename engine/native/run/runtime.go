//go:build cgo

package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	// Without it every start fails: no device rules can be set.
	_ "github.com/opencontainers/cgroups/devices"
	// The C half, which enters namespaces before Go's runtime starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"

	"crishim/engine/native/monitor"
	"crishim/engine/native/monitor/serve"
)

// Init becomes the first process of a container where libcontainer has started this program as that, and does not return
// then. It must be called from an init function of main.
func Init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}

// Runtime is a serve.Runtime.
type Runtime struct {
	// Root is libcontainer's state directory; `runc --root` works with it.
	Root string
	// OOMScoreAdj is for specifications without one: the monitor's own is no value for a container.
	OOMScoreAdj int

	filters filters
}

type plan struct {
	runtime *Runtime
	id      string
	spec    *specs.Spec
	config  *configs.Config
	args    *monitor.CreateArgs
}

// Plan is serve.Runtime's.
func (r *Runtime) Plan(id string, args *monitor.CreateArgs) (serve.Plan, error) {
	spec := new(specs.Spec)
	if err := json.Unmarshal(args.Spec, spec); err != nil {
		return nil, fmt.Errorf("decode the specification of container %s: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	if err := checkProcess(spec.Process); err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	if spec.Root == nil || !filepath.IsAbs(spec.Root.Path) {
		return nil, fmt.Errorf("container %s: the specification's root path is not absolute: %w", id, errdefs.ErrInvalidArgument)
	}
	if spec.Process.OOMScoreAdj == nil {
		spec.Process.OOMScoreAdj = new(r.OOMScoreAdj) // the container's own: an exec may change it
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: id, UseSystemdCgroup: args.SystemdCgroup, NoNewKeyring: args.NoNewKeyring, Spec: spec,
	})
	if err != nil {
		return nil, fmt.Errorf("container %s: the specification cannot be used: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	return &plan{r, id, spec, config, args}, nil
}

func (p *plan) Terminal() bool { return p.spec.Process.Terminal }

func (p *plan) Owner() (uid, gid int) {
	// Without a mapping for root there is no owner to give; 0 then is as good as any.
	uid, _ = p.config.HostRootUID()
	gid, _ = p.config.HostRootGID()
	return uid, gid
}

func (p *plan) Create(stdio serve.Stdio) (serve.Container, error) {
	return p.make(stdio, func(c *libcontainer.Container, first *libcontainer.Process) error { return c.Start(first) })
}

func (p *plan) Restore(stdio serve.Stdio, args *monitor.RestoreArgs) (serve.Container, error) {
	return p.make(stdio, func(c *libcontainer.Container, first *libcontainer.Process) error {
		return criuError("restore", c.Restore(first, &libcontainer.CriuOpts{
			ImagesDirectory: args.ImagePath, WorkDirectory: args.WorkPath,
			TcpEstablished: args.TCPEstablished, FileLocks: args.FileLocks,
			// The images name a profile too, of whoever made them.
			LsmProfile: lsmProfile(p.spec), LsmMountContext: p.spec.Linux.MountLabel,
			// The cgroup is made anew, by whose limits the pod runs now.
			ManageCgroupsMode: "ignore",
		}), args.WorkPath)
	})
}

// lsmProfile is the specification's security profile, as CRIU names it.
func lsmProfile(s *specs.Spec) string {
	switch {
	case s.Process.SelinuxLabel != "":
		return "selinux:" + s.Process.SelinuxLabel
	case s.Process.ApparmorProfile != "":
		return "apparmor:" + s.Process.ApparmorProfile
	}
	return ""
}

func (p *plan) make(stdio serve.Stdio, start func(*libcontainer.Container, *libcontainer.Process) error) (_ serve.Container, err error) {
	first, err := newProcess(p.spec.Process, stdio)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", p.id, err)
	}
	first.Init = true
	c, err := libcontainer.Create(p.runtime.Root, p.id, p.config)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", p.id, err)
	}
	p.runtime.filters.add(p.args.SeccompFilter)
	p.runtime.filters.RLock()
	err = start(c, first)
	p.runtime.filters.RUnlock()
	if err != nil {
		// What was made is removed by Destroy: a process too, which Start leaves where the failure came late.
		if pid, perr := first.Pid(); perr == nil && pid > 0 {
			_ = first.Signal(unix.SIGKILL)
			_, _ = first.Wait()
		}
		if derr := destroy(c); derr != nil {
			err = fmt.Errorf("%w (and its removal failed: %w)", err, derr)
		}
		return nil, startError(p.id, err)
	}
	pid, err := first.Pid()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", p.id, err)
	}
	state, err := c.State()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", p.id, err)
	}
	return &container{runtime: p.runtime, configuring: make(chan struct{}, 1), id: p.id, spec: p.spec, args: p.args, container: c, paths: state.CgroupPaths, process: proc{process: first, pid: pid}}, nil
}

// Remove is serve.Runtime's. The cgroup's name is in the state; without one there is nothing that it could remove.
func (r *Runtime) Remove(id string) error {
	dir := filepath.Join(r.Root, id)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	c, err := libcontainer.Load(r.Root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		// A crash before the first state was written: nothing but the folder was made.
		return os.RemoveAll(dir)
	}
	if err != nil {
		return fmt.Errorf("load container %s: %w", id, err)
	}
	if err := killAll(c); err != nil {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	return destroy(c)
}

// destroyTimeout bounds the wait for killed processes to leave the cgroup.
const destroyTimeout = 10 * time.Second

// destroy removes a container whose processes were killed, as soon as they are gone.
func destroy(c *libcontainer.Container) error {
	deadline := time.Now().Add(destroyTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := c.Destroy()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

// killAll kills every process of the container; OK when there is none. With a PID namespace of its own the kernel kills
// all with the first, else libcontainer kills all in the cgroup.
func killAll(c *libcontainer.Container) error {
	err := c.Signal(unix.SIGKILL)
	if errors.Is(err, unix.EACCES) {
		err = killCgroup(c, err)
	}
	return ignoreDone(err)
}

// killCgroup is for a container whose AppArmor profile lets no signal in, for which refused is the error: the kernel asks no
// profile when it kills a whole cgroup (version 2, Linux 5.14).
func killCgroup(c *libcontainer.Container, refused error) error {
	state, err := c.State()
	if err != nil || state.CgroupPaths[""] == "" {
		return refused
	}
	f, err := os.OpenFile(filepath.Join(state.CgroupPaths[""], "cgroup.kill"), os.O_WRONLY, 0)
	if err != nil {
		return refused
	}
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}

func ignoreDone(err error) error {
	switch {
	case errors.Is(err, libcontainer.ErrNotRunning), errors.Is(err, libcontainer.ErrCgroupNotExist),
		errors.Is(err, os.ErrProcessDone), errors.Is(err, unix.ESRCH):
		return nil
	}
	return err
}
