package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"crishim/engine"
	"crishim/internal/treesize"
)

// usageSample is one measurement. Immutable.
type usageSample struct {
	images, containers engine.FSUsage
}

// firstSampleWait bounds waiting for the first measurement, which begins within a second of the connection to Docker.
const firstSampleWait = 2 * time.Second

// ImageFS implements engine.Images: the last measurement. The first is waited for, and ErrUnavailable if it takes long.
func (s *Store) ImageFS(ctx context.Context) (images, containers []engine.FSUsage, err error) {
	if _, err := s.docker(); err == nil {
		waiting, cancel := context.WithTimeout(ctx, firstSampleWait)
		defer cancel()
		select {
		case <-s.measured:
		case <-waiting.Done():
		}
	}
	sample := s.usage.Load()
	if sample == nil {
		return nil, nil, fmt.Errorf("disk usage was not measured yet, ask again in a moment: %w", errdefs.ErrUnavailable)
	}
	return []engine.FSUsage{sample.images}, []engine.FSUsage{sample.containers}, nil
}

// sample measures and publishes.
func (s *Store) sample(ctx context.Context, d docker, sampler *sampler) error {
	info, err := d.Info(ctx)
	if err != nil {
		return dockerError("ask Docker for its folder", err)
	}
	now := time.Now()
	root, err := layersRoot(info.DockerRootDir, info.Driver)
	if err != nil {
		return err
	}
	images, containers, err := sampler.measure(ctx, info.DockerRootDir, info.Driver)
	if err != nil {
		return fmt.Errorf("measure %s: %w", info.DockerRootDir, err)
	}
	usage := func(u treesize.Size) engine.FSUsage {
		return engine.FSUsage{Timestamp: now, Mountpoint: root, UsedBytes: u.Bytes, InodesUsed: u.Inodes}
	}
	if s.usage.Swap(&usageSample{images: usage(images), containers: usage(containers)}) == nil {
		close(s.measured)
	}
	return nil
}

// Root is the folder whose file system has the layers of images and containers, "" while that was not measured.
func (s *Store) Root() string {
	if sample := s.usage.Load(); sample != nil {
		return sample.images.Mountpoint
	}
	return ""
}

// sampler measures Docker's data folder. Layers of images never change, nor do those that Docker puts below a container's own,
// so each is walked once; what is walked at each measurement are the containers' own layers. It is used by one goroutine.
type sampler struct {
	layers map[string]treesize.Size    // by the layer's folder
	mounts map[string]containersLayers // by the container
}

// containersLayers are the names of a container's folders: its own, and the one below it with what Docker mounts over, which is
// written when the container is made.
type containersLayers struct{ own, initial string }

func newSampler() *sampler { return &sampler{} }

// layersRoot is the folder that has the layers: Docker's own, or the store of a containerd that is outside of it, perhaps on
// another disk.
func layersRoot(root, driver string) (string, error) {
	if exists(filepath.Join(root, driver)) {
		return root, nil
	}
	mounts, err := overlays()
	if err != nil {
		return "", err
	}
	if store := containerdStore(mounts, root, driver); store != "" && !strings.HasPrefix(store, root+"/") {
		return store, nil
	}
	return root, nil
}

// containerdStore is where an image store of containerd's lies, "" where there is none: the running containers tell. Without
// any it is inside Docker's folder where Docker runs its own containerd, else at the system's.
func containerdStore(mounts []*mountinfo.Info, root, driver string) string {
	snapshotter := "io.containerd.snapshotter.v1." + driver
	for _, mount := range mounts {
		if filepath.Dir(mount.Mountpoint) != filepath.Join(root, "rootfs", driver) {
			continue
		}
		if store, _, ok := strings.Cut(upperDir(mount), "/"+snapshotter+"/"); ok {
			return store
		}
	}
	for _, store := range []string{filepath.Join(root, "containerd", "daemon"), "/var/lib/containerd"} {
		if exists(filepath.Join(store, snapshotter)) {
			return store
		}
	}
	return ""
}

// measure sums up what images and what containers take under Docker's folder.
func (m *sampler) measure(ctx context.Context, root, driver string) (images, containers treesize.Size, err error) {
	if err := m.readMounts(root, driver); err != nil {
		return treesize.Size{}, treesize.Size{}, err
	}
	logs, err := walk(ctx, filepath.Join(root, "containers"), nil)
	if err != nil {
		return treesize.Size{}, treesize.Size{}, err
	}
	containers.Add(logs)
	metadata, err := walk(ctx, filepath.Join(root, "image"), nil)
	if err != nil {
		return treesize.Size{}, treesize.Size{}, err
	}
	images.Add(metadata)

	layerImages, layerContainers, err := m.layerFolders(ctx, filepath.Join(root, driver), committedLayers(root, driver))
	if err != nil {
		return treesize.Size{}, treesize.Size{}, err
	}
	images.Add(layerImages)
	containers.Add(layerContainers)
	if exists(filepath.Join(root, driver)) {
		return images, containers, nil
	}
	storeImages, storeContainers, err := measureStore(ctx, root, driver)
	images.Add(storeImages)
	containers.Add(storeContainers)
	return images, containers, err
}

