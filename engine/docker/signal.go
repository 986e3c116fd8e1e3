package docker

import (
	"os"
	"sync"

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
}

// firstProcesses are those of containers and pods that are not removed, by id; of one that has ended the last.
type firstProcesses struct{ m sync.Map }

func (f *firstProcesses) seen(id string, p firstProcess) { f.m.Store(id, p) }

func (f *firstProcesses) of(id string) (p firstProcess, known bool) {
	if value, ok := f.m.Load(id); ok {
		return value.(firstProcess), true
	}
	return firstProcess{}, false
}

func (f *firstProcesses) forget(id string) { f.m.Delete(id) }

// signal sends a signal to the container's first process without Docker, which would run the OCI runtime for it: half of the
// time of a stop. It says false, and nothing was sent, where Docker has to do it: the process is not known to run, is not the
// container's own but what an OCI runtime keeps in its stead (a sandbox, a virtual machine), or may not be signalled by us.
func (e *Engine) signal(id string, sig unix.Signal) (sent bool, err error) {
	p, known := e.processes.of(id)
	if e.opts.Observe || !known || p.startTicks == 0 {
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

// isInContainer says whether the process has the container's root as its own.
func (p firstProcess) isInContainer() bool {
	if p.root == "" {
		return false
	}
	host, err := os.Stat(p.root)
	if err != nil {
		return false
	}
	own, err := os.Stat(procPath(p.pid, "root"))
	return err == nil && os.SameFile(host, own)
}
