package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/engine"
	"crishim/internal/atomicfile"
	"crishim/internal/failpoint"
	"crishim/state"
)

// AdoptOptions say where other shims keep what they know.
type AdoptOptions struct {
	// Engine is the name of the engine whose pods the shims made.
	Engine string
	// Roots are the shims' own folders (Shim.Root), with their checkpoints.
	Roots []string
	// CNICacheDirs are their caches of libcni, usually /var/lib/cni/cache.
	CNICacheDirs []string
}

// Network is what adoption needs of package cni.
type Network interface {
	Plan(pod cni.Pod) ([]cni.Attachment, error)
}

// Adopter makes the records of pods that another shim made. What the Docker Engine says of them is in the record already:
// the engine reads a specification back from each object without one (engine.PodStatus.Spec).
type Adopter struct {
	opts    AdoptOptions
	network Network
	// addresses is cni.Addresses.
	addresses func(netns, ifName string) ([]string, error)
}

// NewAdopter does no I/O; folders that are not there are of shims that never were.
func NewAdopter(opts AdoptOptions, network Network) *Adopter {
	return &Adopter{opts: opts, network: network, addresses: cni.Addresses}
}

// Adopt fills in the record of a pod that has none: its host ports, its network with addresses, what its DEL will need. It
// writes nothing, and an error does not keep the pod from being served with what is known.
func (a *Adopter) Adopt(_ context.Context, pod *state.Pod) error {
	pod.Adopted = true
	id := string(pod.ID)
	checkpoint, checkpointErr := a.checkpoint(pod)
	if checkpoint != nil {
		pod.Spec.Ports = checkpoint.Ports
	}
	if pod.Spec.Namespaces.Network == engine.NamespaceNode {
		pod.Network = state.Network{Done: true}
		return checkpointErr
	}
	attachments, cacheErr := a.cached(id)
	if checkpoint == nil && len(attachments) > 0 {
		if ports := portsOf(attachments); len(ports) > 0 {
			pod.Spec.Ports = ports
		}
	}
	ips := pod.Network.IPs
	if len(ips) == 0 {
		ips = addressesOf(attachments)
	}
	var lookErr, planErr error
	ready := pod.NetNSPath != ""
	if ready && len(ips) == 0 {
		if ips, lookErr = a.addresses(pod.NetNSPath, cni.IfName); len(ips) == 0 && lookErr == nil {
			lookErr = fmt.Errorf("%s of pod %s has no address", cni.IfName, id)
		}
	}
	byEngine := len(pod.Network.IPs) > 0
	cutOff := len(attachments) > 0 && onlyLoopback(attachments)
	if (ready && len(attachments) == 0 || cutOff) && !byEngine {
		// Its plugins' results are lost, or the shim ended before it kept them: the best that its DEL can have is today's configuration.
		var planned []cni.Attachment
		planned, planErr = a.network.Plan(podForPlugins(pod))
		for i := range planned {
			// Where the shim is not through yet, its result comes to its cache: DEL needs it, and takes it away.
			if len(attachments) > 0 {
				planned[i].CacheDir = attachments[0].CacheDir
			} else if dirs := a.opts.CNICacheDirs; len(dirs) > 0 {
				planned[i].CacheDir = dirs[0]
			}
		}
		attachments = append(attachments, planned...)
	}
	for i := range attachments {
		attachments[i].NetNSPath = pod.NetNSPath
	}
	if n := len(attachments); n > 0 {
		attachments[n-1].KubeHostPorts = hostPorts(pod.Spec.Ports)
	}
	raw, encodeErr := encode(attachments)
	pod.Network = state.Network{Attachments: raw, IPs: ips, Done: planErr == nil && (len(raw) > 0 || byEngine || !ready)}
	if pod.Phase == state.PhaseStopped && len(raw) > 0 {
		pod.Phase = state.PhaseStopping // its process has ended, its network was not taken down
	}
	return errors.Join(checkpointErr, cacheErr, lookErr, planErr, encodeErr)
}

// Removed is told that the engine has the pod no more: what the shims remembered of it goes too. OK where that was nothing.
func (a *Adopter) Removed(id engine.PodID) error {
	var errs []error
	for _, root := range a.opts.Roots {
		errs = append(errs, failpoint.Around("adopt.checkpoint", func() error { return atomicfile.Remove(CheckpointPath(root, id)) }))
	}
	return errors.Join(errs...)
}

