package cni

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/version"
)

// Check runs CHECK for each attachment. Configurations below CNI 0.4.0 or with disableCheck are skipped. ErrNotFound
// when the network namespace is gone.
func (n *Network) Check(ctx context.Context, attachments []Attachment) error {
	leave, unlock, err := n.enter(ctx, attachments)
	if err != nil {
		return err
	}
	defer leave()
	defer unlock()
	checking, cancel := context.WithTimeout(ctx, n.opts.DelTimeout)
	defer cancel()
	for _, a := range attachments {
		if err := n.checkOne(checking, &a); err != nil {
			return fmt.Errorf("check network %q of pod %s: %w", a.Network, a.PodID, err)
		}
	}
	return nil
}

func (n *Network) checkOne(ctx context.Context, a *Attachment) error {
	list, err := a.list()
	if err != nil {
		return err
	}
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !ok || list.DisableCheck {
		return err
	}
	netns, err := n.netns(a)
	if err != nil {
		return err
	}
	if netns == "" {
		return fmt.Errorf("network namespace %s is gone: %w", a.NetNSPath, errdefs.ErrNotFound)
	}
	prev := a.previous(list)
	for _, plugin := range list.Plugins {
		if err := n.verb(ctx, "CHECK", list, plugin, a.runtimeConf(netns), prev); err != nil {
			return fmt.Errorf("plugin %s: %w", plugin.Network.Type, err)
		}
	}
	return nil
}
