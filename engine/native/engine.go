// Package native is engine.Engine without Docker, containerd or a runc binary: the daemon's own runtime. It owns the order
// of steps, what is recorded of pods and containers, and what is made of their remains after a crash or a reboot.
//
//	native ─┬─ image     content store, pulls, unpacked layers       ┌─ run ── libcontainer
//	        ├─ rootfs    overlays, image volumes, files of pods      │
//	        ├─ ns        pinned namespaces                           │
//	        ├─ cgroup    names, limits, ends of cgroups              │
//	        ├─ spec      what was decided → OCI runtime spec (pure)  │
//	        └─ monitor   client ──── unix socket, one per pod ──── cmd/monitor (the embedded helper)
//
// A pod has no process but its monitor, which holds its containers' stdio, reaps them and outlives the daemon; only where
// the pod shares its PID namespace there is a pause process too. What must survive a reboot is below Options.RootDir
// (images, writable layers, records, exits), what must not below RunDir (namespaces, mounts, sockets).
//
// A caller makes one Engine with New, runs Watch for as long as the daemon lives, and calls the other methods while the
// sink's last Health is ready.
package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/cgroup"
	"crishim/engine/native/helper"
	"crishim/engine/native/hook"
	"crishim/engine/native/host"
	"crishim/engine/native/image"
	"crishim/engine/native/monitor"
	"crishim/engine/native/ns"
	"crishim/engine/native/rootfs"
	"crishim/internal/process"
)

// Name is the engine's name in records and among runtime handlers.
const Name = "native"

// Options say how to run. RootDir and RunDir are required, absolute, and the engine's own.
type Options struct {
	// Version is the daemon's, reported as the engine's.
	Version string
	// RootDir is kept over a reboot, on a file system that overlayfs can use and that is not mounted noexec. RunDir is gone
	// after a reboot.
	RootDir, RunDir string
	// CgroupDriver is the operator's choice, "" to detect it.
	CgroupDriver engine.CgroupDriver
	// ContainerLogMaxSize (bytes) bounds each container's log, which is then set aside and begun anew; 0 is no bound.
	ContainerLogMaxSize int64
	// The rest is the image store's: see image.Options.
	RegistryConfigDirs []string
	NodeAuth           []string
	TokenServers       []string
	Pinned             []string
	ImageFSInterval    time.Duration
	// Runtimes are OCI runtimes (absolute paths) by the handler that has them; "" is the engine's own.
	Runtimes map[string]string
	// Plugins are told of pods and containers, and may change them; nil for none.
	Plugins hook.Plugins
}

// Engine is the native engine. Make it with New.
type Engine struct {
	engine.Images
	images  *image.Store
	opts    Options
	host    *host.Host
	helper  *os.File
	pins    *ns.Pins
	roots   *rootfs.Store
	cgroups *cgroup.Driver
	filters *filters
	cdi     *host.Injector
	info    engine.Info
	events  events
	counts  counts
	// criu says why there are no checkpoints, nil where there are.
	criu error

	podRecords, containerRecords records
	aside                        quarantine

	// ready is set once what was found at the start is sorted.
	ready atomic.Bool
	start sync.Once
	// startErr is why it never got ready: records that cannot be listed, plugins that cannot connect, an end that came before.
	startErr error

	// life ends with Close, and with it what goes on in the background.
	life       context.Context
	endLife    context.CancelFunc
	background sync.WaitGroup

	mu         sync.Mutex
	closed     bool
	pods       map[engine.PodID]*pod
	containers map[engine.ContainerID]*container
	// foreign are the records of a newer version, by id: neither they nor anything that they name is touched.
	foreign map[string][]byte
}

var (
	_ engine.Engine    = (*Engine)(nil)
	_ engine.Networked = (*Engine)(nil)
	_ engine.WholePods = (*Engine)(nil)
)

