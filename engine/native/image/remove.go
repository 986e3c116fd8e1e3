package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"crishim/engine"
	"crishim/internal/atomicfile"
)

// Hold keeps an image from being removed until Release with the same owner: from looking it up until a record of the
// engine's says that it is used. ErrNotFound when it is absent; a removal under way is waited for. An owner may hold an
// image several times, and releases it as often.
func (s *Store) Hold(ctx context.Context, id engine.ImageID, owner string) error {
	unlock, err := s.using.Lock(ctx, id)
	if err != nil {
		return fmt.Errorf("wait for a removal of image %s: %w", id, err)
	}
	defer unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[id] == nil {
		return notFound(string(id))
	}
	if s.holds[id] == nil {
		s.holds[id] = map[string]int{}
	}
	s.holds[id][owner]++
	return nil
}

// Release ends a Hold. OK when there is none.
func (s *Store) Release(id engine.ImageID, owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	owners := s.holds[id]
	if owners[owner] > 1 {
		owners[owner]--
	} else {
		delete(owners, owner)
	}
	if len(owners) == 0 {
		delete(s.holds, id)
	}
}

// RemoveImage removes the image, every name of it, and what no other image has of its content. Any reference may be given
// in place of its id. OK when absent; ErrFailedPrecondition when it is held or used. It works on a full disk.
func (s *Store) RemoveImage(ctx context.Context, ref engine.ImageID) error {
	img, err := s.Image(ctx, string(ref))
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	unlock, err := s.using.Lock(ctx, img.ID)
	if err != nil {
		return fmt.Errorf("wait for another use of image %s: %w", img.ID, err)
	}
	defer unlock()
	if err := s.refuseUsed(ctx, img.ID); err != nil {
		return err
	}
	rec, err := s.forget(img.ID)
	if err != nil || rec == nil {
		return err
	}
	of := map[digest.Digest]bool{}
	for _, d := range rec.DiffIDs {
		of[d] = true
	}
	for i := range rec.Manifests {
		for _, b := range rec.Manifests[i].blobs() {
			of[b.Digest] = true
		}
	}
	err = errors.Join(s.dropInherited(img.ID), s.collect(ctx, func(d digest.Digest, _ time.Time) bool { return of[d] }))
	s.changed()
	if err != nil {
		return fmt.Errorf("remove the content of image %s (it is tried again): %w", img.ID, err)
	}
	return nil
}

// usersOf is Options.InUse or Options.Mounted.
type usersOf func(context.Context, engine.ImageID) ([]string, error)

func (s *Store) refuseUsed(ctx context.Context, id engine.ImageID) error {
	return s.refuse(ctx, id, s.options.InUse)
}

func (s *Store) refuse(ctx context.Context, id engine.ImageID, usersOf usersOf) error {
	s.mu.Lock()
	var users []string
	for owner := range s.holds[id] {
		users = append(users, owner)
	}
	s.mu.Unlock()
	if usersOf != nil {
		more, err := usersOf(ctx, id)
		if err != nil {
			return fmt.Errorf("find who uses image %s: %w", id, err)
		}
		users = append(users, more...)
	}
	if len(users) == 0 {
		return nil
	}
	slices.Sort(users)
	return fmt.Errorf("image %s is in use by %.300s: %w", id, strings.Join(users, ", "), errdefs.ErrFailedPrecondition)
}

