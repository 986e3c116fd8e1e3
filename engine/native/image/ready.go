package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/treesize"
)

// Ready looks, before the first use of an image since the start, whether its layers still have as many files and bytes of content as
// when they were unpacked; of what rotted without that, Verify tells. What is damaged is brought in anew, as by Repair: an
// error says what is wrong, and why it stays so. It says nothing of an image that is absent.
func (s *Store) Ready(ctx context.Context, id engine.ImageID) error {
	unseen := s.unseen(id)
	if len(unseen) == 0 {
		return nil
	}
	for _, d := range unseen {
		unlock, err := s.looking.Lock(ctx, d)
		if err != nil {
			return fmt.Errorf("wait for another look at layer %s: %w", d, err)
		}
		defer unlock()
	}
	if damaged, err := s.damaged(ctx, id); err != nil || len(damaged) == 0 {
		return err
	}
	unlock, err := s.lockRepairs(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	damaged, err := s.damaged(ctx, id) // nobody is at them any more, and who was may have mended them
	if err != nil || len(damaged) == 0 {
		return err
	}
	klog.ErrorS(nil, "Layers of an image are damaged and brought in anew", "image", id, "first", damaged[0].String(), "layers", len(damaged))
	blobs, err := s.unsound(ctx, id, damaged)
	if err != nil {
		return fmt.Errorf("look at what the damaged layers of image %s were unpacked from: %w", id, err)
	}
	// It does not end with its caller: what was brought in so far would be in vain.
	for _, m := range s.repair(context.WithoutCancel(ctx), append(damaged, blobs...)) {
		if m.image.ID == id && m.err != nil {
			return fmt.Errorf("image %s is damaged (%v) and could not be mended: %w", id, &damaged[0], m.err)
		}
	}
	return nil
}

// damaged are the layers of an image that nobody has looked at yet and that are damaged, or are being replaced.
func (s *Store) damaged(ctx context.Context, id engine.ImageID) (damaged []Damage, err error) {
	for _, d := range s.unseen(id) {
		what, err := s.look(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("look at layer %s of image %s: %w", d, id, err)
		}
		if what != "" {
			damaged = append(damaged, Damage{Digest: d, Layer: true, What: what})
		}
	}
	return damaged, nil
}

// unsound are the damaged ones among the blobs that damaged layers of an image would be unpacked from: they have to come from where
// the image was pulled, and where that is not known, or away, it stays as it is.
func (s *Store) unsound(ctx context.Context, id engine.ImageID, damaged []Damage) (blobs []Damage, err error) {
	s.mu.Lock()
	img := s.images[id]
	if img == nil {
		s.mu.Unlock()
		return nil, nil
	}
	rec := img.record
	s.mu.Unlock()
	v := &verification{store: s}
	for i := range rec.Manifests {
		for n, layer := range rec.Manifests[i].Layers {
			if n >= len(rec.DiffIDs) || !slices.ContainsFunc(damaged, func(d Damage) bool { return d.Digest == rec.DiffIDs[n] }) {
				continue
			}
			what, err := v.readWhole(ctx, layer)
			if err != nil {
				return nil, err
			}
			if what != "" {
				blobs = append(blobs, Damage{Digest: layer.Digest, What: what})
			}
		}
	}
	return blobs, nil
}

// unseen are the layers of an image that nobody has looked at yet, in an order that is everybody's.
func (s *Store) unseen(id engine.ImageID) []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[id]
	if img == nil {
		return nil
	}
	var unseen []digest.Digest
	for _, d := range img.record.DiffIDs {
		if l := s.content.layers[d]; l == nil || s.content.looked[d] != l {
			unseen = append(unseen, d)
		}
	}
	slices.Sort(unseen)
	return slices.Compact(unseen)
}

// lookers bounds how many layers are looked at side by side: after a boot all pods begin at once, on a cold disk.
var lookers = make(chan struct{}, 4)

// look says what a layer lacks, or has more, "" where that is nothing.
func (s *Store) look(ctx context.Context, d digest.Digest) (string, error) {
	s.mu.Lock()
	l := s.content.layers[d]
	s.mu.Unlock()
	if l == nil {
		return "it is being replaced", nil
	}
	if l.Content == 0 { // it was not counted when it was unpacked, or has nothing: only its absence shows
		if _, err := os.Lstat(s.layerTree(d)); errors.Is(err, os.ErrNotExist) {
			return "it is absent", nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.content.looked[d] = l
		return "", nil
	}
	select {
	case lookers <- struct{}{}:
		defer func() { <-lookers }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	now, err := treesize.Of(ctx, s.layerTree(d), treesize.Options{})
	if errors.Is(err, os.ErrNotExist) {
		return "it is absent", nil
	}
	if err != nil {
		return "", err
	}
	files := int64(now.Inodes) + 1 // its own folder was counted, too
	switch {
	case files != l.Inodes:
		return fmt.Sprintf("it has %d files in place of %d", files, l.Inodes), nil
	case int64(now.Content) != l.Content:
		return fmt.Sprintf("its files have %d bytes in place of %d", now.Content, l.Content), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content.looked[d] = l
	return "", nil
}
