// Package cni connects pods to the node's network through CNI plugins, with libcni.
//
// A caller keeps one Network for the life of the daemon and lets Run keep it true: Run watches the configuration
// directory, asks the plugins for their STATUS in the background and retries DELs that are owed. For each pod the
// caller takes the attachments from Plan, records them durably, calls Add, and records what Add returned. Del works from
// the recorded attachments alone, whatever has become of the configuration, the network namespace or the cache. A DEL
// that keeps failing is handed to Owe, so that the pod can go.
//
// No lock is held while a plugin runs, except the pod's own: a plugin that hangs delays nobody but its pod. A plugin is
// a process group of its own and is killed whole when its time is up.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"crishim/internal/keymutex"

	"github.com/containerd/errdefs"
)

// The budgets of one ADD and one DEL of a pod. The kubelet leaves RunPodSandbox after 4 minutes and StopPodSandbox
// after 2: both must answer, the undo included, before that.
const (
	DefaultAddTimeout = 200 * time.Second
	DefaultDelTimeout = 60 * time.Second
)

// IfName is the interface that a pod's network gets.
const IfName = "eth0"

// Options are what an operator decides about pod networking.
type Options struct {
	// ConfDir holds *.conflist, *.conf and *.json, usually /etc/cni/net.d. It may appear later.
	ConfDir string
	// BinDirs are searched for plugins, in order, usually /opt/cni/bin and /usr/lib/cni. They may appear later.
	BinDirs []string
	// CacheDir is libcni's cache. It must not be shared with another runtime: a GC of either would end the other's attachments.
	CacheDir string
	// OwedDir keeps the owed DELs. It must survive a reboot.
	OwedDir string
	// AddTimeout and DelTimeout bound one pod's ADD and DEL; zero takes the defaults.
	AddTimeout time.Duration
	DelTimeout time.Duration
	// PodCIDRs are the node's pod ranges as known at the start (see SetPodCIDRs).
	PodCIDRs []string
	// Template is a text/template file from which SetPodCIDRs writes TemplateTarget in ConfDir; "" writes nothing.
	Template string
}

// Network is the node's pod network. Its methods may be called from many goroutines.
type Network struct {
	opts  Options
	exec  *pluginExec
	pods  keymutex.Mutex[string]
	owed  *owedQueue
	verbs gate

	mu       sync.Mutex
	current  *network
	problem  error // why the newest configuration is not, or not wholly, in use
	cidrs    []string
	verdict  verdict
	statusAt time.Time
}

// New reads the configuration and the owed DELs that are there. A missing or broken configuration is no error: Status
// tells, and Run picks it up when it comes.
func New(opts Options) (*Network, error) {
	if opts.ConfDir == "" || opts.CacheDir == "" || opts.OwedDir == "" || len(opts.BinDirs) == 0 {
		return nil, fmt.Errorf("cni needs a configuration, a cache, an owed-DEL and at least one plugin directory: %w", errdefs.ErrInvalidArgument)
	}
	if opts.AddTimeout == 0 {
		opts.AddTimeout = DefaultAddTimeout
	}
	if opts.DelTimeout == 0 {
		opts.DelTimeout = DefaultDelTimeout
	}
	for _, dir := range []string{opts.CacheDir, opts.OwedDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cni: %w", err)
		}
	}
	owed, err := loadOwed(opts.OwedDir)
	if err != nil {
		return nil, err
	}
	n := &Network{opts: opts, exec: &pluginExec{}, owed: owed}
	if err := checkCIDRs(opts.PodCIDRs); err != nil {
		return nil, err
	}
	n.cidrs = opts.PodCIDRs
	n.reload()
	return n, nil
}

// Status is nil when pods can be attached, else it says why not in words for the Kubernetes node condition: no
// configuration in the directory, a plugin missing, or what a plugin's STATUS answered (class ErrUnavailable). It runs no
// plugin itself and answers within 250 ms, also while plugins hang.
func (n *Network) Status(ctx context.Context) error { return n.status(ctx) }

// Problem is what is wrong with the newest configuration files although pods can be attached (a broken edit whose last
// good version is in use, a broken file beside a good one); nil when nothing is.
func (n *Network) Problem() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.problem
}

// Config is the raw network configuration list in use, nil when there is none; for the verbose Status.
func (n *Network) Config() []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.current == nil {
		return nil
	}
	return n.current.list.Bytes
}

// Name is the name of the network in use, "" when there is none.
func (n *Network) Name() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.current == nil {
		return ""
	}
	return n.current.list.Name
}

// Plan decides from today's configuration how a pod will be attached. The caller records the result durably before Add.
// ErrUnavailable when there is no usable configuration, ErrInvalidArgument when a name, port or annotation of the pod is not
// acceptable. No plugin runs.
func (n *Network) Plan(pod Pod) ([]Attachment, error) { return n.plan(pod) }

