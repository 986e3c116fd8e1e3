package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/engine"
	"crishim/engine/native"
	"crishim/engine/native/image"
	"crishim/state"
)

const imagesUsage = `crishim images works on the native engine's images. Where the daemon runs it does the work, as the store is its; copy and move
need both engines on there. While the daemon is down the command takes the store itself.

Usage: crishim images COMMAND [FLAGS] [ARGUMENT...]

  ls                  the images, or with names those
  pull REFERENCE...   from registries, with the node's mirrors and credentials
  rm REFERENCE...     with every name; not where a container uses it
  import [FILE...]    archives of docker save or OCI layouts (also folders); - or nothing is standard input
  export REFERENCE... one archive that docker load and readers of OCI layouts take, to standard output or --output
  verify [REFERENCE...]
                      all images, or those: each blob is held to its digest, each manifest to what it links, and each unpacked
                      layer is compared with its blob unpacked anew: names, owners, modes, links, attributes, times, content. It
                      takes the space of one layer. The exit status is 1 while anything is damaged; --fix mends it: layers out of
                      sound blobs, blobs from where they were pulled; a damaged layer that a container uses is left alone
  copy [REFERENCE...] --from docker --to native (or back): all images, or those, without a registry; what is there is not
                      copied again, so it can be begun anew at any time. The Docker Engine must run
  move [REFERENCE...] copy, then remove each from where it was, unless a container uses it or it is pinned

`

func imagesFlags(fs *pflag.FlagSet) {
	fs.StringP("output", "o", "-", "export: the file to write, - is standard output; a path that ends in / is the folder of an OCI layout")
	fs.StringP("tag", "t", "", "import: the name with tag that the archive's only image gets in place of its own")
	fs.Bool("json", false, "ls: print JSON")
	fs.Bool("fix", false, "verify: mend what is damaged")
	fs.String("from", "", "copy, move: the engine that has the images, docker or native")
	fs.String("to", "", "copy, move: the engine that gets them")
	config.Flags(fs)
}

// nativeRootDir and nativeRunDir are the native engine's.
func nativeRootDir(c *config.Config) string { return filepath.Join(c.RootDir, "native") }
func nativeRunDir(c *config.Config) string  { return filepath.Join(c.RunDir, "native") }

// imageStoreDir is where the native engine keeps its images.
func imageStoreDir(c *config.Config) string { return filepath.Join(nativeRootDir(c), "images") }

// imageCommands are what crishim images does.
var imageCommands = []string{"ls", "pull", "rm", "import", "export", "verify", "copy", "move"}

// manageImages is crishim images.
func manageImages(ctx context.Context, fs *pflag.FlagSet, out io.Writer) error {
	name, refs := fs.Arg(0), fs.Args()
	if !slices.Contains(imageCommands, name) {
		return fmt.Errorf("images: %q is none of %s: %w", name, strings.Join(imageCommands, ", "), errUsage)
	}
	refs = refs[1:]
	if len(refs) == 0 && (name == "pull" || name == "rm" || name == "export") {
		return fmt.Errorf("images %s: name at least one image: %w", name, errUsage)
	}
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	// What only looks, or takes away, makes no store.
	if _, err := os.Stat(imageStoreDir(c)); errors.Is(err, os.ErrNotExist) && slices.Contains([]string{"ls", "rm", "export", "verify"}, name) {
		if len(refs) > 0 {
			return fmt.Errorf("images %s: there is no image store in %s: %w", name, imageStoreDir(c), errdefs.ErrNotFound)
		}
		if name == "verify" {
			_, err := fmt.Fprintln(out, "there are no images")
			return err
		}
		asJSON, err := fs.GetBool("json")
		if err != nil {
			return err
		}
		return printImages(nil, asJSON, out)
	}
	progress := progressTo(os.Stderr) // standard output may be an archive
	store, err := image.Open(image.Options{
		Root: imageStoreDir(c), RegistryConfigDirs: c.Images.RegistryDirs, NodeAuth: []string{c.Images.Credentials}, TokenServers: c.Images.TokenServers, Pinned: c.Images.Pinned,
		InUse:    func(_ context.Context, id engine.ImageID) ([]string, error) { return recordedUsers(c, id) },
		Progress: progress,
	})
	if errdefs.IsFailedPrecondition(err) {
		return imagesInDaemon(ctx, c, fs, name, refs, progress, out)
	}
	if err != nil {
		return err
	}
	switch name {
	case "copy", "move":
		err = carryOffline(ctx, store, fs, name, refs, out)
	case "verify":
		err = verifyImages(ctx, store, fs, refs, out)
	default:
		err = workOn(ctx, func(ctx context.Context, work *imageWork, in io.Reader, out io.Writer) error {
			return work.do(ctx, store, in, out)
		}, fs, name, refs, progress, out)
	}
	return errors.Join(err, store.Close())
}

// imagesInDaemon has the running daemon do it, which has the store.
func imagesInDaemon(ctx context.Context, c *config.Config, fs *pflag.FlagSet, name string, refs []string, progress func(image.Progress), out io.Writer) error {
	switch name {
	case "copy", "move":
		return carryInDaemon(ctx, c, fs, name, refs, out)
	case "verify":
		return verifyInDaemon(ctx, c, fs, refs, out)
	}
	return workOn(ctx, func(ctx context.Context, work *imageWork, in io.Reader, out io.Writer) error {
		return askDaemon(ctx, c, workPath, work, in, progress, out)
	}, fs, name, refs, progress, out)
}

// recordedUsers are the containers that are recorded with an image, by the engine or by the server. The engine's own records know
// those, too, whose record here is damaged or of a newer version: they run, and have the image under them.
func recordedUsers(c *config.Config, id engine.ImageID) ([]string, error) {
	users, err := native.RecordedUsers(nativeRootDir(c), nativeRunDir(c), id)
	if err != nil {
		return nil, fmt.Errorf("read which containers use images: %w", err)
	}
	records, err := state.OpenReadOnly(stateDir(c))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return users, nil // nothing has ever run here
		}
		return nil, err
	}
	defer func() { _ = records.Close() }()
	for _, container := range records.Containers() {
		if container.Spec.Image.ID == id || slices.ContainsFunc(container.Spec.Mounts, func(m engine.Mount) bool { return m.Image != nil && m.Image.ID == id }) {
			users = append(users, "container "+string(container.ID))
		}
	}
	slices.Sort(users)
	return slices.Compact(users), nil
}

func imageTable(list []engine.Image, out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tNAMES\tMIB\tPINNED")
	for _, img := range list {
		names := img.RepoTags
		if len(names) == 0 {
			names = img.RepoDigests
		}
		_, _ = fmt.Fprintf(w, "%.12s\t%s\t%.1f\t%v\n", strings.TrimPrefix(string(img.ID), "sha256:"), strings.Join(names, ", "), float64(img.Size)/(1<<20), img.Pinned)
	}
	return w.Flush()
}