// checkpoint is the one of the pod, nil where there is none that is believed: it must be of this pod, and where its
// checksum is no shim's it must say what the engine does.
func (a *Adopter) checkpoint(pod *state.Pod) (*Checkpoint, error) {
	for _, root := range a.opts.Roots {
		c, by, err := ReadCheckpoint(root, pod.ID)
		hostNetwork := pod.Spec.Namespaces.Network == engine.NamespaceNode
		switch {
		case errdefs.IsNotFound(err):
			continue
		case err != nil:
			return nil, err
		case c.Name != pod.Spec.Key.Name || c.Namespace != pod.Spec.Key.Namespace || c.HostNetwork != hostNetwork:
			return nil, fmt.Errorf("checkpoint %s is of pod %s/%s (host network: %t), not of this one; it is left out", CheckpointPath(root, pod.ID), c.Namespace, c.Name, c.HostNetwork)
		case by == "" && !sameHostPorts(c.Ports, pod.Spec.Ports):
			return nil, fmt.Errorf("checkpoint %s has no valid checksum, and other host ports than the engine says; it is left out", CheckpointPath(root, pod.ID))
		}
		klog.V(4).InfoS("Read another shim's checkpoint", "id", pod.ID, "root", root, "by", by)
		return &c, nil
	}
	return nil, nil
}

// cached are the pod's attachments in the first cache that knows any.
func (a *Adopter) cached(id string) ([]cni.Attachment, error) {
	var errs []error
	for _, dir := range a.opts.CNICacheDirs {
		attachments, err := cni.Adopt(dir, id)
		if len(attachments) > 0 {
			return attachments, err
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// addressesOf are the pod's addresses, in the plugins' order.
func addressesOf(attachments []cni.Attachment) []string {
	var ips []string
	for _, a := range attachments {
		for _, ip := range a.IPs() {
			if !slices.Contains(ips, ip) {
				ips = append(ips, ip)
			}
		}
	}
	return ips
}

// loopbackNetwork is the network that the shims add a pod to before they add it to its own. It tells nothing of that one: libcni keeps a
// result only when all of a network's plugins have run, so what some of them have made by then is not in it.
const loopbackNetwork = "cni-loopback"

func onlyLoopback(attachments []cni.Attachment) bool {
	return !slices.ContainsFunc(attachments, func(a cni.Attachment) bool { return a.Network != loopbackNetwork })
}

// portsOf are the host ports that the plugins were told.
func portsOf(attachments []cni.Attachment) []engine.PortMapping {
	for _, a := range attachments {
		if ports := a.HostPorts(); len(ports) > 0 {
			out := make([]engine.PortMapping, len(ports))
			for i, p := range ports {
				out[i] = engine.PortMapping{Protocol: p.Protocol, ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIP: p.HostIP}
			}
			return out
		}
	}
	return nil
}

func hostPorts(ports []engine.PortMapping) []cni.PortMapping {
	var out []cni.PortMapping
	for _, p := range ports {
		if p.HostPort > 0 {
			out = append(out, cni.PortMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol, HostIP: p.HostIP})
		}
	}
	return out
}

func sameHostPorts(a, b []engine.PortMapping) bool {
	set := func(ports []engine.PortMapping) map[engine.PortMapping]bool {
		out := map[engine.PortMapping]bool{}
		for _, p := range ports {
			if p.HostPort > 0 {
				out[p] = true
			}
		}
		return out
	}
	x, y := set(a), set(b)
	if len(x) != len(y) {
		return false
	}
	for p := range x {
		if !y[p] {
			return false
		}
	}
	return true
}

func podForPlugins(pod *state.Pod) cni.Pod {
	key := pod.Spec.Key
	return cni.Pod{
		ID: string(pod.ID), Name: key.Name, Namespace: key.Namespace, UID: key.UID,
		NetNSPath: pod.NetNSPath, Ports: hostPorts(pod.Spec.Ports), Annotations: pod.Spec.Annotations,
	}
}

func encode(attachments []cni.Attachment) ([]json.RawMessage, error) {
	var raw []json.RawMessage
	for _, a := range attachments {
		data, err := json.Marshal(a)
		if err != nil {
			return nil, fmt.Errorf("encode the attachment to %s: %w", a.Network, err)
		}
		raw = append(raw, data)
	}
	return raw, nil
}
