package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/process"
)

// containerCgroups are the cgroups of containers, as in /proc/PID/cgroup, whether or not anything runs in them. A dockerd
// that dies between starting a process and noting that calls the container "created" or "exited" ever after: it ends the
// container without ending the process, which only its cgroup tells.
type containerCgroups struct {
	paths sync.Map // id → path
	// shims are the ids of containers that had a shim, and did not run, when dockerd was met: it may have forgotten the shim.
	shims sync.Map
}

// made notes the cgroup that a container gets at its start. Where Docker chooses the parent it is known from the first look
// at the running container only.
func (c *containerCgroups) made(id, parent string, f *facts) {
	if parent == "" {
		return
	}
	cgroup := path.Join("/", parent, id)
	if f.cgroupDriver == engine.SystemdDriver {
		expanded, err := systemd.ExpandSlice(parent)
		if err != nil {
			return // dockerd starts nothing there either
		}
		cgroup = path.Join(expanded, "docker-"+id+".scope")
	}
	c.paths.LoadOrStore(id, cgroup)
}

// seen notes the cgroup of a running container.
func (c *containerCgroups) seen(in *container.InspectResponse, cgroup string, f *facts) {
	if cgroup != "" && namesContainer(cgroup, in.ID) {
		c.paths.Store(in.ID, cgroup)
		return
	}
	c.made(in.ID, in.HostConfig.CgroupParent, f)
}

// forget is for a container that was removed by us, or that nobody will ask us to remove.
func (c *containerCgroups) forget(id string) {
	c.paths.Delete(id)
	c.shims.Delete(id)
}

// of is the container's cgroup; known is false where only the processes could tell.
func (c *containerCgroups) of(id string) (cgroup string, known bool) {
	if value, ok := c.paths.Load(id); ok {
		return value.(string), true
	}
	return "", false
}

// namesContainer says whether the last part of a cgroup is the container's: ID with cgroupfs, docker-ID.scope with systemd.
func namesContainer(cgroup, id string) bool {
	name := path.Base(cgroup)
	return name == id || name == "docker-"+id+".scope"
}

