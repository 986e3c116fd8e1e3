package docker

import (
	"sync"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"crishim/internal/failpoint"
	"crishim/internal/process"
)

// firstProcess is the first process of a running container or pod as Docker told it.
type firstProcess struct {
	pid        int
	startTicks uint64
	// root is the container's root file system as the host sees it, "" where Docker does not tell.
	root string
	// byDocker is for those that Docker has to signal itself, see signalledByDocker.
	byDocker bool
	// codesInEvents: what an event of the container says of an exit code, and of whose it is, is Docker's word. It writes the
	// container's labels over that, which may be the image's.
	codesInEvents bool
}

// The attributes of events that labels of the same name hide.
const (
	attributeExitCode = "exitCode"
	attributeExecID   = "execID"
)

// firstProcesses are those of containers and pods that are not removed, by id; of one that has ended the last.
type firstProcesses struct{ m sync.Map }

// seen notes the process of a container that Docker calls running.
func (f *firstProcesses) seen(in *container.InspectResponse, startTicks uint64, facts *facts) {
	_, code := in.Config.Labels[attributeExitCode]
	_, exec := in.Config.Labels[attributeExecID]
	f.m.Store(in.ID, firstProcess{in.State.Pid, startTicks, mergedDir(in, facts), signalledByDocker(in, facts), !code && !exec})
}

func (f *firstProcesses) of(id string) (p firstProcess, known bool) {
	if value, ok := f.m.Load(id); ok {
		return value.(firstProcess), true
	}
	return firstProcess{}, false
}

func (f *firstProcesses) forget(id string) { f.m.Delete(id) }

// forgetOthers drops what went while nobody looked.
func (f *firstProcesses) forgetOthers(there map[string]seenObject) {
	f.m.Range(func(id, _ any) bool {
		if _, ok := there[id.(string)]; !ok {
			f.m.Delete(id)
		}
		return true
	})
}

// signalledByDocker says whether a signal of ours would not do: somebody has given the container a restart policy, which only Docker's
// own signals suspend, or a handler's OCI runtime makes it, which may keep something else in the process's stead.
func signalledByDocker(in *container.InspectResponse, f *facts) bool {
	policy, runtime := in.HostConfig.RestartPolicy, in.HostConfig.Runtime
	return !policy.IsNone() || runtime != "" && runtime != f.defaultRuntime
}

// signal sends a signal to the container's first process without Docker, which would run the OCI runtime for it: half of the
// time of a stop. It says false, and nothing was sent, where Docker has to do it: the process is not known to run, is not one in the
// container's root but what a default OCI runtime keeps in its stead, or may not be signalled by us.
func (e *Engine) signal(id string, sig unix.Signal) (sent bool, err error) {
	p, known := e.processes.of(id)
	if e.opts.Observe || !known || p.byDocker || p.startTicks == 0 {
		return false, nil
	}
	h, err := process.Open(p.pid, p.startTicks)
	if err != nil {
		return false, nil
	}
	defer h.Close()
	if !p.isInContainer() {
		return false, nil
	}
	err = failpoint.Around("signal", func() error {
		sent = h.Signal(sig) == nil
		return nil
	})
	return sent, err
}

// isInContainer says whether the process has the container's file system at its root. It goes by the mount table: a look at the root itself
// could hang, as a process may change it to a volume whose server is gone.
func (p firstProcess) isInContainer() bool {
	var host unix.Stat_t
	if p.root == "" || unix.Stat(p.root, &host) != nil {
		return false
	}
	own, ok := rootMountOf(p.pid)
	return ok && own.isOf(&host)
}
