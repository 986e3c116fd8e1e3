package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/internal/openat2"
)

// prepareMounts makes, below key, the mounts of spec that Docker cannot make itself.
func (e *Engine) prepareMounts(ctx context.Context, spec *engine.ContainerSpec, key string, f *facts) error {
	if err := failpoint.Around("mounts.open", func() error { return e.mounts.open(key) }); err != nil {
		return fmt.Errorf("prepare mounts: %w", err)
	}
	held := map[engine.ImageID]bool{}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if !prepared(m, spec.Handler, f) {
			continue
		}
		var err error
		if m.Image == nil {
			err = failpoint.Around("mounts.bind", func() error { return e.mounts.bind(key, i, m) })
		} else {
			if !held[m.Image.ID] {
				err = e.holdImage(ctx, key, i, m.Image.ID)
				held[m.Image.ID] = true
			}
			if err == nil {
				err = failpoint.Around("mounts.image", func() error { return e.mountImage(ctx, key, i, m) })
			}
		}
		if err != nil {
			return fmt.Errorf("mount %.200s: %w", m.ContainerPath, err)
		}
	}
	return nil
}

// holderPrefix, KEY, "-" and a number are the name of a container that is never started: it keeps the engine from
// removing the layers of an image that another container mounts. Images can set labels, but not names.
const holderPrefix = "crishim-holder-"

func (e *Engine) holdImage(ctx context.Context, key string, n int, id engine.ImageID) error {
	return e.do(ctx, "hold image "+string(id), slowLimit, func(ctx context.Context, s *session) error {
		config := &container.Config{
			Image: string(id), Cmd: []string{"/"}, NetworkDisabled: true,
			Labels: map[string]string{labelHolder: e.opts.RootDir, labelType: ""},
		}
		_, err := s.cli.ContainerCreate(ctx, config, &container.HostConfig{NetworkMode: "none"}, nil, nil, holderPrefix+key+"-"+strconv.Itoa(n))
		return err
	})
}

// removeHolders removes those holders whose key is gone.
func (e *Engine) removeHolders(ctx context.Context, s *session, gone func(key string) bool) error {
	all, err := s.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", labelHolder+"="+e.opts.RootDir))})
	if err != nil {
		return fmt.Errorf("list the holders of images: %w", err)
	}
	var errs []error
	for i := range all {
		name, ok := strings.CutPrefix(strings.TrimPrefix(summaryName(&all[i]), "/"), holderPrefix)
		key, _, _ := strings.Cut(name, "-")
		if ok && validKey(key) && gone(key) && validID(all[i].ID) {
			errs = append(errs, removeContainer(ctx, s, all[i].ID))
		}
	}
	return errors.Join(errs...)
}

// dropMounts removes everything that was prepared for one container. OK when there is nothing.
func (e *Engine) dropMounts(ctx context.Context, key string) error {
	if !validKey(key) {
		return nil
	}
	// Who removes a container and who is told of its end come at once: the second finds nothing, instead of asking the
	// engine again and again for a removal that it is busy with.
	unlock, err := e.mounts.dropping.Lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(e.mounts.unmount(key), e.do(ctx, "release the images of prepared mounts", slowLimit, func(ctx context.Context, s *session) error {
		return e.removeHolders(ctx, s, func(k string) bool { return k == key })
	}))
}

// dropMountsOf is dropMounts for a container that is gone from the engine.
func (e *Engine) dropMountsOf(ctx context.Context, id engine.ContainerID) error {
	if err := e.dropMounts(ctx, e.mounts.keyOf(id)); err != nil {
		return err
	}
	e.mounts.forget(id)
	return nil
}

// payMounts sweeps where the taking back of a creation left something.
func (e *Engine) payMounts(ctx context.Context) error {
	if !e.mounts.owed.CompareAndSwap(true, false) {
		return nil
	}
	err := errors.Join(e.mounts.sweep(), e.do(ctx, "release the images of prepared mounts", slowLimit, func(ctx context.Context, s *session) error {
		return e.removeHolders(ctx, s, e.mounts.unused)
	}))
	if err != nil {
		e.mounts.owed.Store(true)
	}
	return err
}

