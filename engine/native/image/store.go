// Package image is the native engine's image store: what was pulled or imported, verified, unpacked into layers that
// overlay can stack, and kept so that it can be exported again byte for byte.
//
// The engine opens one Store on a folder of its own, calls Run for its background work, and holds an image (Hold) from
// looking it up until a record of its own names it as used (Options.InUse). A store is one process's at a time.
//
// Below the root: blobs/ALGORITHM/HEX is content as registries serve it, layers/DIFFID/fs a layer in the form of overlay
// (a whiteout is a character device 0:0, an opaque folder has trusted.overlay.opaque=y), inherited/ID/fs a layer of folders that lies
// on those of an image (unpack.Inherit), records/ID.json an image, tmp/ what is under way. What a later step relies on is durable before that step: a crash leaves content that no record names,
// and Run removes it. An image's id is the digest of its config, as on a Docker Engine.
//
// A layer's folder is only replaced, when it is damaged, while nobody can have it mounted nor come to it: first LayerDirs stops
// naming it, then everybody is asked who may have been told of it before (Options.Mounted, Hold), for every image that has the layer.
// Where there is somebody it stays as it is. Whoever mounts layers is one of Mounted's before asking for LayerDirs. Images are
// listed all the while, and their records stay on disk.
package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/space"
	"crishim/internal/flight"
	"crishim/internal/keymutex"
)

// Options of a Store.
type Options struct {
	// Root is a folder of this package's own that survives a reboot. It is made if absent, mode 0700.
	Root string
	// RegistryConfigDirs are folders in the form of containerd's certs.d, the first that has a folder for a registry counts.
	RegistryConfigDirs []string
	// NodeAuth are config.json files of Docker's form, with credential helpers, the first that knows a registry counts.
	NodeAuth []string
	// TokenServers (HOST or HOST:PORT) get the credentials also of registries on other domains.
	TokenServers []string
	// Pinned are references or ids that RemoveImage is free to remove but that are reported as pinned.
	Pinned []string
	// Platform to take out of a multi-platform image. The zero value is this machine's.
	Platform ocispec.Platform
	// Limits against hostile images. The zero value is DefaultLimits.
	Limits Limits
	// InUse says who uses an image, in words for an error ("container ID"); none when it may go. It may be nil.
	InUse func(ctx context.Context, id engine.ImageID) (users []string, err error)
	// Mounted says, likewise, who has layers of an image mounted, or is about to ask for LayerDirs, so that they cannot be replaced;
	// nil is InUse. A container that has ended uses its image, for nobody is to remove it, and mounts nothing.
	Mounted func(ctx context.Context, id engine.ImageID) (users []string, err error)
	// Changed is called after an image was added, tagged or removed. It may be nil, and must not call the Store.
	Changed func()
	// Progress is told of pulls and imports, see Progress. It may be nil, and must not block.
	Progress func(Progress)
	// LogInterval is how often the log says how far a pull is. 0 is never.
	LogInterval time.Duration
	// SampleInterval is how often usage is sampled and unused content is looked for. 0 is DefaultSampleInterval.
	SampleInterval time.Duration
	// KeepUnused is how long content that no image uses stays for a pull to go on with. 0 is DefaultKeepUnused.
	KeepUnused time.Duration
}

// Defaults of Options.
const (
	DefaultSampleInterval = 30 * time.Second
	DefaultKeepUnused     = time.Hour
)

// Progress is one pull or import at one moment: at its start, once a second while it lasts, and at its end.
type Progress struct {
	// Ref is what was asked for, or what the import names.
	Ref string
	// Phase is "resolving", "fetching", "unpacking", "done" or "failed".
	Phase string
	// Fetched and Total are bytes of compressed content; what was here before counts as fetched. Total is 0 until known.
	Fetched, Total int64
	// Unpacked are bytes out of the decompressor.
	Unpacked int64
	// Layers are all, Ready those that are in place.
	Layers, Ready int
	Elapsed       time.Duration
	// Err is why Phase is "failed".
	Err error `json:"-"`
}

// Store is the native engine's part of engine.Images. Its methods may be called at once from many goroutines.
type Store struct {
	options Options
	root    string
	lock    *os.File

	pulls  *flight.Group[*progress, engine.ImageID]
	layers *flight.Group[*progress, struct{}]
	// fetching orders who writes the part of a blob.
	fetching keymutex.Mutex[digest.Digest]
	// unpackers bounds how many layers are unpacked at once, over all pulls.
	unpackers chan struct{}
	syncs     syncer
	counts    counts
	// using orders what decides whether an image goes or stays, see Hold.
	using keymutex.Mutex[engine.ImageID]
	// looking orders who looks at a layer, and mends it.
	looking keymutex.Mutex[digest.Digest]
	// repairing is one repair at a time: an image may have layers that two of them are at. Who holds it knows all layers in place.
	repairing keymutex.Mutex[struct{}]

	usage atomic.Pointer[engine.FSUsage]
	temp  atomic.Uint64 // names in tmp/
	ran   atomic.Bool   // Run was called
	left  []string      // what a crash left there, for Run to remove, or Close

	// placing orders layers getting into their place.
	placing sync.Mutex
	// recording orders changes of records. It is taken before mu.
	recording sync.Mutex

	mu       sync.Mutex
	watchers map[*func(Progress)]struct{} // of WatchProgress
	pinned   []string
	hostDirs []string
	// foreign is what records of a newer version name; Open fills it.
	foreign map[digest.Digest]bool
	images  map[engine.ImageID]*stored // immutable values
	aside   map[string]bool            // records that were set aside, as of the start
	byName  map[string]engine.ImageID  // full names with tag or digest
	tagSeq  uint64
	holds   map[engine.ImageID]map[string]int
	content content
}