// New looks at the host and prepares the folders; nothing of a pod is touched before Watch. ErrFailedPrecondition where this
// host cannot run containers, ErrNotImplemented where this binary was built without the helper.
func New(opts Options) (*Engine, error) {
	e := &Engine{
		opts: opts, pods: map[engine.PodID]*pod{}, containers: map[engine.ContainerID]*container{}, foreign: map[string][]byte{},
		podRecords:       records{kind: "pod", dir: filepath.Join(opts.RootDir, "pods"), copies: filepath.Join(opts.RunDir, "records", "pods")},
		containerRecords: containerRecords(opts.RootDir, opts.RunDir),
	}
	e.podRecords.aside, e.containerRecords.aside = &e.aside, &e.aside
	e.life, e.endLife = context.WithCancel(context.Background())
	if !helper.Built() {
		return nil, helper.ErrNotBuilt
	}
	for _, dir := range []string{opts.RootDir, opts.RunDir} {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("folder %q of the native engine is not absolute: %w", dir, errdefs.ErrInvalidArgument)
		}
		// Others may pass, not look: the root of a pod's user namespace walks down to its root file system.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
		// On a disk that became read-only what runs is served all the same.
		if err := os.Chmod(dir, 0o711); err != nil && !errors.Is(err, unix.EROFS) {
			return nil, err
		}
	}
	for _, dir := range []string{
		e.podRecords.dir, e.podRecords.copies, e.containerRecords.dir, e.containerRecords.copies,
		e.exits(), e.checkpoints(), e.monitors(), e.bundles(), e.stateRoot(), e.ociRoot(), e.filterDir(),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{e.podRecords.dir, e.containerRecords.dir, e.exits()} {
		quiet(e.aside.find(dir), "look for records that were set aside", dir)
	}
	var err error
	if e.host, err = host.Probe(host.Options{Root: "/", CgroupDriver: opts.CgroupDriver, StateDir: opts.RootDir}); err != nil {
		return nil, err
	}
	if err := e.host.LoadAppArmorDefault(); err != nil {
		e.host.Warnings = append(e.host.Warnings, err.Error()+"; containers that ask for no profile run without one, and those that ask for the default are refused")
	}
	if e.helper, err = helper.Open(opts.RootDir); err != nil {
		return nil, err
	}
	e.filters = newFilters(e.filterDir(), e.helper, &e.counts.filters)
	if e.pins, err = ns.Open(filepath.Join(opts.RunDir, "ns")); err != nil {
		return nil, err
	}
	if e.roots, err = rootfs.Open(filepath.Join(opts.RootDir, "roots"), filepath.Join(opts.RunDir, "roots")); err != nil {
		return nil, err
	}
	e.cgroups = cgroup.New(e.host)
	if e.cdi, err = host.NewInjector(); err != nil {
		return nil, err
	}
	e.images, err = image.Open(image.Options{
		Root: filepath.Join(opts.RootDir, "images"), RegistryConfigDirs: opts.RegistryConfigDirs, NodeAuth: opts.NodeAuth, TokenServers: opts.TokenServers,
		Pinned: opts.Pinned, InUse: e.usersOf, Mounted: e.mountersOf, Changed: e.imagesChanged, Progress: logProgress, LogInterval: logInterval, SampleInterval: opts.ImageFSInterval,
	})
	if err != nil {
		return nil, err
	}
	e.Images = e.images
	e.criu = checkCRIU(e.life)
	e.info = e.describe()
	for _, warning := range e.info.Warnings {
		klog.InfoS("This host limits what pods get", "what", warning)
	}
	return e, nil
}

// Close lets go of what New opened and of the monitors, which go on, for tests; a daemon keeps it until its end.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	var clients []*monitor.Client
	for _, p := range e.pods {
		if p.client != nil {
			clients = append(clients, p.client)
		}
	}
	e.mu.Unlock()
	e.endLife()
	e.background.Wait()
	e.StopPlugins()
	for _, client := range clients {
		client.Close()
	}
	return errors.Join(e.images.Close(), e.helper.Close())
}

// inBackground runs f unless the engine is closed, which waits for it.
func (e *Engine) inBackground(f func(context.Context)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.background.Go(func() { f(e.life) })
	}
}

func (e *Engine) describe() engine.Info {
	features := e.host.Features()
	features.Checkpoint = e.criu == nil
	own := engine.HandlerFeatures{RecursiveReadonlyMounts: features.RecursiveReadonlyMounts, UserNamespaces: features.UserNamespaces}
	handlers, warnings := e.describeRuntimes(own)
	handlers[""] = own
	return engine.Info{
		Version: e.opts.Version, APIVersion: "1", CgroupDriver: e.host.CgroupDriver, CgroupV2: e.host.CgroupV2, RootDir: e.opts.RootDir,
		Handlers: handlers, Features: features, Warnings: slices.Concat(e.host.Warnings, warnings),
	}
}

// Name is "native".
func (e *Engine) Name() string { return Name }

// Info is what was found at the start.
func (e *Engine) Info() engine.Info { return e.info }

// ImageStore is the engine's images, for what the command line does with them.
func (e *Engine) ImageStore() *image.Store { return e.images }

// Watch implements engine.Engine.
func (e *Engine) Watch(ctx context.Context, sink engine.Sink) error {
	var background sync.WaitGroup
	defer background.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	e.start.Do(func() {
		if e.startErr = e.load(ctx); e.startErr != nil {
			return
		}
		if e.startErr = e.recover(ctx); e.startErr != nil {
			return
		}
		// No container is made before the plugins are there that would change it.
		if e.startErr = e.startPlugins(); e.startErr == nil {
			e.ready.Store(true)
		}
	})
	if e.startErr != nil {
		return e.startErr
	}
	background.Go(func() { e.images.Run(ctx) })
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return e.events.deliver(ctx, sink, e.snapshot)
}

