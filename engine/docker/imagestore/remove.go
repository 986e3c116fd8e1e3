package imagestore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"

	"crishim/engine"
	"crishim/engine/docker/imagestore/pullthrough"
)

// RemoveImage implements engine.Images. Any reference of the image may be given in place of its id.
func (s *Store) RemoveImage(ctx context.Context, ref engine.ImageID) error {
	img, err := s.toRemove(ctx, string(ref))
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := s.docker()
	if err != nil {
		return err
	}
	// One at a time: of removals at once dockerd fails some in ways that have no class ("unrecognized image ID").
	unlock, err := s.removals.Lock(ctx, img.ID)
	if err != nil {
		return fmt.Errorf("wait for another removal of image %s: %w", img.ID, err)
	}
	defer unlock()
	if _, err := inspect(ctx, d, string(img.ID)); errdefs.IsNotFound(err) {
		s.Invalidate() // the cache still had it
		return s.records.remove(img.ID)
	}
	if err := refuseUsed(ctx, d, img.ID); err != nil {
		return err
	}
	defer s.Invalidate()
	// By id and with force every tag goes at once, or none does.
	_, err = d.ImageRemove(ctx, string(img.ID), image.RemoveOptions{Force: true, PruneChildren: true})
	if errdefs.IsConflict(err) {
		// A removal at the same time conflicts too, and is as good.
		if _, gone := inspect(ctx, d, string(img.ID)); !errdefs.IsNotFound(gone) {
			return fmt.Errorf("remove image %s: %w: %w", img.ID, err, errdefs.ErrFailedPrecondition)
		}
		err = nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return dockerError("remove image "+string(img.ID), err)
	}
	return s.records.remove(img.ID)
}

// refuseUsed keeps force from taking an image away under a container that is not running, or that has it as a volume: Docker
// itself protects only those that run it.
func refuseUsed(ctx context.Context, d docker, id engine.ImageID) error {
	for _, use := range []string{"ancestor", "volume"} { // an image that Docker mounts has the name that it was asked for by: its id
		users, err := d.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg(use, string(id)))})
		if errdefs.IsNotFound(err) {
			return nil // the image is gone
		}
		if err != nil {
			return dockerError("find the containers of image "+string(id), err)
		}
		for _, user := range users {
			if user.ImageID == string(id) || use == "volume" {
				return fmt.Errorf("image %s is used by container %.12s, remove that first: %w", id, user.ID, errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// sweep removes what a crash left: helper names of pulls that are no more, and records of images that are gone.
func (s *Store) sweep(ctx context.Context, d docker) error {
	listed := time.Now()
	list, err := d.ImageList(ctx, image.ListOptions{})
	if err != nil {
		return dockerError("list images", err)
	}
	present := make(map[engine.ImageID]bool, len(list))
	var errs []error
	for _, summary := range list {
		present[engine.ImageID(summary.ID)] = true
		for _, ref := range append(summary.RepoTags, summary.RepoDigests...) {
			if pullthrough.IsHelper(ref) && !s.mirrors.Serves(ref) {
				errs = append(errs, removeName(ctx, d, ref))
			}
		}
	}
	return errors.Join(append(errs, s.records.prune(present, listed))...)
}

// removeName takes one name from an image, and the image if it was the last. OK when absent.
func removeName(ctx context.Context, d docker, ref string) error {
	_, err := d.ImageRemove(ctx, ref, image.RemoveOptions{})
	if err != nil && !errdefs.IsNotFound(err) {
		return dockerError("remove the image name "+scrub(ref), err)
	}
	return nil
}

// scrub takes the secret out of a helper's name.
func scrub(ref string) string {
	host, path, _ := strings.Cut(ref, "/")
	part, _, _ := strings.Cut(path, "/")
	return host + "/" + part + "/…"
}
