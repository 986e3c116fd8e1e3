package cni

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"crishim/internal/process"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/utils"
)

// The capabilities that plugins may ask for. The names are those of the CNI conventions and of containerd and CRI-O.
const (
	capPortMappings = "portMappings"
	capBandwidth    = "bandwidth"
	capIPRanges     = "ipRanges"
	capDNS          = "dns"
	capAnnotations  = "io.kubernetes.cri.pod-annotations"
	capCgroupPath   = "cgroupPath"
)

// The annotations of the bandwidth capability.
const (
	IngressBandwidth = "kubernetes.io/ingress-bandwidth"
	EgressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// Pod is what plugins are told of a pod.
type Pod struct {
	ID, Name, Namespace, UID string
	// NetNSPath is where the pod's network namespace is (or will be) pinned.
	NetNSPath string
	Ports     []PortMapping // those without a host port are skipped
	// Annotations go to plugins with the capability io.kubernetes.cri.pod-annotations; IngressBandwidth and
	// EgressBandwidth among them (quantities in bit/s) to those with bandwidth.
	Annotations map[string]string
	DNS         *DNS
	CgroupPath  string // capability cgroupPath; "" is not passed
}

// PortMapping is a host port of the pod.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp, sctp
	HostIP        string `json:"hostIP,omitempty"`
}

// DNS is the pod's resolver, for plugins that set it.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Attachment is one network of one pod, as it was decided: all that its DEL needs. It is stored as JSON by the caller.
type Attachment struct {
	PodID   string `json:"podID"`
	Network string `json:"network"`
	IfName  string `json:"ifName"`
	// Config is the whole configuration list, plugins inlined.
	Config json.RawMessage `json:"config"`
	// Args are CNI_ARGS, CapabilityArgs what plugins with that capability get in runtimeConfig.
	Args           [][2]string                `json:"args,omitempty"`
	CapabilityArgs map[string]json.RawMessage `json:"capabilityArgs,omitempty"`
	NetNSPath      string                     `json:"netNSPath"`
	// NetNSInode tells whether NetNSPath still is the pod's namespace at DEL; 0 when it was not there yet at Plan (Add
	// fills it in) or is not known.
	NetNSInode uint64 `json:"netNSInode,omitempty"`
	CacheDir   string `json:"cacheDir"`
	// KubeHostPorts are host ports whose rules no plugin made but dockershim itself, for kubenet; DEL takes them away.
	KubeHostPorts []PortMapping `json:"kubeHostPorts,omitempty"`
	// Result is the plugins' answer, empty until ADD succeeded.
	Result json.RawMessage `json:"result,omitempty"`
}

// Plan decides from today's configuration how a pod will be attached. The caller records the result durably before Add.
// ErrUnavailable when there is no usable configuration, ErrInvalidArgument when a name, port or annotation of the pod is not
// acceptable. No plugin runs.
func (n *Network) Plan(pod Pod) ([]Attachment, error) {
	list, err := n.usable()
	if err != nil {
		return nil, err
	}
	args, err := cniArgs(pod)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	capabilities, err := capabilityArgs(pod, n.PodCIDRs())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	inode, _ := n.ns.inode(pod.NetNSPath)
	return []Attachment{{
		PodID:          pod.ID,
		Network:        list.Name,
		IfName:         IfName,
		Config:         list.Bytes,
		Args:           args,
		CapabilityArgs: capabilities,
		NetNSPath:      pod.NetNSPath,
		NetNSInode:     inode,
		CacheDir:       n.opts.CacheDir,
	}}, nil
}

// cniArgs are the arguments that Kubernetes plugins know. CNI_ARGS is one string of KEY=VALUE joined by ";", so that no
// value may hold either separator: a pod's name must not add a key.
func cniArgs(pod Pod) ([][2]string, error) {
	if err := utils.ValidateContainerID(pod.ID); err != nil {
		return nil, fmt.Errorf("pod id %q: %w", pod.ID, err)
	}
	args := [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", pod.Namespace},
		{"K8S_POD_NAME", pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
		{"K8S_POD_UID", pod.UID},
	}
	for _, arg := range args {
		if strings.ContainsAny(arg[1], ";=\x00\n") {
			return nil, fmt.Errorf("%s %q must not hold ;, =, a line break or a zero byte", arg[0], arg[1])
		}
	}
	return args, nil
}

func capabilityArgs(pod Pod, cidrs []string) (map[string]json.RawMessage, error) {
	values := map[string]any{}
	ports, err := hostPorts(pod.Ports)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		values[capPortMappings] = ports
	}
	limits, err := bandwidth(pod.Annotations)
	if err != nil {
		return nil, err
	}
	if limits != nil {
		values[capBandwidth] = limits
	}
	if len(cidrs) > 0 {
		values[capIPRanges] = ipRanges(cidrs)
	}
	if pod.DNS != nil {
		values[capDNS] = pod.DNS
	}
	if len(pod.Annotations) > 0 {
		values[capAnnotations] = pod.Annotations
	}
	if pod.CgroupPath != "" {
		values[capCgroupPath] = pod.CgroupPath
	}
	raw := make(map[string]json.RawMessage, len(values))
	for key, value := range values {
		if raw[key], err = json.Marshal(value); err != nil {
			return nil, fmt.Errorf("capability %s: %w", key, err)
		}
	}
	return raw, nil
}