// killForgotten kills what is left in the cgroup of a container that does not run as far as Docker knows, and returns when
// it is gone. It goes before the removal: a crash in between leaves a container whose removal is asked for again. Without a
// descriptor nobody can be looked for, which is no sign of nobody: it waits a moment for one, and then says so.
func (e *Engine) killForgotten(ctx context.Context, id string, f *facts) error {
	if err := ctx.Err(); err != nil {
		return err // its caller has left: looking may cost a walk through all processes
	}
	_, shim := e.cgroups.shims.Load(id)
	began := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		left, starved := e.processesOf(id, f)
		switch {
		case starved != nil && (time.Since(began) > starvedLimit || ctx.Err() != nil):
			return errStarved("look for processes left of", id, starved)
		case starved != nil:
		case len(left) == 0 && shim:
			if err := endShim(ctx, id); err != nil {
				return err
			}
			e.cgroups.shims.Delete(id)
			return nil
		case len(left) == 0:
			return nil
		}
		for _, pid := range left {
			if err := killIf(pid, func() bool { in, _ := inContainer(pid, id); return in }); err != nil {
				return fmt.Errorf("kill process %d, left of container %s: %w", pid, id, err)
			}
		}
		shim = shim || len(left) > 0
		select {
		case <-ctx.Done():
			if starved != nil {
				return errStarved("look for processes left of", id, starved)
			}
			return fmt.Errorf("processes %v of container %s, which does not run as far as the engine knows, do not end by SIGKILL: %w", left, id, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// starvedLimit is how long a removal or a stop waits for descriptors, before it leaves that to the next call.
const starvedLimit = time.Second

// errStarved is why it cannot be said that nothing of a container is left.
func errStarved(what, id string, starved error) error {
	return fmt.Errorf("%s container %s: %w: %w", what, id, starved, errdefs.ErrResourceExhausted)
}

// shimGrace is how long dockerd may take to end the shim of a process of which it hears the end.
const shimGrace = 3 * time.Second

// endShim ends the shim of a container without processes. dockerd 20.10 knows the end of a process by the pid that it had
// noted: it ignores that of one that it had forgotten, and the shim would stay for good. containerd cleans up after a shim
// that was killed.
func endShim(ctx context.Context, id string) error {
	for began := time.Now(); ; {
		all, starved := processes()
		left := 0
		for _, p := range all {
			if !isShimOf(p.pid, id) {
				continue
			}
			left++
			if time.Since(began) > shimGrace {
				if err := killIf(p.pid, func() bool { return isShimOf(p.pid, id) }); err != nil {
					return fmt.Errorf("kill process %d, the shim of container %s: %w", p.pid, id, err)
				}
			}
		}
		if starved != nil {
			return errStarved("look for the shim of", id, starved)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the shim of container %s does not end: %w", id, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func isShimOf(pid int, id string) bool { return shimOf(pid) == id }

// shimOf is the container of a shim, "" for another process. It goes by the command line: containerd-shim-runc-v2 -namespace
// moby -id ID …
func shimOf(pid int) (id string) {
	data, err := os.ReadFile(procPath(pid, "cmdline"))
	if err != nil {
		return ""
	}
	args := strings.Split(string(data), "\x00")
	at := slices.Index(args, "-id")
	if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") || at < 0 || at+1 >= len(args) {
		return ""
	}
	return args[at+1]
}

// killIf kills a process that is, while it is pinned, the one that is meant. OK when it is gone.
func killIf(pid int, meant func() bool) error {
	h, err := process.Open(pid, 0)
	if err == nil {
		if meant() {
			err = h.Signal(unix.SIGKILL)
		}
		h.Close()
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// processesOf are the processes in the container's cgroup and below. starved is why there may be more (process.Starved).
func (e *Engine) processesOf(id string, f *facts) (pids []int, starved error) {
	if cgroup, known := e.cgroups.of(id); known {
		return f.cgroupProcesses(cgroup)
	}
	entries, starved := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		in, err := inContainer(pid, id)
		if in {
			var data []byte
			if data, err = os.ReadFile(procPath(pid, "stat")); err == nil {
				if _, alive := parseStat(pid, data); alive { // not a zombie
					pids = append(pids, pid)
				}
			}
		}
		if process.Starved(err) {
			starved = err
		}
	}
	return pids, starved
}

// removeForgottenCgroups removes the cgroup of a container that is gone, as runc does where it is asked to; with systemd's
// driver it is systemd's. One that cannot be removed goes with the pod's, which is the kubelet's.
func removeForgottenCgroups(cgroup, id string, f *facts) {
	if f.cgroupDriver != engine.CgroupfsDriver || path.Base(cgroup) != id {
		return
	}
	dirs := []string{filepath.Join(f.cgroupRoot, cgroup)}
	if !f.cgroupV2 {
		hierarchies, _ := os.ReadDir(f.cgroupRoot)
		for _, hierarchy := range hierarchies {
			if hierarchy.IsDir() { // not a link such as cpu → cpu,cpuacct
				dirs = append(dirs, filepath.Join(f.cgroupRoot, hierarchy.Name(), cgroup))
			}
		}
	}
	for _, dir := range dirs {
		removeCgroupTree(dir)
	}
}

// removeForgottenRoot unmounts the root file system of a container that is gone: with an image store of containerd's, Docker
// leaves mounted what it thinks does not run.
func removeForgottenRoot(id string, f *facts) {
	root := containerdRoot(id, f)
	if err := unix.Unmount(root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err == nil {
		klog.InfoS("Unmounted the root of a removed container, which dockerd had forgotten", "id", id)
		_ = unix.Rmdir(root)
	}
}

// removeCgroupTree removes a cgroup and those below it, the deepest first. Only empty ones go; nothing else can be in them.
func removeCgroupTree(top string) {
	var dirs []string
	_ = filepath.WalkDir(top, func(dir string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, dir)
		}
		return nil // absent, as a rule
	})
	for _, dir := range slices.Backward(dirs) {
		_ = unix.Rmdir(dir)
	}
}

// startingFor is how long a process may run of which dockerd does not say so: far longer than it takes to note a start or
// to clean up after an end.
const startingFor = 5 * time.Second

// suspects are the containers that do not run as far as dockerd knows and have processes. Those that have a shim are noted.
// It is called before anything else is asked of this session.
func (w *watcher) suspects() []string {
	shims := map[string]bool{}
	all, _ := processes()
	for _, p := range all {
		shims[shimOf(p.pid)] = true
	}
	var ids []string
	for id, seen := range w.seen {
		if seen.state == container.StateRunning || seen.state == container.StatePaused {
			continue
		}
		if shims[id] {
			w.e.cgroups.shims.Store(id, true)
		}
		if w.forgot(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// endForgotten ends what is left of those suspects that still are: the kubelet starts their successors, whose ports and
// files they would hold.
func (w *watcher) endForgotten(ids []string) {
	if len(ids) == 0 {
		return
	}
	select {
	case <-w.s.life.Done():
		return
	case <-time.After(startingFor):
	}
	for _, id := range ids {
		if err := w.endIfForgotten(id); err != nil && w.s.life.Err() == nil {
			klog.ErrorS(err, "Cannot end what the Docker Engine has forgotten, it is tried again at the next connect and at the removal", "id", id)
		}
	}
}

// forgot says whether something was started in the container's cgroup and runs.
func (w *watcher) forgot(id string) bool {
	cgroup, known := w.e.cgroups.of(id)
	if !known || w.e.own.underWay(id) {
		return false
	}
	pids, _ := w.s.facts.cgroupProcesses(cgroup)
	return slices.ContainsFunc(pids, func(pid int) bool {
		data, err := os.ReadFile(procPath(pid, "cmdline"))
		// runc's own, before it becomes the container's process.
		return err == nil && !bytes.HasSuffix(data, []byte("runc\x00init\x00"))
	})
}

func (w *watcher) endIfForgotten(id string) error {
	ctx, cancel := context.WithTimeout(w.s.life, slowLimit)
	defer cancel()
	in, err := w.s.cli.ContainerInspect(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case !complete(&in) || in.State.Running || in.State.Paused || in.State.Restarting || !w.forgot(id):
		return nil
	}
	klog.InfoS("Processes of a container that does not run as far as the Docker Engine knows; ending them", "id", id, "state", in.State.Status)
	return w.e.killForgotten(ctx, id, w.s.facts)
}
