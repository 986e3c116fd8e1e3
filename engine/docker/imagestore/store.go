// Package imagestore is engine.Images on a Docker Engine, and the pause image.
//
// The engine makes one Store, calls Run for its background work and Invalidate at every image event and reconnect.
// Lists and look-ups are answered from memory while nothing changed; pulls of the same thing are joined; a registry that
// has a hosts.toml (package hosts) is pulled through loopback (package pullthrough) and everything else by Docker itself.
//
// An image's id is what Docker's inspect calls Id, on every image store. References under which an image is held for our
// own reasons are never shown.
package imagestore

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/docker/imagestore/pullthrough"
	"crishim/internal/flight"
	"crishim/internal/keymutex"
)

// docker is what this package needs of *client.Client.
type docker interface {
	ImageList(context.Context, image.ListOptions) ([]image.Summary, error)
	ImageInspect(context.Context, string, ...client.ImageInspectOption) (image.InspectResponse, error)
	ImagePull(context.Context, string, image.PullOptions) (io.ReadCloser, error)
	ImageTag(ctx context.Context, source, target string) error
	ImageRemove(context.Context, string, image.RemoveOptions) ([]image.DeleteResponse, error)
	ImageLoad(context.Context, io.Reader, ...client.ImageLoadOption) (image.LoadResponse, error)
	ImageSave(context.Context, []string, ...client.ImageSaveOption) (io.ReadCloser, error)
	ContainerList(context.Context, container.ListOptions) ([]container.Summary, error)
	Info(context.Context) (system.Info, error)
}

// Options of a Store.
type Options struct {
	// Client is the connection in use, nil while there is none. It may change from call to call.
	Client func() *client.Client
	// RegistryConfigDirs are folders in the form of containerd's certs.d, the first that has a folder for a registry counts.
	RegistryConfigDirs []string
	// NodeAuth are config.json files of Docker's form, with credential helpers, the first that knows a registry counts. They
	// are used where a pull comes without credentials, and for mirrors. Absent files are fine.
	NodeAuth []string
	// TokenServers (HOST or HOST:PORT) get the credentials also of registries on other domains.
	TokenServers []string
	// StateDir is a folder of this package's own for records that must survive a reboot. It is made if absent.
	StateDir string
	// PauseImage is always pinned. Pinned are further references or ids.
	PauseImage string
	Pinned     []string
	// InPods says that a pod was made from an image, which is pinned then; nil where nobody knows.
	InPods func(engine.ImageID) bool
	// NoProgress bounds the pull of the pause image as PullSpec.NoProgress does others. 0 never does.
	NoProgress time.Duration
	// LogInterval is how often the log says how far a pull is. 0 is never.
	LogInterval time.Duration
	// SampleInterval is how often disk usage is measured. 0 is DefaultSampleInterval.
	SampleInterval time.Duration
}

// DefaultSampleInterval is how often disk usage is measured unless told otherwise.
const DefaultSampleInterval = time.Minute

// Store is engine.Images. Its methods may be called at once from many goroutines.
type Store struct {
	options Options
	mirrors pullthrough.Server
	records *records

	// generation counts what may have changed the images; a cache of an older one is not used.
	generation atomic.Uint64
	cache      atomic.Pointer[snapshot]
	loading    chan struct{} // holds a value while one goroutine fills the cache

	pulls *flight.Group[*progress, *engine.Image]
	pause keymutex.Mutex[string]
	// removals queue those of one image.
	removals keymutex.Mutex[engine.ImageID]

	usage    atomic.Pointer[usageSample]
	measured chan struct{} // closed by the first measurement
	wakeUp   chan struct{} // capacity 1

	mu       sync.Mutex
	pinned   []string
	hostDirs []string
	// pauseIDs are the images that EnsurePause answered: pods may still run from one whose tag moved on.
	pauseIDs map[engine.ImageID]bool
}

var _ engine.Images = (*Store)(nil)

// New makes a Store. Records that cannot be read are set aside and logged.
func New(options Options) *Store {
	if options.SampleInterval == 0 {
		options.SampleInterval = DefaultSampleInterval
	}
	return &Store{
		options:  options,
		pulls:    flight.New[*engine.Image](newProgress),
		records:  loadRecords(options.StateDir),
		loading:  make(chan struct{}, 1),
		measured: make(chan struct{}),
		wakeUp:   make(chan struct{}, 1),
		pinned:   slices.Clone(options.Pinned),
		hostDirs: slices.Clone(options.RegistryConfigDirs),
		pauseIDs: map[engine.ImageID]bool{},
	}
}

// Invalidate says that images may have changed: at an image event, and after a gap in the events.
func (s *Store) Invalidate() {
	s.generation.Add(1)
	select {
	case s.wakeUp <- struct{}{}:
	default:
	}
}

// SetPinned replaces the pinned references and ids, beside the pause image.
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

// Run measures disk usage, clears what a crash left behind, and looks again at what could not be read, until ctx ends.
func (s *Store) Run(ctx context.Context) {
	sampler := newSampler()
	for {
		wait := s.options.SampleInterval
		if err := s.background(ctx, sampler); err != nil && ctx.Err() == nil {
			if !errdefs.IsUnavailable(err) {
				klog.ErrorS(err, "Measuring the image store failed")
			}
			wait = min(wait, time.Second) // most often Docker is not there yet: the first sample is waited for
		}
		if !s.pauseBetween(ctx, wait) {
			return
		}
	}
}

// background is one round of Run.
func (s *Store) background(ctx context.Context, sampler *sampler) error {
	d, err := s.docker()
	if err != nil {
		return err
	}
	s.lookAgain(ctx, d)
	if err := s.sweep(ctx, d); err != nil {
		return err
	}
	return s.sample(ctx, d, sampler)
}

// pauseBetween waits for the next round: wait, or less when images changed. It returns false when ctx ended.
func (s *Store) pauseBetween(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait / 10) // however often images change, walks stay apart
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	timer.Reset(wait - wait/10)
	select {
	case <-timer.C:
	case <-s.wakeUp:
	case <-ctx.Done():
		return false
	}
	return true
}

// docker is the connection in use.
func (s *Store) docker() (docker, error) {
	c := s.options.Client()
	if c == nil {
		return nil, fmt.Errorf("there is no connection to the Docker Engine now: %w", errdefs.ErrUnavailable)
	}
	return c, nil
}

// dockerError says what was being done; a Docker Engine that does not answer is ErrUnavailable, one without space on its
// disk ErrResourceExhausted.
func dockerError(doing string, err error) error {
	if client.IsErrConnectionFailed(err) {
		return fmt.Errorf("%s: %w: %w", doing, err, errdefs.ErrUnavailable)
	}
	if DiskFull(err) {
		return fmt.Errorf("%s: %w: %w", doing, err, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
