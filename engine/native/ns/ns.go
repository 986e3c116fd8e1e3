// Package ns owns the namespaces of pods: it makes them without a process to hold them and keeps each alive by a bind
// mount, DIR/POD-ID/NAME, in a folder that is a private mount of its own, so that no other mount namespace gets copies that
// later unmounts would not reach.
//
// A pod's user namespace comes first, and the others are made inside it: sysfs and the sysctls of the network need a network
// namespace that the user namespace owns. A crash leaves nothing in doubt: what has a pod's name is removed by it.
package ns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/mounttree"
	"crishim/internal/process"
)

// Kind is a kind of namespace, as in /proc/PID/ns.
type Kind string

// The kinds that are pinned.
const (
	User Kind = "user"
	Net  Kind = "net"
	IPC  Kind = "ipc"
	UTS  Kind = "uts"
	PID  Kind = "pid"
)

// flags are the kinds as the kernel names them, also in the answer of NS_GET_NSTYPE.
var flags = map[Kind]int{
	User: unix.CLONE_NEWUSER, Net: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC, UTS: unix.CLONE_NEWUTS, PID: unix.CLONE_NEWPID,
}

// Pins is the folder of all pins. Its methods may be called at once for different pods; calls for one are ordered by the
// caller.
type Pins struct{ dir string }

// Open makes dir a private mount, if it is not yet. It has to be in the mount namespace that containers are started from.
func Open(dir string) (*Pins, error) {
	if err := mounttree.Private(dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare the folder of namespaces: %w", err)
	}
	return &Pins{dir}, nil
}

func (p *Pins) path(id engine.PodID, name string) string {
	return filepath.Join(p.dir, string(id), name)
}

// validName keeps ids and names from being paths.
func validName(names ...string) error {
	for _, name := range names {
		ok := name != "" && len(name) <= 128 && name[0] != '.'
		for _, c := range []byte(name) {
			ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
		}
		if !ok {
			return fmt.Errorf("%.80q is no name of a pin: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Set are paths of pins by kind.
type Set map[Kind]string

// Set is what is pinned for the pod: only what is a namespace of its kind. Empty when nothing is. An error says that this process
// could not look (process.Starved).
func (p *Pins) Set(id engine.PodID) (Set, error) {
	set := Set{}
	if validName(string(id)) != nil {
		return set, nil
	}
	for kind := range flags {
		path := p.path(id, string(kind))
		pinned, err := look(path, kind)
		if process.Starved(err) {
			return nil, fmt.Errorf("look at the pins of pod %s: %w", id, err)
		}
		if pinned {
			set[kind] = path
		}
	}
	return set, nil
}

// look says whether path is a namespace of the kind, and no link to one.
func look(path string, kind Kind) (is bool, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(fd) }()
	return isKind(fd, kind), nil
}

func isKind(fd int, kind Kind) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		return false
	}
	got, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	return err == nil && got == flags[kind]
}

// Pin adds a namespace of the process pid that started at startTicks, under name: string(PID) for the pod's own, or a
// container's id for its target's. A pin of the same namespace is kept, another thing in its place replaced. ErrUnavailable
// when the process has ended.
func (p *Pins) Pin(id engine.PodID, name string, kind Kind, pid int, startTicks uint64) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("pin the %s namespace of process %d for pod %s: %w", kind, pid, id, err)
	}
	if err := validName(string(id), name); err != nil {
		return "", err
	}
	// The namespace is opened first and the process checked after: the pid cannot have been another's in between.
	file, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + string(kind))
	if err != nil {
		return fail(fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable))
	}
	defer func() { _ = file.Close() }()
	if ticks, err := process.StartTicks(pid); err != nil || ticks != startTicks {
		return fail(fmt.Errorf("it has ended: %w", errdefs.ErrUnavailable))
	}
	if !isKind(int(file.Fd()), kind) {
		return fail(fmt.Errorf("the kernel has no such kind: %w", errdefs.ErrFailedPrecondition))
	}
	path := p.path(id, name)
	if same, err := mounttree.At(path, int(file.Fd())); err == nil && same {
		return path, nil
	}
	if err := p.Unpin(id, name); err != nil {
		return fail(err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fail(err)
	}
	if err := bind("/proc/self/fd/"+strconv.Itoa(int(file.Fd())), path); err != nil {
		return fail(err)
	}
	return path, nil
}

// bind mounts a namespace at a new file.
func bind(source, path string) error {
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o400)
	if err != nil {
		return err
	}
	_ = file.Close()
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}
