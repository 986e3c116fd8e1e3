package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/engine"
	"crishim/engine/native/image"
)

// verifying is what crishim images verify is told to do.
type verifying struct {
	Refs []string `json:"refs"` // none: all
	Fix  bool     `json:"fix"`
}

func verifyingOf(fs *pflag.FlagSet, refs []string) (verifying, error) {
	fix, err := fs.GetBool("fix")
	return verifying{refs, fix}, err
}

func verifyImages(ctx context.Context, store *image.Store, fs *pflag.FlagSet, refs []string, out io.Writer) error {
	what, err := verifyingOf(fs, refs)
	if err != nil {
		return err
	}
	return what.do(ctx, store, out)
}

// fixRounds is how often damage is mended: where a blob was damaged, only the second look can tell of the layer out of it.
const fixRounds = 2

// do prints a line for each image that is whole, one for each piece of damage, and a sum. The verdict is 1 while any damage is left.
func (what *verifying) do(ctx context.Context, store *image.Store, out io.Writer) error {
	broken := map[engine.ImageID]bool{}
	var damaged []image.Damage
	seen, err := store.Verify(ctx, what.Refs, func(img *engine.Image, found []image.Damage) {
		if len(found) == 0 {
			_, _ = fmt.Fprintf(out, "%s: whole\n", describe(img))
		}
		for i := range found {
			broken[img.ID] = true
			_, _ = fmt.Fprintf(out, "%s: %s\n", describe(img), found[i].String())
		}
		damaged = append(damaged, found...)
	})
	if err != nil {
		return err
	}
	count := len(broken)
	for round := 0; what.Fix && len(damaged) > 0 && round < fixRounds; round++ {
		if damaged, err = mendImages(ctx, store, damaged, broken, out); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(out, "%d images with %d blobs (%.1f MiB) and %d layers: %d damaged", seen.Images, seen.Blobs, float64(seen.Bytes)/(1<<20), seen.Layers, count)
	if what.Fix && count > 0 {
		_, _ = fmt.Fprintf(out, ", %d of them mended", count-len(broken))
	}
	_, _ = fmt.Fprintln(out)
	if len(broken) > 0 {
		return verdict(1)
	}
	return nil
}

// mendImages repairs, takes the images that are whole then out of broken, and returns the damage of those that could be repaired and have
// some still.
func mendImages(ctx context.Context, store *image.Store, damaged []image.Damage, broken map[engine.ImageID]bool, out io.Writer) (left []image.Damage, err error) {
	var again []string
	err = store.Repair(ctx, damaged, func(img *engine.Image, err error) {
		broken[img.ID] = true
		if err != nil {
			_, _ = fmt.Fprintf(out, "%s: not mended: %v\n", describe(img), err)
			return
		}
		again = append(again, string(img.ID))
	})
	if err != nil || len(again) == 0 {
		return nil, err
	}
	_, err = store.Verify(ctx, again, func(img *engine.Image, found []image.Damage) {
		left = append(left, found...)
		if len(found) == 0 {
			delete(broken, img.ID)
			_, _ = fmt.Fprintf(out, "%s: mended\n", describe(img))
		}
	})
	return left, err
}

// describe is an image in a line.
func describe(img *engine.Image) string {
	return strings.TrimSuffix(fmt.Sprintf("%.12s %s", strings.TrimPrefix(string(img.ID), "sha256:"), imageName(img)), " ")
}

// verifyInDaemon has the running daemon do it, whose pods use the images meanwhile.
func verifyInDaemon(ctx context.Context, c *config.Config, fs *pflag.FlagSet, refs []string, out io.Writer) error {
	what, err := verifyingOf(fs, refs)
	if err != nil {
		return err
	}
	return askDaemon(ctx, c, verifyPath, what, nil, nil, out)
}

// inDaemon verifies the images of the daemon's native engine.
func (what *verifying) inDaemon(ctx context.Context, engines nodeEngines, answer *answering) error {
	store, err := engines.imageStore()
	if err != nil {
		return err
	}
	return what.do(ctx, store, answer)
}

// imageStore is that of the native engine.
func (n nodeEngines) imageStore() (*image.Store, error) {
	for _, e := range n {
		if native, ok := e.(nativeEngine); ok {
			return native.ImageStore(), nil
		}
	}
	return nil, fmt.Errorf("the native engine, whose images these are, is not on in the running daemon: %w", errdefs.ErrFailedPrecondition)
}
