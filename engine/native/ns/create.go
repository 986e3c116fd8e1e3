package ns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/userns"
)

// Config is what a pod's namespaces shall be.
type Config struct {
	// User is nil for the host's user namespace.
	User *engine.UserNamespace
	// Net, IPC and UTS are made where true; the pod uses the host's else.
	Net, IPC, UTS bool
	// Hostname is set where UTS, unless empty.
	Hostname string
	// Sysctls are set inside, before anything runs there. They were checked to be those of Net and IPC.
	Sysctls map[string]string
}

// made are the kinds to make besides User.
func (c *Config) made() []Kind {
	var kinds []Kind
	for _, k := range []struct {
		kind Kind
		make bool
	}{{Net, c.Net}, {IPC, c.IPC}, {UTS, c.UTS}} {
		if k.make {
			kinds = append(kinds, k.kind)
		}
	}
	return kinds
}

// Create makes and pins a pod's namespaces. The network namespace has nothing but a loopback that is down. What was pinned
// under the id before is dropped. On an error nothing is left.
func (p *Pins) Create(id engine.PodID, c *Config) (Set, error) {
	if err := p.Remove(id); err != nil {
		return nil, err
	}
	set, err := p.create(id, c)
	if err != nil {
		if rerr := p.Remove(id); rerr != nil {
			err = fmt.Errorf("%w; %w", err, rerr)
		}
		return nil, fmt.Errorf("make the namespaces of pod %s: %w", id, err)
	}
	return set, nil
}

func (p *Pins) create(id engine.PodID, c *Config) (Set, error) {
	if err := os.Mkdir(p.path(id, ""), 0o700); err != nil {
		return nil, err
	}
	kinds := c.made()
	set := Set{}
	pin := func(kind Kind, source string) error {
		path := p.path(id, string(kind))
		if err := bind(source, path); err != nil {
			return err
		}
		set[kind] = path
		return nil
	}
	var mask int
	for _, kind := range kinds {
		mask |= flags[kind]
	}
	if c.User == nil {
		if mask == 0 {
			return set, nil
		}
		return set, onThread(func() error {
			if err := unix.Unshare(mask); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			for _, kind := range kinds {
				if err := pin(kind, "/proc/thread-self/ns/"+string(kind)); err != nil {
					return err
				}
			}
			return c.fill()
		})
	}
	holder, err := userns.Start(mappings(c.User.UIDs), mappings(c.User.GIDs), uintptr(mask))
	if err != nil {
		return nil, err
	}
	defer func() { _ = holder.Close() }()
	for _, kind := range append([]Kind{User}, kinds...) {
		if err := pin(kind, holder.Path(string(kind))); err != nil {
			return nil, err
		}
	}
	return set, onThread(func() error {
		for _, kind := range kinds {
			if err := enter(set[kind], kind); err != nil {
				return err
			}
		}
		return c.fill()
	})
}

func mappings(in []engine.IDMapping) []userns.Mapping {
	out := make([]userns.Mapping, 0, len(in))
	for _, m := range in {
		out = append(out, userns.Mapping{Inside: m.ContainerID, Outside: m.HostID, Length: m.Length})
	}
	return out
}

// enter moves the calling thread into the namespace at path.
func enter(path string, kind Kind) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, flags[kind]); err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	return nil
}

// onThread runs f on a thread that ends with it, whatever namespaces f moved it to. It is never the process's first thread:
// that one cannot end, and /proc/self is what it sees.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Not unlocked: the thread ends with this goroutine.
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// This goroutine keeps the first thread while another takes some other.
		err := onThread(f)
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