func hostPorts(ports []PortMapping) ([]PortMapping, error) {
	var mapped []PortMapping
	for _, port := range ports {
		if port.HostPort <= 0 {
			continue
		}
		port.Protocol = strings.ToLower(port.Protocol)
		switch port.Protocol {
		case "tcp", "udp", "sctp":
		default:
			return nil, fmt.Errorf("host port %d: protocol %q is not tcp, udp or sctp", port.HostPort, port.Protocol)
		}
		if port.HostPort > math.MaxUint16 || port.ContainerPort <= 0 || port.ContainerPort > math.MaxUint16 {
			return nil, fmt.Errorf("host port %d to port %d: ports are 1 to 65535", port.HostPort, port.ContainerPort)
		}
		if port.HostIP != "" {
			if _, err := netip.ParseAddr(port.HostIP); err != nil {
				return nil, fmt.Errorf("host port %d: host address %q: %w", port.HostPort, port.HostIP, err)
			}
		}
		mapped = append(mapped, port)
	}
	return mapped, nil
}

type ipRange struct {
	Subnet string `json:"subnet"`
}

// ipRanges is one range set for each CIDR: a pod gets an address from each set, so two families are two sets.
func ipRanges(cidrs []string) [][]ipRange {
	var sets [][]ipRange
	for _, cidr := range cidrs {
		sets = append(sets, []ipRange{{Subnet: cidr}})
	}
	return sets
}

// list is the recorded configuration, parsed.
func (a *Attachment) list() (*libcni.NetworkConfigList, error) {
	list, err := parseConfig(a.Config)
	if err != nil {
		return nil, fmt.Errorf("recorded configuration of network %q: %w", a.Network, err)
	}
	if err := utils.ValidateContainerID(a.PodID); err != nil {
		return nil, fmt.Errorf("recorded pod id %q: %w", a.PodID, err)
	}
	if err := utils.ValidateInterfaceName(a.IfName); err != nil {
		return nil, fmt.Errorf("recorded interface %q: %w", a.IfName, err)
	}
	return list, nil
}

// runtimeConf is what libcni is told, with netns as it is now.
func (a *Attachment) runtimeConf(netns string) *libcni.RuntimeConf {
	capabilities := make(map[string]any, len(a.CapabilityArgs))
	for key, value := range a.CapabilityArgs {
		capabilities[key] = value
	}
	return &libcni.RuntimeConf{ContainerID: a.PodID, NetNS: netns, IfName: a.IfName, Args: a.Args, CapabilityArgs: capabilities}
}

// cacheFile is libcni's cache entry of the attachment. Its name is libcni's format, on which Adopt depends also.
func (a *Attachment) cacheFile() string {
	return filepath.Join(a.CacheDir, "results", a.Network+"-"+a.PodID+"-"+a.IfName)
}

// previous is the ADD's result for CHECK and DEL: the recorded one, or the cached one where a crash came between ADD and
// its recording; nil when there is none.
func (a *Attachment) previous(list *libcni.NetworkConfigList) types.Result {
	if len(a.Result) > 0 {
		if result, err := create.CreateFromBytes(a.Result); err == nil {
			if result, err = result.GetAsVersion(list.CNIVersion); err == nil {
				return result
			}
		}
	}
	cached, err := libcni.NewCNIConfigWithCacheDir(nil, a.CacheDir, nil).GetNetworkListCachedResult(list, a.runtimeConf(""))
	if err != nil {
		return nil // CNI wants a DEL to work without it
	}
	return cached
}

