package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"crishim/engine/native/image/unpack"
	"crishim/internal/atomicfile"
	"crishim/internal/flight"
	"crishim/internal/treesize"
)

// ensureLayer brings a layer and its blob into the store, joined with whoever wants the same. Where the other one's source
// fails, this one's is tried: its credentials or mirrors may be better.
func (s *Store) ensureLayer(ctx context.Context, source blobSource, desc ocispec.Descriptor, diffID digest.Digest, at *progress) error {
	key := string(desc.Digest) + " " + string(diffID)
	for {
		_, started, err := s.layers.DoPart(ctx, key, at.attach, func(ctx context.Context, at *progress) (struct{}, error) {
			return struct{}{}, s.makeLayer(ctx, source, desc, diffID, at)
		})
		if err == nil || started || ctx.Err() != nil {
			return err
		}
	}
}

// makeLayer is the work of one flight.
func (s *Store) makeLayer(ctx context.Context, source blobSource, desc ocispec.Descriptor, diffID digest.Digest, at *progress) error {
	unlock, err := s.fetching.Lock(ctx, desc.Digest)
	if err != nil {
		return fmt.Errorf("wait for another pull of blob %s: %w", desc.Digest, err)
	}
	defer unlock()
	for try := 1; ; try++ {
		err := s.tryLayer(ctx, source, desc, diffID, at)
		if try == corruptTries || !errors.Is(err, errCorrupt) {
			return err
		}
	}
}

func (s *Store) tryLayer(ctx context.Context, source blobSource, desc ocispec.Descriptor, diffID digest.Digest, at *progress) error {
	s.mu.Lock()
	b := s.content.blobs[desc.Digest]
	have := s.content.layers[diffID]
	unpacked := have != nil
	whole := unpacked && b != nil && b.size == desc.Size && s.content.verified[desc.Digest] == diffID
	s.mu.Unlock()
	if whole {
		at.fetch(int(desc.Size))
		return nil
	}
	p, err := s.openPart(desc)
	if err != nil {
		return err
	}
	defer func() { _ = p.file.Close() }()

	temp, failed := s.tempPath(), s.syncs.failed.Load()
	defer func() { _ = os.RemoveAll(temp) }() // what stays is removed at the next start
	var tree *os.File
	if !unpacked {
		if tree, err = makeTree(temp); err != nil {
			return diskError("make the folder of a layer", err)
		}
		defer func() { _ = tree.Close() }()
	}
	limits := s.options.Limits.Layer
	if have != nil {
		limits.Bytes = have.Size // of the archive that it must be, and nothing else bounds what is not written
	}
	got, err := s.fillAndUnpack(ctx, p, source, tree, limits, at)
	if err != nil {
		return err
	}
	if got.DiffID != diffID {
		return fmt.Errorf("layer %s has content %s, the image's config says %s: %w", desc.Digest, got.DiffID, diffID, errdefs.ErrInvalidArgument)
	}
	if unpacked {
		s.mu.Lock()
		s.content.verified[desc.Digest] = diffID
		s.mu.Unlock()
		return nil
	}
	l := &layer{DiffID: diffID, Blob: desc.Digest, Size: got.Bytes, Implied: got.Implied}
	return at.onDisk(func() error { return s.publishLayer(ctx, temp, l, failed) })
}

// makeTree makes the folder that a layer is unpacked into, as it is until the archive says otherwise.
func makeTree(temp string) (*os.File, error) {
	if err := os.Mkdir(temp, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(temp, layerTree)
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o755); err != nil { // the umask does not count
		return nil, err
	}
	return os.Open(path)
}

// fillAndUnpack fetches the blob and unpacks it as it comes.
func (s *Store) fillAndUnpack(ctx context.Context, p *part, source blobSource, tree *os.File, limits unpack.Limits, at *progress) (unpack.Layer, error) {
	var got unpack.Layer
	var archive error // of an archive that is none: the blob may be another one than was asked for, which counts first
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		defer flight.Caught(&err)
		return s.fill(ctx, p, source, at)
	})
	group.Go(func() (err error) {
		defer flight.Caught(&err)
		turn := &turn{store: s, ctx: ctx, at: at}
		if err := turn.take(); err != nil {
			return err
		}
		defer turn.give()
		got, err = unpack.Unpack(ctx, tree, p.reader(ctx, turn.pause), limits, func(n int) {
			s.counts.unpacked.Add(uint64(n))
			at.unpack(n)
		})
		if errdefs.IsInvalidArgument(err) {
			archive = err
			return nil
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return unpack.Layer{}, err
	}
	return got, archive
}

// turn is one of the store's few turns to unpack. It is given to others while the network is waited for.
type turn struct {
	store *Store
	ctx   context.Context
	at    *progress
	held  bool
	since time.Time // when it was taken
}

func (t *turn) take() error {
	select {
	case t.store.unpackers <- struct{}{}:
		t.held, t.since = true, time.Now()
		return nil
	default:
	}
	return t.at.onDisk(func() error {
		select {
		case t.store.unpackers <- struct{}{}:
			t.held, t.since = true, time.Now()
			return nil
		case <-t.ctx.Done():
			return context.Cause(t.ctx)
		}
	})
}

func (t *turn) give() {
	if t.held {
		t.held = false
		t.store.counts.unpacking.Add(int64(time.Since(t.since)))
		<-t.store.unpackers
	}
}

// pause gives the turn away until the returned function is called.
func (t *turn) pause() (goOn func() error) {
	t.give()
	return t.take
}

// place puts a folder into its place at once. What a repair replaces there is in temp then, or gone.
func (s *Store) place(temp, path string) error {
	err := os.Rename(temp, path)
	if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	// A file system that cannot exchange: a crash right here costs the image.
	if err := s.discard(path); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// publishLayer puts an unpacked layer into its place. Everything of it is on disk before its name is: it was written since so
// many flushes had failed.
func (s *Store) publishLayer(ctx context.Context, temp string, l *layer, failed uint64) error {
	tree := filepath.Join(temp, layerTree)
	began := time.Now()
	if err := s.syncs.sync(tree, failed); err != nil {
		return err
	}
	s.counts.flushing.Add(int64(time.Since(began)))
	used, err := treesize.Of(ctx, temp, treesize.Options{}) // blocks are given out by the flush
	if err != nil {
		return fmt.Errorf("measure a layer: %w", err)
	}
	l.Bytes, l.Inodes, l.Content = int64(used.Bytes), int64(used.Inodes), int64(used.Content)
	data, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("record layer %s: %w", l.DiffID, err)
	}
	if err := atomicfile.Write(filepath.Join(temp, layerFile), data, 0o600); err != nil {
		return diskError("record layer "+string(l.DiffID), err)
	}
	s.placing.Lock()
	defer s.placing.Unlock()
	s.mu.Lock()
	have := s.content.layers[l.DiffID] // the same layer may have come in another blob
	s.mu.Unlock()
	if have == nil {
		if err := s.place(temp, s.layerPath(l.DiffID)); err != nil {
			return diskError("put layer "+string(l.DiffID)+" into its place", err)
		}
		if err := atomicfile.SyncDir(s.path(layersDir)); err != nil {
			return diskError("put layer "+string(l.DiffID)+" into its place", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if have == nil {
		l.since = time.Now()
		s.content.layers[l.DiffID], s.content.looked[l.DiffID] = l, l
	}
	s.content.verified[l.Blob] = l.DiffID
	return nil
}
