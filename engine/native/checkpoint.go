package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/native/checkpoint"
	"crishim/engine/native/monitor"
)

// criuPatience bounds CRIU's look at the kernel.
const criuPatience = 10 * time.Second

// checkCRIU says why there are no checkpoints: CRIU is absent, or this kernel is none for it. The class is ErrNotImplemented. Of a
// CRIU that does not answer in time, as on a host that has just booted and is busy, the first checkpoint will tell.
func checkCRIU(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, criuPatience)
	defer cancel()
	path, err := exec.LookPath("criu")
	if err != nil {
		return fmt.Errorf("checkpoints need the program criu: %w: %w", err, errdefs.ErrNotImplemented)
	}
	cmd := exec.CommandContext(ctx, path, "check")
	cmd.WaitDelay = outputDelay
	out, err := cmd.CombinedOutput()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) { // that is of one that has ended well
		said := strings.Fields(string(out))
		return fmt.Errorf("criu check: %w: %.300s: %w", err, strings.Join(said, " "), errdefs.ErrNotImplemented)
	}
	return nil
}

// CheckpointContainer implements engine.Containers. The container runs on.
func (e *Engine) CheckpointContainer(ctx context.Context, id engine.ContainerID, location string) error {
	return e.CheckpointContainers(ctx, map[engine.ContainerID]string{id: location})
}

// dumpPrefix begins the folders in which checkpoints are made. They are in a folder of ours: what a crash leaves of them, as large as a
// container's memory, is nobody's at the next start.
const dumpPrefix = "dump-"

// dump is a container's checkpoint in the making.
type dump struct {
	c              *container
	client         *monitor.Client
	location, work string
}

// Checkpoints implements engine.Checkpointer.
func (e *Engine) Checkpoints(ctx context.Context) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	return e.criu
}

// CheckpointContainers implements engine.Checkpointer.
func (e *Engine) CheckpointContainers(ctx context.Context, locations map[engine.ContainerID]string) (err error) {
	if err := e.Checkpoints(ctx); err != nil {
		return err
	}
	var dumps []*dump
	for _, id := range slices.Sorted(maps.Keys(locations)) {
		c, client, err := e.running(id)
		if err != nil {
			return err
		}
		if err := e.checkpointable(c); err != nil {
			return err
		}
		dumps = append(dumps, &dump{c: c, client: client, location: locations[id]})
	}
	var packed []string
	defer func() {
		for _, d := range dumps {
			if d.work != "" {
				quiet(removeTree(d.work), "remove the working folder of a checkpoint", d.c.ID)
			}
		}
		if err != nil {
			for _, location := range packed {
				quiet(removeFile(location), "remove a checkpoint of which others failed", location)
			}
		}
	}()
	if err := e.dumpPaused(ctx, dumps); err != nil {
		return diskError(err)
	}
	for _, d := range dumps {
		if err := e.pack(ctx, d); err != nil {
			return diskError(err)
		}
		packed = append(packed, d.location)
	}
	return nil
}

// checkpointable refuses what CRIU cannot do, or not so that it can be restored.
func (e *Engine) checkpointable(c *container) error {
	p, err := e.pod(c.Spec.Pod)
	if err != nil {
		return err
	}
	switch {
	case p.Spec.Handler != "":
		return fmt.Errorf("container %s: checkpoints are for the engine's own runtime, not for the handler %q: %w", c.ID, p.Spec.Handler, errdefs.ErrNotImplemented)
	case p.Spec.Namespaces.User != nil:
		return fmt.Errorf("container %s: there are no checkpoints in a pod with a user namespace: %w", c.ID, errdefs.ErrNotImplemented)
	}
	return nil
}

// dumpPaused pauses all, dumps each, and lets all run on, also when ctx ends.
func (e *Engine) dumpPaused(ctx context.Context, dumps []*dump) (err error) {
	defer func() {
		for _, d := range dumps {
			if rerr := e.resume(ctx, d); rerr != nil && err == nil {
				err = endedMeanwhile(d.c.ID, rerr)
			}
		}
	}()
	for _, d := range dumps {
		if err := d.client.Pause(ctx, string(d.c.ID)); err != nil {
			return endedMeanwhile(d.c.ID, err)
		}
	}
	for _, d := range dumps {
		if d.work, err = os.MkdirTemp(e.checkpoints(), dumpPrefix); err != nil {
			return err
		}
		images := filepath.Join(d.work, checkpoint.ImagesDir)
		if err := os.Mkdir(images, 0o700); err != nil {
			return err
		}
		err := d.client.Checkpoint(ctx, string(d.c.ID), &monitor.CheckpointArgs{
			ImagePath: images, WorkPath: d.work, LeaveRunning: true, TCPEstablished: true, FileLocks: true,
		})
		if err != nil {
			return endedMeanwhile(d.c.ID, err)
		}
		if err := checkpoint.SaveFiles(ctx, d.work, d.c.Upper); err != nil {
			return err
		}
	}
	return nil
}

// resume lets a container run on. Where CRIU is at it still, which goes on when its caller has left, it does so as soon as that has ended.
func (e *Engine) resume(ctx context.Context, d *dump) error {
	limit := tidyLimit
	if ctx.Err() != nil {
		limit = hangLimit
	}
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	err := d.client.Resume(patient, string(d.c.ID))
	if err != nil && patient.Err() != nil {
		e.inBackground(func(ctx context.Context) {
			quiet(d.client.Resume(ctx, string(d.c.ID)), "let a container run on after its checkpoint", d.c.ID)
		})
	}
	return err
}

