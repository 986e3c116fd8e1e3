package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"

	"crishim/internal/failpoint"
)

// undoTimeout bounds the DELs of a failed ADD: with the ADD's own budget it stays below the kubelet's 4 minutes.
const undoTimeout = 20 * time.Second

// UndoError says that an ADD failed and its DEL too: something of the attachment is left.
type UndoError struct{ Err error }

func (e *UndoError) Error() string { return "undo of the failed ADD: " + e.Err.Error() }
func (e *UndoError) Unwrap() error { return e.Err }

// Add brings the pod's loopback up and runs ADD for each attachment. It returns the attachments with their results, to be
// recorded in place of the planned ones, and the pod's addresses, the primary first. An attachment that has a result
// already is left as it is. When it fails, it has already run DEL for every plugin of every attachment, also past
// errors; what could not be undone is joined into the error as an *UndoError, and the caller keeps the attachments to
// Del them again. An ADD that is killed at its budget is class ErrUnavailable (context.DeadlineExceeded is wrapped also).
func (n *Network) Add(ctx context.Context, attachments []Attachment) ([]Attachment, []string, error) {
	leave, unlock, err := n.enter(ctx, attachments)
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	defer unlock()

	adding, cancel := context.WithTimeout(ctx, n.opts.AddTimeout)
	defer cancel()
	added, ips, err := n.addWhileAlive(adding, attachments)
	if err == nil {
		if hasHostPort(attachments) {
			if err := n.ns.guardLoopback(adding); err != nil {
				klog.ErrorS(err, "What listens on the node's loopback alone may be reached by pods: the rule against it cannot be made")
			}
		}
		return added, ips, nil
	}
	err = fmt.Errorf("attach pod %s: %w", attachments[0].PodID, err)
	if adding.Err() != nil || n.life.Err() != nil {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	undoing, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(undoTimeout, n.opts.DelTimeout))
	defer cancel()
	if undoErr := failpoint.Around("undo.cni ADD", func() error { return n.delAll(undoing, attachments) }); undoErr != nil {
		err = errors.Join(err, &UndoError{undoErr})
	}
	return nil, nil, err
}

// enter waits for the pod's turn and for a running GC.
func (n *Network) enter(ctx context.Context, attachments []Attachment) (leave, unlock func(), err error) {
	if len(attachments) == 0 {
		return nil, nil, fmt.Errorf("no network attachment: %w", errdefs.ErrInvalidArgument)
	}
	pod := attachments[0].PodID
	if slices.ContainsFunc(attachments, func(a Attachment) bool { return a.PodID != pod }) {
		return nil, nil, fmt.Errorf("attachments of several pods: %w", errdefs.ErrInvalidArgument)
	}
	// The pod first: who waits for another call on the same pod must not keep a GC from running.
	if unlock, err = n.pods.Lock(ctx, pod); err != nil {
		return nil, nil, fmt.Errorf("network of pod %s is busy: %w", pod, err)
	}
	if leave, err = n.verbs.enter(ctx); err != nil {
		unlock()
		return nil, nil, fmt.Errorf("network of pod %s waits for a GC: %w", pod, err)
	}
	return leave, unlock, nil
}

// errEnding is why an ADD is given up whose daemon ends.
var errEnding = errors.New("the daemon ends")

// addWhileAlive is addAll, given up where Run ends.
func (n *Network) addWhileAlive(ctx context.Context, attachments []Attachment) ([]Attachment, []string, error) {
	n.mu.Lock()
	if n.life.Err() != nil {
		n.mu.Unlock()
		return nil, nil, errEnding
	}
	n.adds.Add(1)
	n.mu.Unlock()
	defer n.adds.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(n.life, func() { cancel(errEnding) })()
	return n.addAll(ctx, attachments)
}

func (n *Network) addAll(ctx context.Context, attachments []Attachment) ([]Attachment, []string, error) {
	added := slices.Clone(attachments)
	var ips []string
	for i := range added {
		a := &added[i]
		if err := n.addOne(ctx, a); err != nil {
			return nil, nil, err
		}
		addresses, err := resultIPs(a.Result, a.IfName)
		if err != nil {
			return nil, nil, fmt.Errorf("result of network %q: %w", a.Network, err)
		}
		ips = append(ips, addresses...)
	}
	if len(ips) == 0 {
		return nil, nil, fmt.Errorf("network %q gave the pod no address", added[0].Network)
	}
	return added, ips, nil
}

func (n *Network) addOne(ctx context.Context, a *Attachment) error {
	if len(a.Result) > 0 {
		return nil
	}
	list, err := a.list()
	if err != nil {
		return err
	}
	if a.NetNSInode, err = n.ns.inode(a.NetNSPath); err != nil {
		return err
	}
	if err := n.ns.loopbackUp(a.NetNSPath); err != nil {
		return err
	}
	result, err := n.libcni(a.CacheDir).AddNetworkList(ctx, list, a.runtimeConf(a.NetNSPath))
	if err != nil {
		return fmt.Errorf("network %q: %w", a.Network, err)
	}
	if a.Result, err = json.Marshal(result); err != nil {
		return fmt.Errorf("result of network %q: %w", a.Network, err)
	}
	return nil
}

func (n *Network) libcni(cacheDir string) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(n.opts.BinDirs, cacheDir, n.exec)
}
