package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/engine"
	"crishim/engine/docker"
	"crishim/engine/imageset"
	"crishim/engine/native/image"
)

// carrying is what crishim images copy and move are told to do.
type carrying struct {
	From string   `json:"from"`
	To   string   `json:"to"`
	Move bool     `json:"move"`
	Refs []string `json:"refs"` // none: all
}

func carryingOf(fs *pflag.FlagSet, name string, refs []string) (carrying, error) {
	from, err1 := fs.GetString("from")
	to, err2 := fs.GetString("to")
	if err := errors.Join(err1, err2); err != nil {
		return carrying{}, err
	}
	engines := []string{config.EngineDocker, config.EngineNative}
	if !slices.Contains(engines, from) || !slices.Contains(engines, to) || from == to {
		return carrying{}, fmt.Errorf("images: --from and --to are docker and native, or native and docker: %w", errUsage)
	}
	return carrying{From: from, To: to, Move: name == "move", Refs: refs}, nil
}

// carryOffline carries between the native store, which this process has while the daemon is down, and Docker's.
func carryOffline(ctx context.Context, store *image.Store, fs *pflag.FlagSet, name string, refs []string, out io.Writer) error {
	what, err := carryingOf(fs, name, refs)
	if err != nil {
		return err
	}
	dockers, disconnect, err := dockerImages(ctx, fs)
	if err != nil {
		return err
	}
	defer disconnect()
	stores := map[string]engine.Images{config.EngineDocker: dockers, config.EngineNative: store}
	set := imageset.New([]imageset.Store{{Engine: what.From, Images: stores[what.From]}, {Engine: what.To, Images: stores[what.To]}}, carriedTo(os.Stderr))
	defer set.Close()
	stop := context.AfterFunc(ctx, set.Close)
	defer stop()
	return what.do(ctx, set, stores[what.From], out)
}

// do brings images from one engine's store to the other's, one after the other. What is there already, of an earlier run
// too, is left alone; one that fails does not keep the others, unless they would fail as well.
func (what *carrying) do(ctx context.Context, set *imageset.Set, source engine.Images, out io.Writer) error {
	list, err := chosen(ctx, source, what.Refs)
	if err != nil {
		return err
	}
	done, kept := 0, 0
	var errs []error
	for i := range list {
		img := &list[i]
		_, _, err := set.Ensure(ctx, what.To, string(img.ID), what.From)
		if err == nil {
			done++
			var left string
			if what.Move {
				left, err = leave(ctx, source, img)
			}
			if left != "" {
				kept++
			}
			_, _ = fmt.Fprintf(out, "%d/%d %s %s%s\n", i+1, len(list), img.ID, imageName(img), left)
		}
		if err != nil {
			errs = append(errs, err)
			if ctx.Err() != nil || errdefs.IsResourceExhausted(err) || errdefs.IsUnavailable(err) {
				break
			}
		}
	}
	_, _ = fmt.Fprintf(out, "%d of %d images are on engine %s", done, len(list), what.To)
	if what.Move {
		_, _ = fmt.Fprintf(out, ", %d of them were kept on %s as well", kept, what.From)
	}
	_, _ = fmt.Fprintln(out)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w; the same command goes on where this one ended", err)
	}
	return nil
}

// leave removes an image from the store that it was carried from, or says why it stays.
func leave(ctx context.Context, store engine.Images, img *engine.Image) (kept string, err error) {
	if img.Pinned {
		return " (kept: it is pinned)", nil
	}
	err = store.RemoveImage(ctx, img.ID)
	if errdefs.IsFailedPrecondition(err) {
		return fmt.Sprintf(" (kept: %s)", plain(err)), nil
	}
	return "", err
}

// chosen are the images that the references name, or all.
func chosen(ctx context.Context, store engine.Images, refs []string) ([]engine.Image, error) {
	if len(refs) == 0 {
		return store.ListImages(ctx)
	}
	var list []engine.Image
	for _, ref := range refs {
		img, err := store.Image(ctx, ref)
		if err != nil {
			return nil, err
		}
		list = append(list, *img)
	}
	return list, nil
}

// dockerImages are the Docker Engine's, over one connection.
func dockerImages(ctx context.Context, fs *pflag.FlagSet) (images engine.Images, disconnect func(), err error) {
	c, err := config.Load(fs)
	if err != nil {
		return nil, nil, err
	}
	eng, err := docker.New(docker.Options{
		Socket: c.Docker.Endpoint, RunDir: c.RunDir + "/docker", RootDir: c.RootDir + "/docker", PauseImage: c.Images.Pause, Pinned: c.Images.Pinned,
	})
	if err != nil {
		return nil, nil, err
	}
	disconnect, err = eng.Connect(ctx)
	return eng, disconnect, err
}

func carriedTo(w io.Writer) func(imageset.Progress) {
	return func(p imageset.Progress) {
		if p.Err == nil { // the error is printed by who gets it
			_, _ = fmt.Fprintln(w, progressLine(&p))
		}
	}
}

func progressLine(p *imageset.Progress) string {
	return fmt.Sprintf("%s: %d %%, %.1f MiB from %s to %s", p.Image, p.Percent(), float64(p.Moved)/(1<<20), p.From, p.To)
}

func imageName(img *engine.Image) string {
	for _, names := range [][]string{img.RepoTags, img.RepoDigests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return ""
}
