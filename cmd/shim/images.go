package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/engine"
	"crishim/engine/native/image"
	"crishim/state"
)

const imagesUsage = `crishim images works on the native engine's images while the daemon is down: it takes the store's lock. A running daemon
does verify itself, and with both engines on copy and move.

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

// imageStoreDir is where the native engine keeps its images.
func imageStoreDir(c *config.Config) string { return filepath.Join(c.RootDir, "native", "images") }

// imageCommands are by name; each gets the arguments behind it.
var imageCommands = map[string]func(context.Context, *image.Store, *pflag.FlagSet, []string, io.Writer) error{
	"ls": listImages, "pull": pullImages, "rm": removeImages, "import": importImages, "export": exportImages,
	"copy": copyImages, "move": moveImages, "verify": verifyImages,
}

// manageImages is crishim images.
func manageImages(ctx context.Context, fs *pflag.FlagSet, out io.Writer) error {
	name, refs := fs.Arg(0), fs.Args()
	command, ok := imageCommands[name]
	if !ok {
		return fmt.Errorf("images: %q is none of ls, pull, rm, import, export, verify, copy, move: %w", name, errUsage)
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
		return printImages(fs, nil, out)
	}
	store, err := image.Open(image.Options{
		Root: imageStoreDir(c), RegistryConfigDirs: c.Images.RegistryDirs, NodeAuth: []string{c.Images.Credentials}, Pinned: c.Images.Pinned,
		InUse: func(_ context.Context, id engine.ImageID) ([]string, error) { return recordedUsers(c, id) },
		// Standard output may be an archive.
		Progress: progressTo(os.Stderr),
	})
	if errdefs.IsFailedPrecondition(err) && (name == "copy" || name == "move") {
		return carryInDaemon(ctx, c, fs, name, refs, out)
	}
	if errdefs.IsFailedPrecondition(err) && name == "verify" {
		return verifyInDaemon(ctx, c, fs, refs, out)
	}
	if errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("%s; use crictl images, crictl pull and crictl rmi, or stop it first, as import and export need: %w", plain(err.Error()), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	err = command(ctx, store, fs, refs, out)
	return errors.Join(err, store.Close())
}

// recordedUsers are the containers that are recorded with an image.
func recordedUsers(c *config.Config, id engine.ImageID) ([]string, error) {
	records, err := state.OpenReadOnly(stateDir(c))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil // nothing has ever run here
		}
		return nil, err
	}
	defer func() { _ = records.Close() }()
	var users []string
	for _, container := range records.Containers() {
		if container.Spec.Image.ID == id || slices.ContainsFunc(container.Spec.Mounts, func(m engine.Mount) bool { return m.Image != nil && m.Image.ID == id }) {
			users = append(users, "container "+string(container.ID))
		}
	}
	return users, nil
}

func progressTo(w io.Writer) func(image.Progress) {
	const mib = 1 << 20
	return func(p image.Progress) {
		switch p.Phase {
		case "failed": // the error is printed by who gets it
		case "done":
			_, _ = fmt.Fprintf(w, "%s: done, %.1f MiB in %v\n", p.Ref, float64(p.Fetched)/mib, p.Elapsed.Round(10*time.Millisecond))
		default:
			_, _ = fmt.Fprintf(w, "%s: %s, %.1f of %.1f MiB, %d of %d layers\n", p.Ref, p.Phase, float64(p.Fetched)/mib, float64(p.Total)/mib, p.Ready, p.Layers)
		}
	}
}

func listImages(ctx context.Context, store *image.Store, fs *pflag.FlagSet, refs []string, out io.Writer) error {
	list, err := store.ListImages(ctx)
	if err != nil {
		return err
	}
	if len(refs) > 0 {
		list = nil
		for _, ref := range refs {
			img, err := store.Image(ctx, ref)
			if err != nil {
				return err
			}
			list = append(list, *img)
		}
	}
	return printImages(fs, list, out)
}

func printImages(fs *pflag.FlagSet, list []engine.Image, out io.Writer) error {
	if asJSON, err := fs.GetBool("json"); err != nil || asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(list)
	}
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

func pullImages(ctx context.Context, store *image.Store, fs *pflag.FlagSet, refs []string, out io.Writer) error {
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		img, err := store.PullImage(ctx, &engine.PullSpec{Ref: ref, NoProgress: time.Duration(c.Images.PullNoProgress)})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, img.ID); err != nil {
			return err
		}
	}
	return nil
}

func removeImages(ctx context.Context, store *image.Store, _ *pflag.FlagSet, refs []string, out io.Writer) error {
	for _, ref := range refs {
		img, err := store.Image(ctx, ref) // unlike CRI, a person wants to know that it was not there
		if err != nil {
			return err
		}
		if err := store.RemoveImage(ctx, img.ID); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, img.ID); err != nil {
			return err
		}
	}
	return nil
}

func importImages(ctx context.Context, store *image.Store, fs *pflag.FlagSet, files []string, out io.Writer) error {
	tag, err := fs.GetString("tag")
	if err != nil {
		return err
	}
	if len(files) == 0 {
		files = []string{"-"}
	}
	for _, file := range files {
		var images []engine.Image
		if file == "-" {
			images, err = store.Import(ctx, os.Stdin, image.ImportOptions{Name: tag, Source: "standard input"})
		} else {
			images, err = store.ImportFile(ctx, file, image.ImportOptions{Name: tag})
		}
		for _, img := range images {
			if _, err := fmt.Fprintln(out, img.ID, strings.Join(img.RepoTags, " ")); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func exportImages(ctx context.Context, store *image.Store, fs *pflag.FlagSet, refs []string, out io.Writer) error {
	output, err := fs.GetString("output")
	switch {
	case err != nil:
		return err
	case output == "-":
		return store.Export(ctx, out, refs)
	case strings.HasSuffix(output, "/"):
		return store.ExportDir(ctx, filepath.Clean(output), refs)
	}
	return store.ExportFile(ctx, output, refs)
}
