package imagestore

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/image"

	"crishim/engine"
	"crishim/registry"
)

// fromInspect is the image as Docker inspects it, without pinning and recorded digests.
func fromInspect(in *image.InspectResponse) engine.Image {
	out := engine.Image{ID: engine.ImageID(in.ID), Size: size(in.Size)}
	out.RepoTags, out.RepoDigests = namesOf(in.ID, in.RepoTags, in.RepoDigests)
	if created, err := time.Parse(time.RFC3339Nano, in.Created); err == nil {
		out.Created = created
	}
	if config := in.Config; config != nil {
		out.User = config.User
		out.Env = config.Env
		out.Entrypoint = config.Entrypoint
		out.Cmd = config.Cmd
		out.WorkingDir = config.WorkingDir
		out.StopSignal = config.StopSignal
		out.Labels = config.Labels
	}
	out.Layers = in.RootFS.Layers
	out.UID, out.Username = engine.ParseImageUser(out.User)
	return out
}

// size is never 0, which the kubelet takes for an answer that is not filled in: an image without layers has a config.
func size(n int64) uint64 {
	return uint64(max(n, 1))
}

// clone makes what a caller may change.
func clone(in *engine.Image) *engine.Image {
	out := *in
	out.RepoTags = slices.Clone(in.RepoTags)
	out.RepoDigests = slices.Clone(in.RepoDigests)
	out.Env = slices.Clone(in.Env)
	out.Entrypoint = slices.Clone(in.Entrypoint)
	out.Cmd = slices.Clone(in.Cmd)
	out.Labels = maps.Clone(in.Labels)
	out.Layers = slices.Clone(in.Layers)
	if in.UID != nil {
		uid := *in.UID
		out.UID = &uid
	}
	return &out
}

// finished is img as callers get it: with the digests of our records and pinning as it is now.
func (s *Store) finished(img *engine.Image) *engine.Image {
	out := clone(img)
	for _, digest := range s.records.digests(img.ID) {
		if !slices.Contains(out.RepoDigests, digest) {
			out.RepoDigests = append(out.RepoDigests, digest)
		}
	}
	out.Pinned = s.isPinned(out)
	return out
}

func (s *Store) isPinned(img *engine.Image) bool {
	if in := s.options.InPods; in != nil && in(img.ID) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pauseIDs[img.ID] {
		return true
	}
	return slices.ContainsFunc(append(slices.Clone(s.pinned), s.options.PauseImage), func(ref string) bool {
		return ref != "" && matches(ref, img)
	})
}

// matches says whether ref, in any form, names img.
func matches(ref string, img *engine.Image) bool {
	q, err := registry.ParseQuery(ref)
	return err == nil && queryMatches(&q, img)
}

func queryMatches(q *registry.Query, img *engine.Image) bool {
	if q.ID != "" {
		return q.ID == string(img.ID)
	}
	named := func(ref string) bool { return registry.FullName(ref) == q.Name }
	return slices.ContainsFunc(img.RepoTags, named) || slices.ContainsFunc(img.RepoDigests, named) ||
		(q.Prefix != "" && strings.HasPrefix(string(img.ID), "sha256:"+q.Prefix))
}
