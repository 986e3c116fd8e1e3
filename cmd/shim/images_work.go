package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/engine"
	"crishim/engine/native/image"
	"crishim/internal/atomicfile"
)

// imageWork is one piece of what crishim images ls, pull, rm, import and export are told to do. What it reads and writes comes
// and goes beside it: the store may be that of a running daemon, which has other files.
type imageWork struct {
	Command    string          `json:"command"`
	Refs       []string        `json:"refs,omitempty"`
	JSON       bool            `json:"json,omitempty"`   // ls
	Tag        string          `json:"tag,omitempty"`    // import
	Source     string          `json:"source,omitempty"` // import: what the archive is called
	Dir        string          `json:"dir,omitempty"`    // import and export: the folder of an OCI layout, in place of an archive
	NoProgress config.Duration `json:"noProgress,omitempty"`
}

// worker does a piece of work in the store.
type worker func(ctx context.Context, work *imageWork, in io.Reader, out io.Writer) error

// do works in a store of this process.
func (w *imageWork) do(ctx context.Context, store *image.Store, in io.Reader, out io.Writer) error {
	switch w.Command {
	case "ls":
		list, err := chosen(ctx, store, w.Refs)
		if err != nil {
			return err
		}
		return printImages(list, w.JSON, out)
	case "pull":
		return w.pull(ctx, store, out)
	case "rm":
		return w.remove(ctx, store, out)
	case "import":
		return w.take(ctx, store, in, out)
	case "export":
		if w.Dir != "" {
			return store.ExportDir(ctx, w.Dir, w.Refs)
		}
		return store.Export(ctx, out, w.Refs)
	}
	return fmt.Errorf("images: no command %q: %w", w.Command, errdefs.ErrNotImplemented)
}

func (w *imageWork) pull(ctx context.Context, store *image.Store, out io.Writer) error {
	for _, ref := range w.Refs {
		img, err := store.PullImage(ctx, &engine.PullSpec{Ref: ref, NoProgress: time.Duration(w.NoProgress)})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, img.ID); err != nil {
			return err
		}
	}
	return nil
}