// sweepMounts removes what a crash, or a removal behind our back, left of prepared mounts.
func (e *Engine) sweepMounts(ctx context.Context, s *session) {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	err := errors.Join(e.mounts.sweep(), e.removeHolders(ctx, s, e.mounts.unused))
	if err != nil && ctx.Err() == nil {
		klog.ErrorS(err, "Cannot remove mounts that no container uses")
	}
}

// mountImage prepares the mount n of an image, or of a folder in it: a read-only overlay of its layers.
func (e *Engine) mountImage(ctx context.Context, key string, n int, m *engine.Mount) error {
	layers, err := ask(ctx, e, "inspect image "+string(m.Image.ID), quickLimit, func(ctx context.Context, s *session) ([]string, error) {
		in, err := s.cli.ImageInspect(ctx, string(m.Image.ID))
		if err != nil {
			return nil, err
		}
		return imageLayers(&in, s.facts.rootDir)
	})
	if err != nil {
		return err
	}
	tree, err := e.mounts.overlay(key, layers, m.ImageSubPath)
	if err != nil {
		return fmt.Errorf("image %s: %w", m.Image.ID, err)
	}
	defer func() { _ = unix.Close(tree) }()
	if set := optionAttributes(m.Options); set != 0 {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: set}); err != nil {
			return fmt.Errorf("set mount attributes: %w", err)
		}
	}
	return e.mounts.attach(key, n, tree)
}

// imageLayers are the folders of an image's layers in the overlay2 store, the topmost first.
func imageLayers(in *image.InspectResponse, rootDir string) ([]string, error) {
	data := in.GraphDriver.Data
	var layers []string
	for _, dir := range append([]string{data["UpperDir"]}, strings.Split(data["LowerDir"], ":")...) {
		if dir == "" {
			continue
		}
		if store := filepath.Join(rootDir, "overlay2"); filepath.Clean(dir) != dir || filepath.Dir(filepath.Dir(dir)) != store || filepath.Base(dir) != "diff" {
			return nil, invalid("image %s: its layer %.200q is not in %s", in.ID, dir, store)
		}
		layers = append(layers, dir)
	}
	if len(layers) == 0 {
		return nil, invalid("image %s has no layers", in.ID)
	}
	return layers, nil
}

// overlay is a detached, read-only mount of a folder in what layers (the topmost first) make together. The layers are
// named by descriptors: up to Docker's 125 paths would not fit into the page that mount(2) takes, and the calls without
// that limit came with Linux 6.5.
func (h *hostMounts) overlay(key string, layers []string, subPath string) (tree int, err error) {
	target, empty := filepath.Join(h.path(key), "image"), filepath.Join(h.path(key), "empty")
	for _, dir := range []string{target, empty} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return -1, err
		}
	}
	// An overlay without a writable layer has two layers at least.
	layers = append(layers[:len(layers):len(layers)], empty)
	lower := make([]string, 0, len(layers))
	for _, layer := range layers {
		fd, err := unix.Open(layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("layer %s: %w", layer, err)
		}
		defer func() { _ = unix.Close(fd) }()
		lower = append(lower, "/proc/self/fd/"+strconv.Itoa(fd))
	}
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		return -1, fmt.Errorf("mount an overlay of %d layers: %w", len(layers)-1, err)
	}
	// What stays attached when this fails goes with the place of key.
	if err := failpoint.Hit("mounts.image.overlay"); err != nil {
		return -1, err
	}
	if tree, err = copyFolder(target, subPath); err != nil {
		return -1, err
	}
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		_ = unix.Close(tree)
		return -1, fmt.Errorf("unmount %s: %w", target, err)
	}
	return tree, nil
}

// copyFolder copies the mount at target, at a folder in it. Links in it lead to places in it, whatever they name.
func copyFolder(target, subPath string) (int, error) {
	root, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := openat2.Open(root, "./"+subPath, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, invalid("the image has no folder %.200q: %v", subPath, err)
	}
	defer func() { _ = unix.Close(fd) }()
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("copy the mount of an image: %w", err)
	}
	return tree, nil
}
