package imagestore

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/docker/pause"
	"crishim/registry"
)

// pausePullTimeout leaves a RunPodSandbox, which the kubelet gives two minutes, time to go on without a registry.
const pausePullTimeout = 45 * time.Second

// EnsurePause returns the id of the pause image, which is pinned from then on. Where it is absent it is pulled, and where
// that fails, or ref is pause.DefaultRef, the built-in one is loaded under the name ref; a ref with a digest cannot be
// made, its pull's error is returned.
func (s *Store) EnsurePause(ctx context.Context, ref string) (engine.ImageID, error) {
	unlock, err := s.pause.Lock(ctx, ref)
	if err != nil {
		return "", fmt.Errorf("wait for the pause image: %w", err)
	}
	defer unlock()
	img, err := s.Image(ctx, ref)
	if errdefs.IsNotFound(err) {
		img, err = s.obtainPause(ctx, ref)
	}
	if err != nil {
		return "", fmt.Errorf("get the pause image: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pauseIDs[img.ID] = true
	return img.ID, nil
}

func (s *Store) obtainPause(ctx context.Context, ref string) (*engine.Image, error) {
	if ref != pause.DefaultRef {
		pullCtx, cancel := context.WithTimeout(ctx, pausePullTimeout)
		defer cancel()
		img, err := s.PullImage(pullCtx, &engine.PullSpec{Ref: ref, NoProgress: s.options.NoProgress})
		if err == nil || ctx.Err() != nil {
			return img, err
		}
		named, perr := registry.ParseName(ref)
		if perr != nil {
			return nil, perr
		}
		if _, digested := named.(reference.Canonical); digested {
			return nil, err
		}
		klog.InfoS("The pause image cannot be pulled, the built-in one takes its place", "image", ref, "err", err)
	}
	return s.loadPause(ctx, ref)
}

// loadPause loads the built-in pause image under the name ref.
func (s *Store) loadPause(ctx context.Context, ref string) (*engine.Image, error) {
	named, err := registry.ParseName(ref)
	if err != nil {
		return nil, err
	}
	archive, err := pause.Archive(reference.FamiliarString(named))
	if err != nil {
		return nil, err
	}
	d, err := s.docker()
	if err != nil {
		return nil, err
	}
	defer s.Invalidate()
	resp, err := d.ImageLoad(ctx, bytes.NewReader(archive))
	if err != nil {
		return nil, dockerError("load the built-in pause image", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := newProgress().follow(resp.Body); err != nil {
		return nil, fmt.Errorf("load the built-in pause image: %w: %w", err, errdefs.ErrInternal)
	}
	return inspect(ctx, d, named.String())
}