// pack writes the archive.
func (e *Engine) pack(ctx context.Context, d *dump) error {
	oci, err := e.readBundle(d.c.ID)
	if err != nil {
		return err
	}
	s := &d.c.Spec
	return checkpoint.Pack(ctx, d.work, &checkpoint.Config{
		ID: string(d.c.ID), Name: s.Key.Name, RootfsImage: s.Image.Name, RootfsImageRef: string(s.Image.ID), RootfsImageName: s.Image.UserSpecified,
		OCIRuntime: "libcontainer", CreatedTime: d.c.CreatedAt, CheckpointedAt: time.Now(),
	}, oci, d.location)
}

// The annotations by which an image says that its content is a container's checkpoint, of CRI-O and of CRIU.
var checkpointAnnotations = []string{"io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"}

// ReadCheckpoint implements engine.Checkpointer.
func (e *Engine) ReadCheckpoint(ctx context.Context, ref *engine.CheckpointRef) (*engine.Checkpoint, error) {
	if err := e.check(ctx); err != nil {
		return nil, err
	}
	source, err := e.checkpointSource(ctx, ref)
	if err != nil {
		return nil, err
	}
	config, err := checkpoint.ReadConfig(ctx, source)
	if err != nil {
		return nil, err
	}
	found := &engine.Checkpoint{Name: config.Name, Image: engine.ImageID(config.RootfsImageRef)}
	for _, name := range []string{config.RootfsImage, config.RootfsImageName} {
		if name != "" && !slices.Contains(found.ImageNames, name) {
			found.ImageNames = append(found.ImageNames, name)
		}
	}
	return found, nil
}

func (e *Engine) checkpointSource(ctx context.Context, ref *engine.CheckpointRef) (checkpoint.Source, error) {
	if ref.Image == "" {
		return checkpoint.File(ref.Path), nil
	}
	annotations, err := e.images.Annotations(ctx, ref.Image)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(checkpointAnnotations, func(name string) bool { return annotations[name] != "" }) {
		return nil, fmt.Errorf("image %s is no checkpoint: %w", ref.Image, errdefs.ErrNotFound)
	}
	layers, err := e.images.LayerDirs(ctx, ref.Image)
	if err != nil {
		return nil, err
	}
	if len(layers) != 1 {
		return nil, fmt.Errorf("image %s of a checkpoint has %d layers, not one: %w", ref.Image, len(layers), errdefs.ErrInvalidArgument)
	}
	return checkpoint.Tree(layers[0]), nil
}

// unpackCheckpoint puts what the container is restored from into a folder of its own.
func (e *Engine) unpackCheckpoint(ctx context.Context, c *container) error {
	ref := c.Spec.Checkpoint
	switch {
	case ref == nil:
		return nil
	case e.criu != nil:
		return e.criu
	}
	if err := e.checkpointable(c); err != nil {
		return err
	}
	source, err := e.checkpointSource(ctx, ref)
	if err != nil {
		return err
	}
	dir := e.checkpointDir(c.ID)
	if err := checkpoint.Extract(ctx, source, dir); err != nil {
		return err
	}
	return os.Mkdir(filepath.Join(dir, criuWork), 0o700)
}

// namingItsCommand is the container's spec, with the command of its checkpoint where it names none and the image may not either.
func (e *Engine) namingItsCommand(c *container) (*engine.ContainerSpec, error) {
	s := &c.Spec
	if s.Checkpoint == nil || s.Checkpoint.Exact || len(s.Command)+len(s.Args) > 0 {
		return s, nil
	}
	process, err := checkpoint.Process(e.checkpointDir(c.ID))
	if err != nil {
		return nil, err
	}
	named := *s
	named.Command = process.Args
	return &named, nil
}

// criuWork is beside CRIU's images, for its log.
const criuWork = "work"

// restoreProcess has the pod's monitor make the container's processes of its checkpoint. They run when it returns.
func (e *Engine) restoreProcess(ctx context.Context, client *monitor.Client, c *container, oci json.RawMessage, args monitor.CreateArgs) (monitor.State, error) {
	if err := e.complete(ctx, &args, string(c.ID), oci); err != nil {
		return monitor.State{}, err
	}
	dir := e.checkpointDir(c.ID)
	state, err := client.Restore(ctx, string(c.ID), &monitor.RestoreArgs{
		CreateArgs: args, ImagePath: filepath.Join(dir, checkpoint.ImagesDir), WorkPath: filepath.Join(dir, criuWork), TCPEstablished: true, FileLocks: true,
	})
	if err != nil {
		return state, err
	}
	e.setBorn(c, state.CreatedAt)
	quiet(removeTree(dir), "remove the checkpoint of a container that was restored", c.ID)
	return state, nil
}

func (e *Engine) checkpoints() string { return filepath.Join(e.opts.RootDir, "checkpoints") }

func (e *Engine) checkpointDir(id engine.ContainerID) string {
	return filepath.Join(e.checkpoints(), string(id))
}

// fillRoot makes what a restored container had changed of its root.
func (e *Engine) fillRoot(ctx context.Context, c *container, layers []string) func(upper *os.File) error {
	if c.Spec.Checkpoint == nil {
		return nil
	}
	return func(upper *os.File) error {
		return checkpoint.RestoreFiles(ctx, e.checkpointDir(c.ID), upper, layers)
	}
}
