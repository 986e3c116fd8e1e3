package docker

import (
	"context"

	"github.com/docker/docker/api/types/image"

	"crishim/engine"
)

func newImageStore(e *Engine) (imageStore, error) { return &provisional{e}, nil }

type provisional struct{ e *Engine }

func (p *provisional) Invalidate() {}
func (p *provisional) EnsurePause(ctx context.Context, ref string) (engine.ImageID, error) {
	i, err := p.Image(ctx, ref)
	if err != nil {
		return "", err
	}
	return i.ID, nil
}
func (p *provisional) ListImages(ctx context.Context) ([]engine.Image, error) { return nil, errNoStore }
func (p *provisional) Image(ctx context.Context, ref string) (*engine.Image, error) {
	return ask(ctx, p.e, "image", quickLimit, func(ctx context.Context, s *session) (*engine.Image, error) {
		in, err := s.cli.ImageInspect(ctx, ref)
		if err != nil {
			return nil, err
		}
		i := &engine.Image{ID: engine.ImageID(in.ID), RepoTags: in.RepoTags}
		if in.Config != nil {
			i.User = in.Config.User
		}
		return i, nil
	})
}
func (p *provisional) PullImage(context.Context, *engine.PullSpec) (*engine.Image, error) {
	return nil, errNoStore
}
func (p *provisional) RemoveImage(ctx context.Context, id engine.ImageID) error {
	_, err := ask(ctx, p.e, "remove", quickLimit, func(ctx context.Context, s *session) ([]image.DeleteResponse, error) {
		return s.cli.ImageRemove(ctx, string(id), image.RemoveOptions{Force: true})
	})
	return err
}
func (p *provisional) ImageFS(context.Context) (a, b []engine.FSUsage, err error) {
	return nil, nil, errNoStore
}
