package docker

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"crishim/engine"
	"crishim/engine/docker/imagestore"
)

// pullLogInterval is how often a pull that lasts says how far it is.
const pullLogInterval = 10 * time.Second

// newImageStore is the store for e's connections.
func newImageStore(e *Engine) *imagestore.Store {
	return imagestore.New(imagestore.Options{
		Client: func() *client.Client {
			if s := e.current.Load(); s != nil {
				return s.cli
			}
			return nil
		},
		RegistryConfigDirs: e.opts.RegistryConfigDirs,
		NodeAuth:           e.opts.NodeAuth,
		TokenServers:       e.opts.TokenServers,
		StateDir:           filepath.Join(e.opts.RootDir, "images"),
		PauseImage:         e.opts.PauseImage,
		Pinned:             e.opts.Pinned,
		InPods:             e.pauses.use,
		NoProgress:         e.opts.PullNoProgress,
		LogInterval:        pullLogInterval,
		SampleInterval:     e.opts.ImageFSInterval,
	})
}

// Connect is for who uses the images, or Info, without a Watch, a command or a start: one connection, as good as it is
// now, until disconnect. Never beside Watch.
func (e *Engine) Connect(ctx context.Context) (disconnect func(), err error) {
	cli, facts, err := e.connect(ctx)
	if err != nil {
		return nil, requestError(ctx, ctx, fmt.Errorf("connect to the Docker Engine at %s: %w", e.opts.Socket, err))
	}
	info := facts.info()
	e.info.Store(&info)
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	e.current.Store(&session{cli: cli, facts: facts, life: life, recorded: e.opts.Recorded})
	return func() {
		e.current.Store(nil)
		end()
		_ = cli.Close()
	}, nil
}

// ImageStore is the store behind Images, for what is reloaded while it runs: pinned images and registry folders.
func (e *Engine) ImageStore() *imagestore.Store { return e.images }

// configUser is the USER of an image.
func (e *Engine) configUser(ctx context.Context, id engine.ImageID) (string, error) {
	if user, ok := e.users.configUser(id); ok {
		return user, nil
	}
	image, err := e.Image(ctx, string(id))
	if err != nil {
		return "", err
	}
	e.users.learnConfig(id, image.User)
	return image.User, nil
}

// files reads an image's passwd and group files.
func (e *Engine) files(ctx context.Context, id engine.ImageID) (passwd, group []byte, err error) {
	err = e.probe(ctx, id, func(ctx context.Context, s *session, probe string) error {
		if passwd, err = readImageFile(ctx, s.cli, probe, "/etc/passwd"); err != nil {
			return err
		}
		group, err = readImageFile(ctx, s.cli, probe, "/etc/group")
		return err
	})
	return passwd, group, err
}

// userOf is the user of a container to make, from the cache where it has been asked before.
func (e *Engine) userOf(ctx context.Context, spec *engine.ContainerSpec) (processUser, error) {
	q := question(&spec.Security, spec.Image.ID)
	if user, ok := e.users.answer(q); ok {
		return user, nil
	}
	user, err := resolveUser(ctx, &spec.Security, spec.Image.ID, e)
	if err != nil {
		return processUser{}, err
	}
	e.users.learn(q, user)
	return user, nil
}

// checkImagePaths finds out now whether the image volumes that Docker mounts have their sub-paths; it would tell at the
// start only.
func (e *Engine) checkImagePaths(ctx context.Context, spec *engine.ContainerSpec, f *facts) error {
	for _, m := range spec.Mounts {
		if m.Image == nil || m.ImageSubPath == "" || prepared(&m, spec.Handler, f) {
			continue
		}
		err := e.probe(ctx, m.Image.ID, func(ctx context.Context, s *session, probe string) error {
			name := "/" + m.ImageSubPath
			for range maxUserLinks {
				stat, err := s.cli.ContainerStatPath(ctx, probe, name)
				switch {
				case errdefs.IsNotFound(err):
					return invalid("image volume %.200s: the image has no %.200q", m.ContainerPath, m.ImageSubPath)
				case err != nil:
					return err
				case stat.Mode.IsDir():
					return nil
				case stat.LinkTarget == "" || stat.LinkTarget == name:
					return invalid("image volume %.200s: %.200q is not a folder", m.ContainerPath, m.ImageSubPath)
				}
				name = stat.LinkTarget
			}
			return invalid("image volume %.200s: %.200q is a chain of links", m.ContainerPath, m.ImageSubPath)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ExportImage implements engine.ImageCarrier.
func (e *Engine) ExportImage(ctx context.Context, id engine.ImageID, w io.Writer) error {
	return e.images.ExportImage(ctx, id, w)
}

// ImportImage implements engine.ImageCarrier.
func (e *Engine) ImportImage(ctx context.Context, r io.Reader, image *engine.Image) (*engine.Image, error) {
	return e.images.ImportImage(ctx, r, image)
}
