package docker

import (
	"context"
	"crypto/rand"
	"strings"

	"github.com/docker/docker/api/types/container"

	"crishim/engine"
)

// probePrefix begins the name of a probe: a container that is never started, through which an image is read. Images can set
// labels, but not names.
const probePrefix = "crishim-probe-"

// probe runs f on a container of the image that is never started.
func (e *Engine) probe(ctx context.Context, id engine.ImageID, f func(ctx context.Context, s *session, probe string) error) error {
	return e.do(ctx, "look into image "+string(id), slowLimit, func(ctx context.Context, s *session) error {
		config := &container.Config{
			Image: string(id), Cmd: []string{"/"}, NetworkDisabled: true,
			Labels: map[string]string{labelProbe: e.opts.RootDir, labelType: ""},
		}
		name := probePrefix + rand.Text()
		e.probes.Store(name, true)
		defer e.probes.Delete(name)
		made, err := s.cli.ContainerCreate(ctx, config, &container.HostConfig{NetworkMode: "none"}, nil, nil, name)
		if err != nil {
			return err
		}
		defer func() {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickLimit)
			defer cancel()
			_ = s.cli.ContainerRemove(undo, made.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}) // else the next list shows it
		}()
		return f(ctx, s, made.ID)
	})
}

// leftProbe says whether a listed container is a probe that nobody will remove: its daemon was killed, or left before dockerd
// had made it, which may be long after the list at the start.
func (e *Engine) leftProbe(c *container.Summary) bool {
	name := strings.TrimPrefix(summaryName(c), "/")
	if c.Labels[labelProbe] != e.opts.RootDir || c.State != container.StateCreated || !strings.HasPrefix(name, probePrefix) {
		return false
	}
	_, used := e.probes.Load(name)
	return !used
}

// removeProbes removes probes that were left. One that cannot be removed is listed again.
func (e *Engine) removeProbes(s *session, ids []string) {
	if e.opts.Observe || len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(s.life, quickLimit)
	defer cancel()
	for _, id := range ids {
		_ = s.cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	}
}
