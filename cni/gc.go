package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// GC ends every attachment in the cache that valid does not name, then lets plugins of CNI 1.1 collect theirs. valid must name
// every attachment that is recorded, also those whose ADD has not run; it is asked while no ADD can run, and its error ends the
// collection before anything is done. It is for nodes whose networks nobody else uses:
// plugins free what other runtimes hold on the same network. ErrUnavailable while an ADD or DEL runs (the CNI specification wants
// GC exclusive); ADD and DEL of other pods wait for a running GC, which ends within the DEL budget.
func (n *Network) GC(ctx context.Context, valid func() ([]Attachment, error)) error {
	leave, err := n.verbs.enterAlone()
	if err != nil {
		return fmt.Errorf("CNI GC: %w", err)
	}
	defer leave()
	collecting, cancel := context.WithTimeout(ctx, n.opts.DelTimeout)
	defer cancel()

	held, err := valid()
	if err != nil {
		return fmt.Errorf("CNI GC: %w", err)
	}
	keep := map[types.GCAttachment]bool{}
	for _, a := range held {
		keep[types.GCAttachment{ContainerID: a.PodID, IfName: a.IfName}] = true
	}
	for _, o := range n.Owed() { // what is owed is ended by its own retry
		for _, a := range o.Attachments {
			keep[types.GCAttachment{ContainerID: a.PodID, IfName: a.IfName}] = true
		}
	}
	return errors.Join(n.endStale(collecting, keep), n.collect(collecting, keep))
}

func (n *Network) endStale(ctx context.Context, keep map[types.GCAttachment]bool) error {
	cached, err := n.libcni(n.opts.CacheDir).GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("CNI GC: %w", err)
	}
	var errs []error
	seen := map[string]bool{}
	for _, c := range cached {
		if keep[types.GCAttachment{ContainerID: c.ContainerID, IfName: c.IfName}] || seen[c.ContainerID] {
			continue
		}
		seen[c.ContainerID] = true
		stale, err := Adopt(n.opts.CacheDir, c.ContainerID)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		stale = slices.DeleteFunc(stale, func(a Attachment) bool {
			return keep[types.GCAttachment{ContainerID: a.PodID, IfName: a.IfName}]
		})
		share, cancel := shareOf(ctx, 2)
		if err := n.delAll(share, stale); err != nil {
			errs = append(errs, fmt.Errorf("end the stale networks of pod %s: %w", c.ContainerID, err))
		}
		cancel()
	}
	return errors.Join(errs...)
}

// collect runs the GC verb on the network in use.
func (n *Network) collect(ctx context.Context, keep map[types.GCAttachment]bool) error {
	list, err := n.usable()
	if err != nil || !hasStatus(list) || list.DisableGC {
		return nil // GC came with STATUS, in CNI 1.1
	}
	valid := make([]types.GCAttachment, 0, len(keep))
	for a := range keep {
		valid = append(valid, a)
	}
	// libcni ends cached attachments first; endStale has left it none but those that failed to end from their own
	// configuration, which it may as well try from today's.
	if err := n.libcni(n.opts.CacheDir).GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		return fmt.Errorf("CNI GC of network %q: %w", list.Name, err)
	}
	return nil
}
