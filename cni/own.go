package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// ownLimit bounds the wait for plugins of the daemon before: one that hangs, or has left a process of its own behind for good,
// must not keep this daemon from its work.
const ownLimit = 10 * time.Second

// Own comes before the first ADD and DEL: it waits, ownLimit at most, for plugins that the daemon before has started and that
// outlived it. An ADD that goes on beside the DEL that undoes it would leave an address, an interface or rules for good. They are
// known by a lock on the folder of owed DELs, which every plugin inherits.
func (n *Network) Own(ctx context.Context) { n.own(ctx, ownLimit) }

func (n *Network) own(ctx context.Context, limit time.Duration) {
	dir, err := os.Open(n.opts.OwedDir)
	if err != nil {
		klog.ErrorS(err, "CNI plugins of a daemon before are not waited for")
		return
	}
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := lockAlone(waiting, dir); err != nil {
		klog.ErrorS(err, "CNI plugins of a daemon before may still run, and are not waited for any more")
	}
	// Shared from here on: those that were not waited for keep theirs.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		klog.ErrorS(err, "A daemon after this one cannot wait for its CNI plugins", "lock", dir.Name())
	}
	n.exec.inherited = dir
}

func lockAlone(ctx context.Context, dir *os.File) error {
	for told := false; ; told = true {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		if !told {
			klog.InfoS("Waiting for CNI plugins of the daemon before", "lock", dir.Name())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s: %w", dir.Name(), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