// layerFolders walks a graph driver's folder, one folder per layer; committed are those of images.
func (m *sampler) layerFolders(ctx context.Context, dir string, committed map[string]bool) (images, containers treesize.Size, err error) {
	entries, err := readDir(dir)
	if err != nil {
		return treesize.Size{}, treesize.Size{}, err
	}
	own, initial := make(map[string]bool, len(m.mounts)), make(map[string]bool, len(m.mounts))
	for _, c := range m.mounts {
		own[c.own], initial[c.initial] = true, true
	}
	kept := make(map[string]treesize.Size, len(m.layers))
	for _, entry := range entries {
		if !entry.IsDir() {
			continue // dockerd keeps a device there where it can set quotas, backingFsBlockDev
		}
		name := entry.Name()
		path := filepath.Join(dir, name)
		fixed := committed[name] || initial[name]
		size, known := m.layers[path]
		if !known || !fixed {
			if size, err = walk(ctx, path, nil); err != nil {
				return treesize.Size{}, treesize.Size{}, err
			}
		}
		if fixed {
			kept[path] = size
		}
		if own[name] || initial[name] {
			containers.Add(size)
		} else {
			images.Add(size)
		}
	}
	m.layers = kept
	return images, containers, nil
}

// readMounts takes over which containers there are. Docker keeps the names of their layers in
// image/DRIVER/layerdb/mounts/CONTAINER; they stay the same.
func (m *sampler) readMounts(root, driver string) error {
	dir := filepath.Join(root, "image", driver, "layerdb", "mounts")
	entries, err := readDir(dir)
	if err != nil {
		return err
	}
	mounts := make(map[string]containersLayers, len(entries))
	for _, entry := range entries {
		layers := m.mounts[entry.Name()]
		for file, id := range map[string]*string{"mount-id": &layers.own, "init-id": &layers.initial} {
			if *id != "" {
				continue
			}
			if data, err := os.ReadFile(filepath.Join(dir, entry.Name(), file)); err == nil { // absent: removed since, or not written yet
				*id = strings.TrimSpace(string(data))
			}
		}
		mounts[entry.Name()] = layers
	}
	m.mounts = mounts
	return nil
}

// committedLayers are the names of the folders of whole image layers. What cannot be read is walked each time.
func committedLayers(root, driver string) map[string]bool {
	names := map[string]bool{}
	layers := filepath.Join(root, "image", driver, "layerdb", "sha256")
	entries, err := os.ReadDir(layers)
	if err != nil {
		return names
	}
	for _, entry := range entries {
		if id, err := os.ReadFile(filepath.Join(layers, entry.Name(), "cache-id")); err == nil {
			names[strings.TrimSpace(string(id))] = true
		}
	}
	return names
}

// measureStore walks the content and the snapshots of containerd. A snapshot that is some mount's upper layer is a
// container's; those of stopped containers cannot be told from layers and count as images.
func measureStore(ctx context.Context, root, driver string) (images, containers treesize.Size, err error) {
	mounts, err := overlays()
	if err != nil {
		return treesize.Size{}, treesize.Size{}, err
	}
	store := containerdStore(mounts, root, driver)
	if store == "" {
		return treesize.Size{}, treesize.Size{}, nil
	}
	snapshots := filepath.Join(store, "io.containerd.snapshotter.v1."+driver)
	upper := map[string]bool{}
	for _, mount := range mounts {
		if dir := upperDir(mount); strings.HasPrefix(dir, snapshots+"/") {
			upper[dir] = true
		}
	}
	for dir := range upper {
		size, err := walk(ctx, dir, nil)
		if err != nil {
			return treesize.Size{}, treesize.Size{}, err
		}
		containers.Add(size)
	}
	for _, dir := range []string{snapshots, filepath.Join(store, "io.containerd.content.v1.content")} {
		size, err := walk(ctx, dir, upper)
		if err != nil {
			return treesize.Size{}, treesize.Size{}, err
		}
		images.Add(size)
	}
	return images, containers, nil
}

func overlays() ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return mounts, nil
}

// upperDir is the upper layer of an overlay, "" for one that has none.
func upperDir(mount *mountinfo.Info) string {
	for option := range strings.SplitSeq(mount.VFSOptions, ",") {
		if path, ok := strings.CutPrefix(option, "upperdir="); ok {
			return path
		}
	}
	return ""
}

// walk sums what a tree takes, without the folders in skip. An absent one takes nothing.
func walk(ctx context.Context, dir string, skip map[string]bool) (treesize.Size, error) {
	size, err := treesize.Of(ctx, dir, treesize.Options{Gently: true, Skip: slices.Collect(maps.Keys(skip))})
	if errors.Is(err, fs.ErrNotExist) {
		return treesize.Size{}, nil
	}
	return size, err
}

func readDir(dir string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