// check refuses calls that come before the state is known.
func (e *Engine) check(ctx context.Context) error {
	if !e.ready.Load() {
		return fmt.Errorf("the native engine is still reading its records; try again in a moment: %w", errdefs.ErrUnavailable)
	}
	return ctx.Err()
}

func (e *Engine) snapshot() engine.Snapshot {
	snap := engine.Snapshot{Taken: time.Now()}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.pods {
		snap.Pods = append(snap.Pods, p.status())
	}
	for _, c := range e.containers {
		snap.Containers = append(snap.Containers, c.status())
	}
	return snap
}

// usersOf says which containers use an image, as their root or as a volume.
func (e *Engine) usersOf(_ context.Context, id engine.ImageID) ([]string, error) {
	return e.usersAmong(id, func(*container) bool { return true }), nil
}

// mountersOf are those whose processes may still see the image.
func (e *Engine) mountersOf(_ context.Context, id engine.ImageID) ([]string, error) {
	return e.usersAmong(id, func(c *container) bool { return c.exit == nil }), nil
}

// usersAmong is asked which containers count with mu held.
func (e *Engine) usersAmong(id engine.ImageID, counts func(*container) bool) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var users []string
	for _, c := range e.containers {
		if c.uses(id) && counts(c) {
			users = append(users, "container "+string(c.ID))
		}
	}
	for foreign, record := range e.foreign {
		if bytes.Contains(record, []byte(id)) {
			users = append(users, foreign+", which a newer version recorded")
		}
	}
	return users
}

func (e *Engine) imagesChanged() { e.events.push(func(s engine.Sink) { s.ImagesChanged() }) }

// logInterval is how often a pull that lasts says how far it is.
const logInterval = 10 * time.Second

func logProgress(p image.Progress) {
	switch p.Phase {
	case "done": // a pull says so itself, with what it got
		klog.V(4).InfoS("Image is complete", "image", p.Ref, "bytes", p.Fetched, "layers", p.Layers, "took", p.Elapsed.Round(time.Millisecond))
	case "failed":
		if errors.Is(p.Err, context.Canceled) {
			klog.InfoS("Pull cancelled, every caller left", "image", p.Ref, "bytes", p.Fetched)
			return
		}
		klog.ErrorS(p.Err, "Image could not be fetched", "image", p.Ref, "bytes", p.Fetched)
	default:
		klog.V(4).InfoS("Image progresses", "image", p.Ref, "phase", p.Phase, "bytes", p.Fetched, "of", p.Total, "layers", p.Layers, "ready", p.Ready)
	}
}

// The folders.
func (e *Engine) exits() string    { return filepath.Join(e.opts.RootDir, "exits") }
func (e *Engine) bundles() string  { return filepath.Join(e.opts.RunDir, "bundles") }
func (e *Engine) monitors() string { return filepath.Join(e.opts.RunDir, "monitors") }

// filterDir has compiled seccomp profiles.
func (e *Engine) filterDir() string { return filepath.Join(e.opts.RunDir, "seccomp") }

// stateRoot is libcontainer's own folder: `runc --root` works on it in an incident.
func (e *Engine) stateRoot() string { return filepath.Join(e.opts.RunDir, "runc") }

// ociRoot has what OCI runtimes keep of their containers.
func (e *Engine) ociRoot() string { return monitor.OCIRoot(e.stateRoot()) }

func (e *Engine) monitorDir(id engine.PodID) string {
	return filepath.Join(e.monitors(), string(id))
}

func (e *Engine) exitFile(id engine.ContainerID) string { return filepath.Join(e.exits(), string(id)) }

// fallbackExitFile is where the monitor writes an exit that the disk does not take.
func (e *Engine) fallbackExitFile(pod engine.PodID, id engine.ContainerID) string {
	return filepath.Join(e.monitorDir(pod), monitor.FallbackExitName(string(id)))
}

func (e *Engine) bundle(id engine.ContainerID) string { return filepath.Join(e.bundles(), string(id)) }

// boot names this run of the machine's kernel.
var boot = sync.OnceValue(func() string {
	id, err := process.Boot()
	if err != nil {
		// Without it every start looks like one after a reboot of which nothing is left, which is not true: say so and stop.
		klog.Fatalf("Cannot go on: %v", err)
	}
	return id
})

// quiet is for clean-ups whose failure the next one mends.
func quiet(err error, what string, id any) {
	if err != nil && !errors.Is(err, unix.ENOENT) {
		klog.ErrorS(err, "Could not "+what+"; the next removal or start tries again", "id", id)
	}
}
