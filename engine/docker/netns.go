package docker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/internal/mounttree"
	"crishim/internal/process"
)

// pins keep network namespaces alive by bind mounts, dir/POD-ID, so that plugins find them after the pause process
// has died: portmap and others leak rules where the namespace is gone.
type pins struct {
	dir string
	// mu: the start of a pod and the event of it pin at the same moment.
	mu sync.Mutex
}

// nsfsMagic is NSFS_MAGIC: the file system of namespaces.
const nsfsMagic = 0x6e736673

func (p *pins) path(id engine.PodID) string { return filepath.Join(p.dir, string(id)) }

// pinned is the path of the pod's pin, "" when there is none.
func (p *pins) pinned(id engine.PodID) string {
	if path := p.path(id); isNamespace(path) {
		return path
	}
	return ""
}

func isNamespace(path string) bool {
	var fs unix.Statfs_t
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == nsfsMagic
}

// pin binds the network namespace of the process pid that started at startTicks. A pin of the same namespace is kept,
// anything else in its place is removed.
func (p *pins) pin(id engine.PodID, pid int, startTicks uint64) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("pin the network namespace of pod %s: %w", id, err)
	}
	// The namespace is opened first and the process checked after: the pid cannot have been another's in between.
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return fail(fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable))
	}
	defer func() { _ = ns.Close() }()
	if ticks, err := process.StartTicks(pid); err != nil || ticks != startTicks {
		return fail(fmt.Errorf("process %d has ended: %w", pid, errdefs.ErrUnavailable))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	path := p.path(id)
	if same, err := mounttree.At(path, int(ns.Fd())); err == nil && same {
		return path, nil
	}
	if err := p.remove(id); err != nil {
		return fail(err)
	}
	if err := failpoint.Around("netns.pin", func() error { return bindNamespace(int(ns.Fd()), path) }); err != nil {
		return fail(err)
	}
	return path, nil
}

func bindNamespace(fd int, path string) error {
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o400)
	if err != nil {
		return err
	}
	_ = file.Close()
	if err = failpoint.Hit("netns.pin.file"); err == nil {
		err = unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), path, "", unix.MS_BIND, "")
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// release unmounts and removes the pin, or whatever somebody put in its place; links are not followed.
func (p *pins) release(id engine.PodID) error {
	if !validID(string(id)) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.remove(id)
}

func (p *pins) remove(id engine.PodID) error {
	path := p.path(id)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return failpoint.Around("netns.unpin", func() error { return unbindNamespace(path, id) })
}

func unbindNamespace(path string, id engine.PodID) error {
	for range 16 {
		// EINVAL: not a mount point, or a link.
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			break
		}
	}
	if err := failpoint.Hit("netns.unpin.unmounted"); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("release the network namespace of pod %s: %w", id, err)
	}
	return nil
}
