package cni

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	statusPeriod  = 10 * time.Second
	statusTimeout = 10 * time.Second
	// firstVerdict is how long Status waits for the first STATUS of a new configuration.
	firstVerdict = 100 * time.Millisecond
)

// verdict is what the plugins of one configuration last answered to STATUS (CNI 1.1).
type verdict struct {
	known chan struct{} // closed when the first answer is there
	err   error         // guarded by Network.mu
}

// Status is nil when pods can be attached, else it says why not in words for the Kubernetes node condition: no
// configuration in the directory, a plugin missing, or what a plugin's STATUS answered (class ErrUnavailable). It runs no
// plugin itself and answers within 250 ms, also while plugins hang. While Run is not running STATUS is not asked.
func (n *Network) Status(ctx context.Context) error {
	list, err := n.usable()
	if err != nil {
		return err
	}
	if !hasStatus(list) {
		return nil
	}
	v := n.verdictOf(list)
	if v == nil {
		return fmt.Errorf("network configuration changed just now: %w", errdefs.ErrUnavailable)
	}
	timer := time.NewTimer(firstVerdict)
	defer timer.Stop()
	select {
	case <-v.known:
	case <-ctx.Done():
		return fmt.Errorf("network %q: %w", list.Name, ctx.Err())
	case <-timer.C:
		return fmt.Errorf("plugins of network %q have not answered STATUS yet: %w", list.Name, errdefs.ErrUnavailable)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return v.err
}

// Usable is Status without what plugins say.
func (n *Network) Usable() error {
	_, err := n.usable()
	return err
}

func hasStatus(list *libcni.NetworkConfigList) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0")
	return ok && err == nil
}

// verdictOf is the verdict on the list, made unknown where there is none; nil when another list is in use.
func (n *Network) verdictOf(list *libcni.NetworkConfigList) *verdict {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.current == nil || n.current.list != list {
		return nil
	}
	if n.verdict == nil {
		n.verdict = &verdict{known: make(chan struct{})}
	}
	return n.verdict
}

// watchStatus asks for STATUS every statusPeriod, and at once when the configuration changed, in which case a STATUS that is
// still running is killed.
func (n *Network) watchStatus(ctx context.Context) {
	for {
		done := make(chan struct{})
		asking, cancel := context.WithCancel(ctx)
		go func() {
			defer close(done)
			n.askStatus(asking)
		}()
		timer := time.NewTimer(statusPeriod)
		select {
		case <-ctx.Done():
		case <-n.changed:
		case <-timer.C:
			<-done
		}
		timer.Stop()
		cancel()
		<-done
		if ctx.Err() != nil {
			return
		}
	}
}

func (n *Network) askStatus(ctx context.Context) {
	list, err := n.usable()
	if err != nil || !hasStatus(list) {
		return
	}
	v := n.verdictOf(list)
	if v == nil {
		return
	}
	asking, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err = n.libcni(n.opts.CacheDir).GetStatusNetworkList(asking, list)
	if ctx.Err() != nil {
		return // asked for another configuration, or ending
	}
	if err != nil {
		err = fmt.Errorf("network %q is not ready (STATUS): %w: %w", list.Name, err, errdefs.ErrUnavailable)
	}
	n.mu.Lock()
	v.err = err
	n.mu.Unlock()
	select {
	case <-v.known:
	default:
		close(v.known)
	}
}
