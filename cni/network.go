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
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"crishim/internal/keymutex"

	"github.com/containerd/errdefs"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
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
	// PodCIDRs are the node's pod ranges as configured; those that SetPodCIDRs was told last hold in their stead.
	PodCIDRs []string
	// PodCIDRFile keeps what SetPodCIDRs was told; "" keeps it no longer than the Network. It must survive a reboot.
	PodCIDRFile string
	// Template is a text/template file from which SetPodCIDRs writes TemplateTarget in ConfDir; "" writes nothing.
	Template string
}

// Network is the node's pod network. Its methods may be called from many goroutines.
type Network struct {
	opts  Options
	exec  *pluginExec
	ns    namespaces
	pods  keymutex.Mutex[string]
	verbs gate
	owed  *owedQueue

	// life is until Run ends: ADDs end with it.
	life    context.Context
	endLife context.CancelFunc
	adds    sync.WaitGroup // those that run plugins; begun under mu while life is not over

	telling   sync.Mutex // one SetPodCIDRs at a time, so that the file has what is used
	reloading sync.Mutex // one reload at a time, so that an older reading never wins
	changed   chan struct{}

	mu      sync.Mutex
	current *network
	problem error // why the newest files are not, or not all, in use
	cidrs   []string
	verdict *verdict // of current, nil while there is none
}

// New reads the configuration, the owed DELs and the pod CIDRs that are there. A missing or broken configuration is no
// error: Status tells, and Run picks it up when it comes.
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
		if err := closeToWrites(dir); err != nil {
			return nil, fmt.Errorf("cni: close a folder to the writes of others: %w", err)
		}
	}
	owed, err := loadOwed(opts.OwedDir)
	if err != nil {
		return nil, err
	}
	if err := checkCIDRs(opts.PodCIDRs); err != nil {
		return nil, err
	}
	n := &Network{opts: opts, exec: &pluginExec{}, ns: kernelNamespaces{}, owed: owed, changed: make(chan struct{}, 1)}
	n.life, n.endLife = context.WithCancel(context.Background())
	n.reload()
	if err := n.firstPodCIDRs(); err != nil {
		return nil, err
	}
	return n, nil
}

// closeToWrites takes away what lets others write to a folder: what is in it is done as root. On a disk that became read-only
// nobody writes.
func closeToWrites(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || info.Mode()&0o022 == 0 {
		return err
	}
	if err := os.Chmod(dir, info.Mode()&^0o022); !errors.Is(err, unix.EROFS) {
		return err
	}
	return nil
}

// Run keeps the network true until ctx ends: the configuration, the plugins' STATUS and the owed DELs. ADDs that are under way then
// have ended when it returns, and none begins any more: the next daemon takes their pods back, and a plugin that went on beside its DEL
// for longer than Own waits would leave an address, an interface or rules for good.
func (n *Network) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { n.watch(ctx, fsnotify.NewWatcher) })
	wg.Go(func() { n.watchStatus(ctx) })
	wg.Go(func() { n.retryOwed(ctx) })
	wg.Wait()
	n.mu.Lock()
	n.endLife()
	n.mu.Unlock()
	ended := make(chan struct{})
	go func() { n.adds.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(ownLimit): // a plugin that cannot be killed: the next daemon waits for no longer either
	}
}

// Problem is what is wrong with the newest configuration files although pods can be attached (a broken edit whose last
// good version is in use, a broken file beside a good one); nil when nothing is.
func (n *Network) Problem() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.problem
}

// Config is the network configuration list in use, nil when there is none; for the verbose Status.
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
