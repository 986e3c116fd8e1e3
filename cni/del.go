package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"crishim/internal/failpoint"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"
)

// Del runs DEL for each attachment, last first, every plugin, also past errors; it uses what the attachment records and
// nothing of today's configuration but the plugin directories. A network namespace that is gone is passed as empty. NAT rules
// that plugins leave behind where the pod's interface is gone are removed. OK when there is nothing to do; the error joins what is left to do.
func (n *Network) Del(ctx context.Context, attachments []Attachment) error {
	if len(attachments) == 0 {
		return nil
	}
	leave, unlock, err := n.enter(ctx, attachments)
	if err != nil {
		return err
	}
	defer leave()
	defer unlock()
	deleting, cancel := context.WithTimeout(ctx, n.opts.DelTimeout)
	defer cancel()
	if err := n.delAll(deleting, attachments); err != nil {
		return fmt.Errorf("detach pod %s: %w", attachments[0].PodID, err)
	}
	return nil
}

func (n *Network) delAll(ctx context.Context, attachments []Attachment) error {
	var errs []error
	for i, a := range slices.Backward(attachments) {
		share, cancel := shareOf(ctx, i+1)
		if err := n.delOne(share, &a); err != nil {
			errs = append(errs, fmt.Errorf("network %q: %w", a.Network, err))
		}
		cancel()
	}
	return errors.Join(errs...)
}

// delOne is libcni's DelNetworkList, but goes on past a plugin that fails (containerd issue 12130: one missing plugin
// leaked the address that the next would have freed).
func (n *Network) delOne(ctx context.Context, a *Attachment) error {
	list, err := a.list()
	if err != nil {
		return err
	}
	netns, err := n.netns(a)
	if err != nil {
		return err
	}
	// Without the pod's interface the plugins do not find their rules: the namespace has ended, or a DEL before this one was cut
	// off, or failed, when it had taken the interface away.
	blind := netns == "" || !n.ns.hasLink(netns, a.IfName)
	var prev types.Result
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); ok && err == nil {
		prev = a.previous(list)
	}
	var errs []error
	for i, plugin := range slices.Backward(list.Plugins) {
		if netns == "" && plugin.Network.Type == "loopback" {
			continue // lo went with its namespace; adopted pods have such an attachment
		}
		share, cancel := shareOf(ctx, i+1)
		if err := n.verb(share, "DEL", list, plugin, a.runtimeConf(netns), prev); err != nil {
			errs = append(errs, fmt.Errorf("DEL of plugin %s: %w", plugin.Network.Type, err))
		}
		cancel()
	}
	if blind {
		if err := failpoint.Around("cni.rules", func() error { return removeLeakedRules(ctx, a) }); err != nil {
			errs = append(errs, err)
		}
	}
	if len(a.KubeHostPorts) > 0 {
		if err := failpoint.Around("cni.hostports", func() error { return removeKubeHostPorts(ctx, a) }); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	// The last step: while anything is owed, the cached result is of use to the next try. It waits for no disk: where a power cut
	// brings the file back, the pod is deleted again or GC ends what is not known any more.
	err = failpoint.Around("cni.uncache", func() error { return os.Remove(a.cacheFile()) })
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, syscall.EROFS):
		// Nothing is held by a file that stays, and a folder that became read-only must keep no pod from being stopped.
		klog.ErrorS(err, "The cached result of a network cannot be removed", "pod", a.PodID)
	default:
		return fmt.Errorf("remove the cached result: %w", err)
	}
	return nil
}

// shareOf gives the first of n steps most of the time that is left: one that hangs leaves some for the others, which need little
// of it, and one that is only slow, on a node that has too much to do, has more than an equal part.
func shareOf(ctx context.Context, n int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || n <= 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)*3/4)
}

// verb runs one plugin with the input that libcni would give it.
func (n *Network) verb(ctx context.Context, command string, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, rt *libcni.RuntimeConf, prev types.Result) error {
	path, err := n.exec.FindInPath(plugin.Network.Type, n.opts.BinDirs)
	if err != nil {
		return err
	}
	inject := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	if prev != nil {
		inject["prevResult"] = prev
	}
	runtimeConfig := map[string]any{}
	for capability, wanted := range plugin.Network.Capabilities {
		if value, ok := rt.CapabilityArgs[capability]; ok && wanted {
			runtimeConfig[capability] = value
		}
	}
	if len(runtimeConfig) > 0 {
		inject["runtimeConfig"] = runtimeConfig
	}
	conf, err := libcni.InjectConf(plugin, inject)
	if err != nil {
		return err
	}
	return invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, &invoke.Args{
		Command:     command,
		ContainerID: rt.ContainerID,
		NetNS:       rt.NetNS,
		PluginArgs:  rt.Args,
		IfName:      rt.IfName,
		Path:        strings.Join(n.opts.BinDirs, ":"),
	}, n.exec)
}