var _ engine.Images = (*Store)(nil)

// Open opens the store of a folder. What a crash left behind is cleared by Run. It fails with ErrFailedPrecondition while another
// process has the store open. A record that cannot be read, or whose content is not whole, is set aside and logged: that
// image is absent and can be pulled again.
func Open(options Options) (*Store, error) {
	options.complete()
	s := &Store{
		options: options, root: options.Root,
		pulls: flight.New[engine.ImageID](newProgress), layers: flight.New[struct{}](newProgress),
		unpackers: make(chan struct{}, runtime.GOMAXPROCS(0)),
		pinned:    slices.Clone(options.Pinned),
		hostDirs:  slices.Clone(options.RegistryConfigDirs),
		watchers:  map[*func(Progress)]struct{}{},
		foreign:   map[digest.Digest]bool{},
		images:    map[engine.ImageID]*stored{},
		aside:     map[string]bool{},
		byName:    map[string]engine.ImageID{},
		holds:     map[engine.ImageID]map[string]int{},
	}
	for _, dir := range []string{s.root, s.path(blobsDir, string(digest.SHA256)), s.path(partsDir), s.path(layersDir), s.path(inheritedDir), s.path(recordsDir), s.path(tempDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open the image store: %w", err)
		}
	}
	// Layers hold set-id programs: nobody else may come near them.
	if err := os.Chmod(s.root, 0o700); err != nil && !errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	lock, err := lockStore(s.path(lockFile))
	if err != nil {
		return nil, err
	}
	s.lock = lock
	if err := s.load(); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("open the image store %s: %w", s.root, err)
	}
	s.sample()
	return s, nil
}

func (o *Options) complete() {
	if o.Mounted == nil {
		o.Mounted = o.InUse
	}
	if o.Limits == (Limits{}) {
		o.Limits = DefaultLimits
	}
	if o.Platform.OS == "" {
		o.Platform = hostPlatform()
	}
	if o.SampleInterval == 0 {
		o.SampleInterval = DefaultSampleInterval
	}
	if o.KeepUnused == 0 {
		o.KeepUnused = DefaultKeepUnused
	}
}

// Close gives the store up. Callers must have got their answers; what they left in the middle is waited for here, and Run must have
// ended. Where it was not called, as by a command, what a crash left is removed now.
func (s *Store) Close() error {
	s.pulls.Wait()
	s.layers.Wait()
	if !s.ran.Load() {
		s.removeLeft(context.Background())
	}
	return s.lock.Close()
}

// The folders and files of a store.
const (
	blobsDir     = "blobs"
	partsDir     = "parts" // blobs under way, by digest, to go on with
	layersDir    = "layers"
	inheritedDir = "inherited" // layers of folders, by image
	recordsDir   = "records"
	tempDir      = "tmp"
	lockFile     = "lock"
)

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.root}, parts...)...)
}

// lockStore takes the store for this process; the kernel gives it back however the process ends.
func lockStore(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) { // the disk became read-only: what runs is served all the same
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the image store: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("the image store %s is in use by a running daemon or another command: %w", filepath.Dir(path), errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// SetPinned replaces the pinned references and ids.
func (s *Store) SetPinned(refs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = slices.Clone(refs)
}

// ReloadHosts replaces the folders of hosts.toml files. The files themselves are read at each pull.
func (s *Store) ReloadHosts(dirs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hostDirs = slices.Clone(dirs)
}

// Run samples usage and removes what nobody uses any more, until ctx ends. It is called once.
func (s *Store) Run(ctx context.Context) {
	s.ran.Store(true)
	s.removeLeft(ctx)
	ticker := time.NewTicker(s.options.SampleInterval)
	defer ticker.Stop()
	for {
		if err := s.Collect(ctx, s.keepUnused()); err != nil {
			klog.ErrorS(err, "Removing unused content of the image store failed")
		}
		s.sample()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// crowded is the part of the disk below which unused content is not kept: a kubelet frees images there, and then evicts pods
// (imagefs.available), and does not see what belongs to no image.
const crowded = 15. / 100

// keepUnused is how long unused content is kept to go on with. A pull that did not fit has left some.
func (s *Store) keepUnused() time.Duration {
	dir, err := os.Open(s.options.Root)
	if err != nil {
		return s.options.KeepUnused
	}
	defer func() { _ = dir.Close() }()
	if left, size, err := space.On(dir, 0).Left(); err == nil && float64(left) < crowded*float64(size) {
		return 0
	}
	return s.options.KeepUnused
}

// changed tells the world that images are not what they were.
func (s *Store) changed() {
	s.sample()
	if s.options.Changed != nil {
		s.options.Changed()
	}
}