// forget removes an image's record; nil when there was none.
func (s *Store) forget(id engine.ImageID) (*record, error) {
	s.recording.Lock()
	defer s.recording.Unlock()
	s.mu.Lock()
	img := s.images[id]
	s.mu.Unlock()
	if img == nil {
		return nil, nil
	}
	if err := atomicfile.Remove(s.path(recordsDir, recordName(id))); err != nil {
		return nil, fmt.Errorf("remove image %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, id)
	s.index()
	return &img.record, nil
}

// Collect removes content that no image has and nobody is fetching, once it is older than age.
func (s *Store) Collect(ctx context.Context, age time.Duration) error {
	now := time.Now()
	oldest := now.Add(-age)
	err := s.collect(ctx, func(_ digest.Digest, since time.Time) bool { return !since.After(oldest) })
	return errors.Join(err, s.collectInherited(ctx), s.collectParts(now, oldest))
}

// collect removes unused content that may go. It is out of its place at once and takes its space a little longer.
func (s *Store) collect(ctx context.Context, mayGo func(d digest.Digest, since time.Time) bool) error {
	spared, err := s.spared(ctx, s.options.InUse)
	if err != nil {
		return err
	}
	var gone []string
	err = s.unlink(func(d digest.Digest, since time.Time) bool { return !spared[d] && mayGo(d, since) }, &gone)
	for _, path := range gone {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// used is the content that images have, by leaseOf. The caller holds s.mu.
func (s *Store) used() map[string]bool {
	used := map[string]bool{}
	for d := range s.foreign {
		used[layerLease(d)], used[blobLease(d)] = true, true
	}
	for _, img := range s.images {
		for _, d := range img.record.DiffIDs {
			used[layerLease(d)] = true
		}
		for i := range img.record.Manifests {
			for _, b := range img.record.Manifests[i].blobs() {
				used[blobLease(b.Digest)] = true
			}
		}
	}
	return used
}

// spared is the content of images that are in use although no record of theirs can be read (it is damaged or lost, or names
// content that is, or is a newer version's): their layers lie under containers. What they were is told by their configs, and by records that were set aside.
func (s *Store) spared(ctx context.Context, usersOf usersOf) (map[digest.Digest]bool, error) {
	if usersOf == nil {
		return nil, nil
	}
	named := map[engine.ImageID][]digest.Digest{}
	s.mu.Lock()
	used := s.used()
	for d := range s.content.blobs {
		if !used[blobLease(d)] {
			named[engine.ImageID(d)] = nil // any of them may be a config
		}
	}
	for d := range s.foreign {
		named[engine.ImageID(d)] = nil
	}
	s.mu.Unlock()
	aside, err := filepath.Glob(s.path(recordsDir, "*"+recordSuffix+badSuffix))
	if err != nil {
		return nil, err
	}
	for _, path := range aside {
		id := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSuffix(filepath.Base(path), recordSuffix+badSuffix))
		data, err := os.ReadFile(path)
		if err != nil || id.Validate() != nil {
			continue // it says nothing
		}
		for _, text := range digest.DigestRegexp.FindAllString(string(data), -1) {
			named[engine.ImageID(id)] = append(named[engine.ImageID(id)], digest.Digest(text))
		}
	}
	spared := map[digest.Digest]bool{}
	for id, content := range named {
		users, err := usersOf(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("find who uses image %s: %w", id, err)
		}
		if len(users) == 0 {
			continue
		}
		spared[digest.Digest(id)] = true
		for _, d := range content {
			spared[d] = true
		}
		if config, err := s.readConfig(id); err == nil {
			for _, d := range config.RootFS.DiffIDs {
				spared[d] = true
			}
		}
	}
	return spared, nil
}

func (s *Store) unlink(mayGo func(d digest.Digest, since time.Time) bool, gone *[]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := s.used()
	unused := func(key string) bool { return !used[key] && s.content.leases[key] == 0 }
	move := func(path string) error {
		temp := s.tempPath()
		if err := os.Rename(path, temp); err != nil && !os.IsNotExist(err) {
			return err
		}
		*gone = append(*gone, temp)
		return nil
	}
	for d, l := range s.content.layers {
		if unused(layerLease(d)) && mayGo(d, l.since) {
			if err := move(s.layerPath(d)); err != nil {
				return err
			}
			delete(s.content.layers, d)
			delete(s.content.looked, d)
		}
	}
	for d, b := range s.content.blobs {
		if unused(blobLease(d)) && mayGo(d, b.since) {
			if err := move(s.blobPath(d)); err != nil {
				return err
			}
			delete(s.content.blobs, d)
			delete(s.content.verified, d)
		}
	}
	return nil
}

// collectParts removes blobs that came in part and that nobody went on with.
func (s *Store) collectParts(now, oldest time.Time) error {
	entries, err := os.ReadDir(s.path(partsDir))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err == nil && info.ModTime().After(now) {
			// The clock was set back since: its age counts from now.
			if err := os.Chtimes(s.path(partsDir, entry.Name()), time.Time{}, now); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		if err != nil || info.ModTime().After(oldest) {
			continue // gone, or too young
		}
		s.mu.Lock()
		if s.content.leases[blobLease(digest.NewDigestFromEncoded(digest.SHA256, entry.Name()))] == 0 {
			err = os.Remove(s.path(partsDir, entry.Name()))
		}
		s.mu.Unlock()
		if err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}