// Add brings the pod's loopback up and runs ADD for each attachment. It returns the attachments with their results, to be
// recorded in place of the planned ones, and the pod's addresses, the primary first. When it fails, it has already
// run DEL for every plugin of every attachment, also past errors; what could not be undone is joined into the error as
// an *UndoError, and the caller keeps the attachments to Del them again. An ADD that is killed at its budget is class
// ErrUnavailable (context.DeadlineExceeded is wrapped also).
func (n *Network) Add(ctx context.Context, attachments []Attachment) ([]Attachment, []string, error) {
	return n.add(ctx, attachments)
}

// UndoError says that an ADD failed and its DEL too: something of the attachment is left.
type UndoError struct{ Err error }

func (e *UndoError) Error() string { return "undo of the failed ADD: " + e.Err.Error() }
func (e *UndoError) Unwrap() error { return e.Err }

// Del runs DEL for each attachment, last first, every plugin, also past errors; it uses what the attachment records and
// nothing of today's configuration but the plugin directories. A network namespace that is gone is passed as empty, and
// NAT rules that plugins then leave behind are removed. OK when there is nothing to do; the error joins what is left to do.
func (n *Network) Del(ctx context.Context, attachments []Attachment) error {
	return n.del(ctx, attachments)
}

// Check runs CHECK for each attachment. Configurations below CNI 0.4.0 or with disableCheck are skipped.
func (n *Network) Check(ctx context.Context, attachments []Attachment) error {
	return n.check(ctx, attachments)
}

// GC ends every attachment in the cache that is not in valid, then lets plugins of CNI 1.1 collect theirs. valid must hold
// every attachment that is recorded, also those whose ADD has not run. It is for nodes whose networks nobody else uses:
// plugins free what other runtimes hold on the same network. ErrUnavailable while an ADD or DEL runs (the CNI specification wants
// GC exclusive); ADD and DEL of other pods wait for a running GC, which ends within the DEL budget.
func (n *Network) GC(ctx context.Context, valid []Attachment) error { return n.gc(ctx, valid) }

// SetPodCIDRs takes the node's pod ranges of CRI UpdateRuntimeConfig: plugins with the ipRanges capability get them
// from the next Plan on. With Options.Template the configuration file is written anew unless another one is there.
// ErrInvalidArgument for what is no CIDR.
func (n *Network) SetPodCIDRs(cidrs []string) error { return n.setPodCIDRs(cidrs) }

// PodCIDRs are the ranges last set.
func (n *Network) PodCIDRs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cidrs
}

// Owe takes over attachments whose DEL keeps failing: they are kept on disk and Run retries them with growing pauses until
// they succeed, also after restarts. reason is for people. When it returns nil the caller may forget the attachments.
func (n *Network) Owe(attachments []Attachment, reason string) error {
	return n.owed.add(attachments, reason)
}

// Owed lists the DELs that are owed, oldest first.
func (n *Network) Owed() []Owed { return n.owed.list() }

// Owed is one pod's DELs that are still to be done.
type Owed struct {
	ID          string       `json:"id"` // the pod's
	Attachments []Attachment `json:"attachments"`
	Reason      string       `json:"reason"`
	Since       time.Time    `json:"since"`
	Tries       int          `json:"tries"`
	LastError   string       `json:"lastError,omitempty"`
	NextTry     time.Time    `json:"nextTry"`
}

// PluginVersions asks each plugin of the network in use, and its IPAM plugin, for its version. Plugins that do not tell
// have Version "".
func (n *Network) PluginVersions(ctx context.Context) ([]PluginVersion, error) {
	return n.pluginVersions(ctx)
}

// PluginVersion is one plugin binary.
type PluginVersion struct {
	Type    string
	Path    string
	Version string // "1.1.1"
	// Old says that a containernetworking plugin is below 1.9.0, which has known faults (CVE-2025-67499, ipMasq leaks).
	Old bool
}

// Adopt reads the attachments of a pod from the libcni cache of another shim (kubelet's dockershim and cri-dockerd:
// /var/lib/cni/cache). They keep that cache directory, so that Del removes the entry there. None is no error.
func Adopt(cacheDir, podID string) ([]Attachment, error) { return adopt(cacheDir, podID) }

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
	CacheDir       string                     `json:"cacheDir"`
	// Result is the plugins' answer, empty until ADD succeeded.
	Result json.RawMessage `json:"result,omitempty"`
}

// IPs are the pod's addresses in an attachment's result, in the plugins' order; none before ADD.
func (a Attachment) IPs() []string {
	ips, err := resultIPs(a.Result)
	if err != nil {
		return nil
	}
	return ips
}

// Pod is what plugins are told of a pod.
type Pod struct {
	ID, Name, Namespace, UID string
	// NetNSPath is the pod's pinned network namespace.
	NetNSPath string
	Ports     []PortMapping // those without a host port are skipped
	// Annotations go to plugins with the capability io.kubernetes.cri.pod-annotations; kubernetes.io/ingress-bandwidth and
	// kubernetes.io/egress-bandwidth among them (quantities in bit/s) to those with bandwidth.
	Annotations map[string]string
	Labels      map[string]string
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

var errNotYet = errors.New("not written yet")
