package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/image/unpack"
	"crishim/internal/atomicfile"
	"crishim/internal/process"
	"crishim/internal/treesize"
)

func (s *Store) inheritedPath(id engine.ImageID) string {
	return s.path(inheritedDir, digest.Digest(id).Encoded())
}

func (s *Store) inheritedTree(id engine.ImageID) string {
	return filepath.Join(s.inheritedPath(id), layerTree)
}

// inherited is the folder of the layer that lies on an image's others and has what folders of these inherit (unpack.Inherit), "" where
// none does. It is the image's own, as layers are shared by images in which the same folder inherits something else. It is made when
// the image's layers are first asked for, of nothing but these: images that an earlier version pulled get theirs, too, and a crash before
// it is in its place costs nothing.
func (s *Store) inherited(ctx context.Context, id engine.ImageID) (string, error) {
	if !s.inherits(id) {
		return "", nil
	}
	unlock, err := s.using.Lock(ctx, id) // while it is removed or repaired, its layers are not what they were
	if err != nil {
		return "", fmt.Errorf("wait for another use of image %s: %w", id, err)
	}
	defer unlock()
	s.mu.Lock()
	img := s.images[id]
	have, known := s.content.inherited[id]
	var layers []unpack.Stacked
	if img != nil {
		layers = s.stacked(img)
	}
	s.mu.Unlock()
	if img == nil {
		return "", notFound(string(id))
	}
	if known && have == nil {
		return "", nil
	}
	if known {
		_, err := os.Lstat(s.inheritedTree(id))
		if !errors.Is(err, os.ErrNotExist) {
			return s.inheritedTree(id), err
		}
	}
	made, err := s.makeInherited(ctx, id, layers)
	if err != nil {
		return "", diskError(fmt.Sprintf("make what folders of image %s inherit", id), err)
	}
	s.mu.Lock()
	s.content.inherited[id] = made
	s.mu.Unlock()
	if made == nil {
		return "", nil
	}
	return s.inheritedTree(id), nil
}

// inherits says whether a layer may inherit from another: none of most images does.
func (s *Store) inherits(id engine.ImageID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[id]
	if img == nil {
		return false
	}
	for i, l := range s.stacked(img) {
		if i > 0 && len(l.Implied) > 0 {
			return true
		}
	}
	return false
}

// stacked are an image's layers, lowest first. The caller holds s.mu.
func (s *Store) stacked(img *stored) []unpack.Stacked {
	var all []unpack.Stacked
	for _, d := range img.record.DiffIDs {
		l := unpack.Stacked{Dir: s.layerTree(d)}
		if have := cmp.Or(s.content.layers[d], s.content.replaced[d]); have != nil {
			l.Implied = have.Implied
		}
		all = append(all, l)
	}
	return all
}

// makeInherited makes the layer and puts it into its place once all of it is on disk.
func (s *Store) makeInherited(ctx context.Context, id engine.ImageID, layers []unpack.Stacked) (*usage, error) {
	temp, failed := s.tempPath(), s.syncs.failed.Load()
	defer func() { _ = os.RemoveAll(temp) }() // what stays is removed at the next start
	tree, err := makeTree(temp)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tree.Close() }()
	if made, err := unpack.Inherit(ctx, tree, layers); err != nil || !made {
		return nil, err
	}
	if err := s.syncs.sync(temp, failed); err != nil {
		return nil, err
	}
	size, err := treesize.Of(ctx, temp, treesize.Options{})
	if err != nil {
		return nil, err
	}
	if err := s.place(temp, s.inheritedPath(id)); err != nil {
		return nil, err
	}
	return &usage{bytes: int64(size.Bytes), inodes: int64(size.Inodes)}, atomicfile.SyncDir(s.path(inheritedDir))
}

// loadInherited finds what there is.
func (s *Store) loadInherited() error {
	s.content.inherited = map[engine.ImageID]*usage{}
	ids, err := s.inheriting()
	if err != nil {
		return err
	}
	for _, id := range ids {
		size, err := treesize.Of(context.Background(), s.inheritedPath(id), treesize.Options{})
		if process.Starved(err) {
			return fmt.Errorf("look at what folders of image %s inherit: %w", id, err)
		}
		if err != nil {
			klog.ErrorS(err, "Measuring what folders of an image inherit failed", "image", id)
		}
		s.content.inherited[id] = &usage{bytes: int64(size.Bytes), inodes: int64(size.Inodes)}
	}
	return nil
}

// inheriting are the images that have such a layer on disk.
func (s *Store) inheriting() ([]engine.ImageID, error) {
	entries, err := os.ReadDir(s.path(inheritedDir))
	if err != nil {
		return nil, err
	}
	var ids []engine.ImageID
	for _, entry := range entries {
		if d := digest.NewDigestFromEncoded(digest.SHA256, entry.Name()); d.Validate() == nil {
			ids = append(ids, engine.ImageID(d))
		}
	}
	return ids, nil
}

// dropInherited removes an image's, to be made anew where it is asked for. The caller holds s.using, and nobody has it mounted.
func (s *Store) dropInherited(id engine.ImageID) error {
	s.mu.Lock()
	delete(s.content.inherited, id)
	s.mu.Unlock()
	if err := s.discard(s.inheritedPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove what folders of image %s inherit: %w", id, err)
	}
	return nil
}

// collectInherited removes those of images that are gone.
func (s *Store) collectInherited(ctx context.Context) error {
	ids, err := s.inheriting()
	for _, id := range ids {
		err = errors.Join(err, s.collectInheritedOf(ctx, id))
	}
	return err
}

func (s *Store) collectInheritedOf(ctx context.Context, id engine.ImageID) error {
	present := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.images[id] != nil || s.foreign[digest.Digest(id)]
	}
	if present() {
		return nil
	}
	unlock, err := s.using.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if present() {
		return nil
	}
	// Of a container that is there although no record of its image can be read.
	if err := s.refuseUsed(ctx, id); errdefs.IsFailedPrecondition(err) {
		return nil
	} else if err != nil {
		return err
	}
	return s.dropInherited(id)
}