// IPs are the pod's addresses in an attachment's result, in the plugins' order; none before ADD.
func (a Attachment) IPs() []string {
	ips, err := resultIPs(a.Result, a.IfName)
	if err != nil {
		return nil
	}
	return ips
}

// HostPorts are those that plugins with that capability are told of; none where they cannot be read.
func (a Attachment) HostPorts() []PortMapping {
	var ports []PortMapping
	if err := json.Unmarshal(a.CapabilityArgs[capPortMappings], &ports); err != nil {
		return nil
	}
	return ports
}

// resultIPs are the addresses of the interface that the plugins were asked for, as the kubelet's old shims and containerd have it:
// what a plugin adds beside it is not where the pod is reached. Where the result names no such interface they are those of all that
// it puts into the pod. A plugin may forget to say where its interface is; addresses of the loopback are never the pod's.
func resultIPs(raw []byte, ifName string) ([]string, error) {
	result, err := create.CreateFromBytes(raw)
	if err != nil {
		return nil, err
	}
	latest, err := types100.GetResult(result)
	if err != nil {
		return nil, err
	}
	var own, others, unplaced []string
	for _, ip := range latest.IPs {
		if ip.Address.IP.IsLoopback() {
			continue
		}
		of := &types100.Interface{Name: ifName, Sandbox: "the pod's"}
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(latest.Interfaces) {
			of = latest.Interfaces[*i]
		}
		text := ip.Address.IP.String()
		switch {
		case of.Sandbox == "" && of.Name == ifName:
			unplaced = append(unplaced, text)
		case of.Sandbox == "": // the host's
		case of.Name == ifName:
			own = append(own, text)
		default:
			others = append(others, text)
		}
	}
	for _, ips := range [][]string{own, unplaced} {
		if len(ips) > 0 {
			return ips, nil
		}
	}
	return others, nil
}

// Cached reads the attachments of a pod from our own cache: where the record that held them is lost. None is no error.
func (n *Network) Cached(podID string) ([]Attachment, error) { return Adopt(n.opts.CacheDir, podID) }

// Adopt reads the attachments of a pod from the libcni cache of another shim (kubelet's dockershim and cri-dockerd:
// /var/lib/cni/cache). They keep that cache directory, so that Del removes the entry there. A namespace path below
// /proc is left out, since the pid in it may be another process by now: the caller sets NetNSPath to the pod's
// pinned one. None is no error.
func Adopt(cacheDir, podID string) ([]Attachment, error) {
	if podID == "" {
		return nil, fmt.Errorf("adopt networks of a pod without id: %w", errdefs.ErrInvalidArgument)
	}
	cache := libcni.NewCNIConfigWithCacheDir(nil, cacheDir, nil)
	cached, err := cache.GetCachedAttachments(podID)
	if err == nil {
		err = unread(cacheDir, podID)
	}
	if err != nil {
		return nil, fmt.Errorf("read the networks of pod %s: %w", podID, err)
	}
	var adopted []Attachment
	for _, c := range cached {
		a := Attachment{
			PodID: c.ContainerID, Network: c.Network, IfName: c.IfName, Config: c.Config,
			Args: c.CniArgs, NetNSPath: c.NetNS, CacheDir: cacheDir, CapabilityArgs: map[string]json.RawMessage{},
		}
		if strings.HasPrefix(a.NetNSPath, "/proc/") {
			a.NetNSPath = ""
		}
		for key, value := range c.CapabilityArgs {
			if a.CapabilityArgs[key], err = json.Marshal(value); err != nil {
				return nil, fmt.Errorf("read the networks of pod %s: capability %s: %w", podID, key, err)
			}
		}
		list, err := a.list()
		if err != nil {
			return nil, err
		}
		if result := a.previous(list); result != nil {
			if a.Result, err = json.Marshal(result); err != nil {
				return nil, fmt.Errorf("read the networks of pod %s: %w", podID, err)
			}
		}
		adopted = append(adopted, a)
	}
	return adopted, nil
}

// unread says why libcni may have passed over a file of the pod's, as it does in silence with one that cannot be opened: this process
// has no descriptor left (process.Starved).
func unread(cacheDir, podID string) error {
	dir := filepath.Join(cacheDir, "results")
	entries, err := os.ReadDir(dir)
	if err != nil && !process.Starved(err) {
		return nil
	}
	for _, entry := range entries {
		if !strings.Contains(entry.Name(), "-"+podID+"-") {
			continue
		}
		if _, rerr := os.ReadFile(filepath.Join(dir, entry.Name())); process.Starved(rerr) {
			err = rerr
		}
	}
	return err
}
