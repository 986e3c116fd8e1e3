package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine"
	"crishim/registry"
)

// ListImages answers from memory, in the order of ids.
func (s *Store) ListImages(context.Context) ([]engine.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]engine.Image, 0, len(s.images))
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		out = append(out, *s.finished(s.images[id]))
	}
	return out, nil
}

// Image finds by id, by the start of an id of 12 digits or more, by tag, digest or familiar name. ErrNotFound when absent.
func (s *Store) Image(_ context.Context, ref string) (*engine.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	return s.finished(img), nil
}

// find looks an image up as Docker does: by id, then by name, then by the start of an id. The caller holds s.mu.
func (s *Store) find(ref string) (*stored, error) {
	q, err := registry.ParseQuery(ref)
	if err != nil {
		return nil, err
	}
	if img := s.images[engine.ImageID(q.ID)]; img != nil {
		return img, nil
	}
	if img := s.images[s.byName[q.Name]]; img != nil {
		return img, nil
	}
	var found *stored
	if q.Prefix != "" {
		for id, img := range s.images {
			if strings.HasPrefix(string(id), "sha256:"+q.Prefix) {
				if found != nil {
					return nil, fmt.Errorf("image %s is ambiguous: %w", ref, errdefs.ErrNotFound)
				}
				found = img
			}
		}
	}
	if found == nil {
		return nil, notFound(ref)
	}
	return found, nil
}

// finished is an image as callers get it, theirs to change. The caller holds s.mu.
func (s *Store) finished(img *stored) *engine.Image {
	out := img.image
	out.RepoTags, out.RepoDigests = slices.Clone(out.RepoTags), slices.Clone(out.RepoDigests)
	out.Env, out.Entrypoint, out.Cmd = slices.Clone(out.Env), slices.Clone(out.Entrypoint), slices.Clone(out.Cmd)
	out.Labels, out.Layers = maps.Clone(out.Labels), slices.Clone(out.Layers)
	if out.UID != nil {
		uid := *out.UID
		out.UID = &uid
	}
	out.Pinned = slices.ContainsFunc(s.pinned, func(ref string) bool {
		pinned, err := s.find(ref)
		return err == nil && pinned == img
	})
	return &out
}

// imageOf is the image of a record.
func imageOf(rec *record, config *ocispec.Image, size int64) engine.Image {
	out := engine.Image{
		ID: rec.ID, RepoTags: familiar(tagNames(rec.Tags)), RepoDigests: familiar(rec.Digests), Size: uint64(max(size, 1)),
		User: config.Config.User, Env: config.Config.Env, Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd,
		WorkingDir: config.Config.WorkingDir, StopSignal: config.Config.StopSignal, Labels: config.Config.Labels,
	}
	for _, d := range rec.DiffIDs {
		out.Layers = append(out.Layers, string(d))
	}
	if config.Created != nil {
		out.Created = *config.Created
	}
	out.UID, out.Username = engine.ParseImageUser(out.User)
	if memoryOf(&out) > maxKept {
		out.User = out.User[:min(len(out.User), maxName)]
		out.WorkingDir, out.StopSignal = "", ""
		// Without its layers it is never SameContent: what is left of the config is that of an image which has none.
		out.Env, out.Entrypoint, out.Cmd, out.Labels, out.Layers = nil, nil, nil, nil, nil
	}
	return out
}

// maxKept bounds what is kept in memory of an image's config, in bytes. Real images have some thousands; one that has more runs as any
// other, as containers read the config itself (Config), but is not known for the same in another engine's store by that alone. Without
// a bound a hundred images without a layer, of whoever may run pods, would take gigabytes.
const maxKept = 256 << 10

// maxName is more than users and groups have together.
const maxName = 512

// memoryOf is about what the config of an image takes.
func memoryOf(img *engine.Image) int {
	const each = 64 // of an entry of a map
	sum := len(img.User) + len(img.WorkingDir) + len(img.StopSignal)
	for _, list := range [][]string{img.Env, img.Entrypoint, img.Cmd} {
		for _, text := range list {
			sum += len(text) + each
		}
	}
	for key, value := range img.Labels {
		sum += len(key) + len(value) + each
	}
	return sum
}

// familiar are names as Docker lists them.
func familiar(names []string) []string {
	var out []string
	for _, name := range names {
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			out = append(out, reference.FamiliarString(named))
		}
	}
	return out
}

// Config is the whole config of an image, as it was pulled.
func (s *Store) Config(_ context.Context, id engine.ImageID) (*ocispec.Image, error) {
	s.mu.Lock()
	img := s.images[id]
	s.mu.Unlock()
	if img == nil {
		return nil, notFound(string(id))
	}
	return s.readConfig(id)
}

func (s *Store) readConfig(id engine.ImageID) (*ocispec.Image, error) {
	data, err := s.readBlob(digest.Digest(id), s.options.Limits.Config)
	if err != nil {
		return nil, fmt.Errorf("read the config of image %s: %w", id, err)
	}
	return parseConfig(data)
}

// Annotations are those of the image's manifests, which may be several of one content.
func (s *Store) Annotations(_ context.Context, id engine.ImageID) (map[string]string, error) {
	s.mu.Lock()
	img := s.images[id]
	s.mu.Unlock()
	if img == nil {
		return nil, notFound(string(id))
	}
	all := map[string]string{}
	for i := range img.record.Manifests {
		data, err := s.readBlob(img.record.Manifests[i].Manifest.Digest, s.options.Limits.Manifest)
		if err != nil {
			return nil, fmt.Errorf("read the manifest of image %s: %w", id, err)
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, fmt.Errorf("read the manifest of image %s: %w", id, err)
		}
		maps.Copy(all, m.Annotations)
	}
	return all, nil
}

// LayerDirs are the folders of an image's layers, lowest first, in the form of overlay, and above them, where folders of one inherit
// from another, that of a layer of these. They stay as long as the image is held or used, and nobody may write in them. While a layer
// is being replaced by a repair, that is waited for.
func (s *Store) LayerDirs(ctx context.Context, id engine.ImageID) ([]string, error) {
	dirs, err := s.placedDirs(ctx, id)
	if err != nil {
		return nil, err
	}
	if n := len(dirs); n > s.options.Limits.Layers { // of an image that came when more were allowed
		return nil, fmt.Errorf("image %s has %d layers, more than %d: %w", id, n, s.options.Limits.Layers, errdefs.ErrResourceExhausted)
	}
	folders, err := s.inherited(ctx, id)
	if err != nil {
		return nil, err
	}
	if folders != "" {
		dirs = append(dirs, folders)
	}
	return dirs, nil
}

// placedDirs are the layers that the image itself names, when none of them is being replaced.
func (s *Store) placedDirs(ctx context.Context, id engine.ImageID) ([]string, error) {
	dirs, replaced, err := s.layerDirs(id)
	if !replaced {
		return dirs, err
	}
	unlock, err := s.lockRepairs(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dirs, _, err = s.layerDirs(id)
	return dirs, err
}

// layerDirs says whether any of them is being replaced, too.
func (s *Store) layerDirs(id engine.ImageID) (dirs []string, replaced bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[id]
	if img == nil {
		return nil, false, notFound(string(id))
	}
	for _, d := range img.record.DiffIDs {
		replaced = replaced || s.content.layers[d] == nil
		dirs = append(dirs, s.layerTree(d))
	}
	return dirs, replaced, nil
}
