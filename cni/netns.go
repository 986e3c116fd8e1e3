package cni

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"crishim/internal/process"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespaces is what the package itself does with network namespaces, the node's own among them; tests without the rights
// for it replace it.
type namespaces interface {
	inode(path string) (uint64, error)
	loopbackUp(path string) error
	hasLink(path, name string) bool
	guardLoopback(ctx context.Context) error
}

type kernelNamespaces struct{}

// netns is NetNSPath where it is still the pod's namespace, else "". An error says that this process could not look
// (process.Starved), which tells nothing of the namespace.
func (n *Network) netns(a *Attachment) (string, error) {
	inode, err := n.ns.inode(a.NetNSPath)
	if process.Starved(err) {
		return "", err
	}
	if err != nil || a.NetNSInode != 0 && a.NetNSInode != inode {
		return "", nil
	}
	return a.NetNSPath, nil
}

// inode identifies the namespace at path; an error when none is pinned there (a plain file is what an unmount or
// a reboot leaves) or when it is the host's own, which plugins must never work on.
func (kernelNamespaces) inode(path string) (uint64, error) {
	if path == "" {
		return 0, fmt.Errorf("no network namespace: %w", errdefs.ErrNotFound)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return 0, fmt.Errorf("%s is no network namespace: %w", path, errdefs.ErrNotFound)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return 0, fmt.Errorf("%s is no network namespace: %w", path, errdefs.ErrInvalidArgument)
	}
	var own, host unix.Stat_t
	if err := unix.Fstat(fd, &own); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", path, err)
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()), &host); err == nil && host.Ino == own.Ino {
		return 0, fmt.Errorf("%s is the host's network namespace: %w", path, errdefs.ErrInvalidArgument)
	}
	return own.Ino, nil
}

// loopbackUp brings lo up in the namespace, in-process: the loopback plugin does no more and costs a fork of 4 ms.
func (kernelNamespaces) loopbackUp(netns string) error {
	err := within(netns, func(handle *netlink.Handle) error {
		lo, err := handle.LinkByName("lo")
		if err != nil {
			return err
		}
		return handle.LinkSetUp(lo)
	})
	if err != nil {
		return fmt.Errorf("loopback of network namespace %s: %w", netns, err)
	}
	return nil
}

// hasLink says whether an interface of that name is known to be in the namespace.
func (kernelNamespaces) hasLink(netns, name string) bool {
	return within(netns, func(handle *netlink.Handle) error {
		_, err := handle.LinkByName(name)
		return err
	}) == nil
}

// Addresses are those that an interface has in the network namespace at path, IPv4 first, without those of the link alone:
// for a pod of which no plugin's result is left.
func Addresses(netns, ifName string) (ips []string, err error) {
	if _, err := (kernelNamespaces{}).inode(netns); err != nil {
		return nil, err
	}
	err = within(netns, func(handle *netlink.Handle) error {
		link, err := handle.LinkByName(ifName)
		if err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			addresses, err := handle.AddrList(link, family)
			if err != nil {
				return err
			}
			for _, a := range addresses {
				if a.IP.IsGlobalUnicast() {
					ips = append(ips, a.IP.String())
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("addresses of %s in network namespace %s: %w", ifName, netns, err)
	}
	return ips, nil
}

// within runs work with a handle on the network namespace at path.
func within(netns string, work func(*netlink.Handle) error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread cannot end: it would stay in the pod's namespace, and /proc/PID/ns/net with it. Held here, it
			// is not the one that the next goroutine gets.
			defer runtime.UnlockOSThread()
			done <- within(netns, work)
			return
		}
		// Never unlocked: the thread is in the pod's namespace and so must end with the goroutine.
		done <- withinHere(netns, work)
	}()
	return <-done
}

func withinHere(netns string, work func(*netlink.Handle) error) error {
	fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	return work(handle)
}