func (w *imageWork) remove(ctx context.Context, store *image.Store, out io.Writer) error {
	for _, ref := range w.Refs {
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

func (w *imageWork) take(ctx context.Context, store *image.Store, in io.Reader, out io.Writer) (err error) {
	options := image.ImportOptions{Name: w.Tag, Source: w.Source}
	var images []engine.Image
	if w.Dir != "" {
		images, err = store.ImportDir(ctx, w.Dir, options)
	} else {
		images, err = store.Import(ctx, in, options)
	}
	for _, img := range images {
		if _, perr := fmt.Fprintln(out, img.ID, strings.Join(img.RepoTags, " ")); perr != nil {
			return errors.Join(err, perr)
		}
	}
	return err
}

// concerns says whether progress that the store tells of is this work's.
func (w *imageWork) concerns(p *image.Progress) bool {
	if w.Command == "import" {
		return p.Ref == w.Source
	}
	for _, ref := range w.Refs {
		if named, err := reference.ParseDockerRef(ref); err == nil && reference.FamiliarString(named) == p.Ref {
			return true
		}
	}
	return false
}

// inDaemon works in the store of the daemon's native engine, and tells how far it is.
func (w *imageWork) inDaemon(ctx context.Context, engines nodeEngines, in io.Reader, answer *answering) error {
	store, err := engines.imageStore()
	if err != nil {
		return err
	}
	defer w.tellProgress(store, answer)()
	if w.Command != "export" {
		return w.do(ctx, store, in, answer)
	}
	data := bufio.NewWriterSize(dataTo{answer}, 1<<20)
	if err := w.do(ctx, store, in, data); err != nil {
		return err
	}
	return data.Flush()
}

// tellProgress tells of it until stop is called. Who does not take it keeps no pull waiting.
func (w *imageWork) tellProgress(store *image.Store, answer *answering) (stop func()) {
	ended := make(chan struct{})
	steps := make(chan image.Progress, 100)
	stopWatch := store.WatchProgress(func(p image.Progress) {
		if w.concerns(&p) {
			select {
			case steps <- p:
			default:
			}
		}
	})
	var telling sync.WaitGroup
	telling.Go(func() {
		for {
			select {
			case p := <-steps:
				answer.tell(told{Image: &p})
			case <-ended:
				for len(steps) > 0 {
					p := <-steps
					answer.tell(told{Image: &p})
				}
				return
			}
		}
	})
	return func() {
		stopWatch()
		close(ended)
		telling.Wait()
	}
}

// workOn has the worker do what the command line says, file by file.
func workOn(ctx context.Context, do worker, fs *pflag.FlagSet, name string, args []string, progress func(image.Progress), out io.Writer) error {
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	asJSON, err1 := fs.GetBool("json")
	tag, err2 := fs.GetString("tag")
	output, err3 := fs.GetString("output")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	work := imageWork{Command: name, Refs: args, JSON: asJSON, Tag: tag, NoProgress: c.Images.PullNoProgress}
	switch name {
	case "import":
		work.Refs = nil
		if len(args) == 0 {
			args = []string{"-"}
		}
		for _, file := range args {
			if err := importFrom(ctx, do, work, file, progress, out); err != nil {
				return err
			}
		}
		return nil
	case "export":
		return exportTo(ctx, do, work, output, out)
	}
	return do(ctx, &work, nil, out)
}

func importFrom(ctx context.Context, do worker, work imageWork, file string, progress func(image.Progress), out io.Writer) error {
	if file == "-" {
		work.Source = "standard input"
		return do(ctx, &work, os.Stdin, out)
	}
	work.Source = filepath.Clean(file)
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if info.IsDir() {
		if work.Dir, err = filepath.Abs(file); err != nil {
			return fmt.Errorf("import: %w", err)
		}
		return do(ctx, &work, nil, out)
	}
	began := time.Now()
	reading := &countedReader{r: f, of: image.Progress{Ref: work.Source, Phase: "reading", Total: info.Size()}, tell: progress, began: began, told: began}
	return do(ctx, &work, reading, out)
}

// countedReader tells each second how much of a file was read.
type countedReader struct {
	r           io.Reader
	of          image.Progress
	tell        func(image.Progress)
	began, told time.Time
}

func (c *countedReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.of.Fetched += int64(n)
	if now := time.Now(); now.Sub(c.told) >= time.Second {
		c.told, c.of.Elapsed = now, now.Sub(c.began)
		c.tell(c.of)
	}
	return n, err
}

func exportTo(ctx context.Context, do worker, work imageWork, output string, out io.Writer) (err error) {
	switch {
	case output == "-":
		return do(ctx, &work, nil, out)
	case strings.HasSuffix(output, "/"):
		if work.Dir, err = filepath.Abs(output); err != nil {
			return fmt.Errorf("export: %w", err)
		}
		return do(ctx, &work, nil, out)
	}
	switch info, err := os.Stat(output); {
	case err == nil && info.IsDir():
		return fmt.Errorf("export: %s is a folder; with a / at its end the images are put into it as an OCI layout: %w", output, errUsage)
	case err == nil && !info.Mode().IsRegular():
		return exportInto(ctx, do, work, output)
	}
	// The file is whole or not there.
	f, err := os.CreateTemp(filepath.Dir(output), atomicfile.TempPrefix+"*")
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(do(ctx, &work, nil, f), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), output); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// exportInto writes to a device or pipe that is there: a file must not take its place.
func exportInto(ctx context.Context, do worker, work imageWork, output string) error {
	f, err := os.OpenFile(output, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return errors.Join(do(ctx, &work, nil, f), f.Close())
}

func printImages(list []engine.Image, asJSON bool, out io.Writer) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(append([]engine.Image{}, list...)) // none is a list, too
	}
	return imageTable(list, out)
}
