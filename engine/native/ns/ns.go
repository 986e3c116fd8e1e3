// Package ns owns the namespaces of pods: it makes them without a process to hold them and keeps each alive by a bind
// mount, DIR/POD-ID/KIND, in a folder that is a private mount of its own, so that no other mount namespace gets copies.
//
// A pod's user namespace comes first, and the others are made inside it: sysfs and the network's sysctls need a network
// namespace that the user namespace owns. Nothing here outlives a crash in doubt: what has a pod's name is removed by it.
package ns

import (
	"github.com/containerd/errdefs"

	"crishim/engine"
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

// Pins is the folder of all pins. Its methods may be called at once for different pods.
type Pins struct{ dir string }

// Open makes dir a private mount, if it is not yet.
func Open(dir string) (*Pins, error) { return nil, errdefs.ErrNotImplemented }

// Config is what a pod's namespaces shall be.
type Config struct {
	// User is nil for the host's user namespace.
	User *engine.UserNamespace
	// Net, IPC and UTS are made where true; the pod uses the host's else.
	Net, IPC, UTS bool
	// Hostname is set where UTS.
	Hostname string
	// Sysctls are set inside, before anything runs there. They were checked to be those of Net and IPC.
	Sysctls map[string]string
}

// Set are paths of pins by kind.
type Set map[Kind]string

// Create makes and pins a pod's namespaces. The network namespace has nothing but a loopback that is down. What was pinned
// under the id before is dropped. On an error nothing is left.
func (p *Pins) Create(id engine.PodID, c *Config) (Set, error) { return nil, errdefs.ErrNotImplemented }

// Set is what is pinned for the pod: only what is a namespace of its kind. Empty when nothing is.
func (p *Pins) Set(id engine.PodID) Set { return nil }

// Pin adds a namespace of the process pid that started at startTicks, under name: string(PID) for the pod's own, or a
// container's id for its target's. A pin of the same namespace is kept, another thing in its place replaced.
func (p *Pins) Pin(id engine.PodID, name string, kind Kind, pid int, startTicks uint64) (string, error) {
	return "", errdefs.ErrNotImplemented
}

// Unpin drops one pin by its name. OK when there is none.
func (p *Pins) Unpin(id engine.PodID, name string) error { return errdefs.ErrNotImplemented }

// Remove drops all pins of the pod. OK when there are none.
func (p *Pins) Remove(id engine.PodID) error { return errdefs.ErrNotImplemented }

// List are the pods that have anything here.
func (p *Pins) List() ([]engine.PodID, error) { return nil, errdefs.ErrNotImplemented }
