package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/monitor"
)

// criuPatience bounds CRIU's look at the kernel.
const criuPatience = 10 * time.Second

// checkCRIU says why there are no checkpoints: CRIU is absent, or this kernel is none for it. The class is ErrNotImplemented.
func checkCRIU(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, criuPatience)
	defer cancel()
	path, err := exec.LookPath("criu")
	if err != nil {
		return fmt.Errorf("checkpoints need the program criu: %w: %w", err, errdefs.ErrNotImplemented)
	}
	if out, err := exec.CommandContext(ctx, path, "check").CombinedOutput(); err != nil {
		said := strings.Fields(string(out))
		return fmt.Errorf("criu check: %w: %.300s: %w", err, strings.Join(said, " "), errdefs.ErrNotImplemented)
	}
	return nil
}

// CheckpointContainer implements engine.Containers. The archive is as CRI-O and containerd write it: CRIU's images below
// checkpoint/, spec.dump, config.dump, and what the container changed of its root in rootfs-diff.tar. The container runs on.
func (e *Engine) CheckpointContainer(ctx context.Context, id engine.ContainerID, location string) error {
	if err := e.check(ctx); err != nil {
		return err
	}
	if e.criu != nil {
		return e.criu
	}
	c, client, err := e.running(id)
	if err != nil {
		return err
	}
	oci, err := e.readBundle(id)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(e.opts.RootDir, checkpointPrefix)
	if err != nil {
		return diskError(err)
	}
	defer func() { quiet(removeTree(work), "remove the working folder of a checkpoint", id) }()
	images := filepath.Join(work, checkpointImages)
	if err := os.Mkdir(images, 0o700); err != nil {
		return diskError(err)
	}
	err = client.Checkpoint(ctx, string(id), &monitor.CheckpointArgs{ImagePath: images, WorkPath: work, LeaveRunning: true, TCPEstablished: true, FileLocks: true})
	if err != nil {
		return endedMeanwhile(id, err)
	}
	e.mu.Lock()
	record := c.containerRecord
	e.mu.Unlock()
	return diskError(writeCheckpoint(ctx, work, &record, oci, location))
}

// The names in the archive and, while it is made, in the root folder.
const (
	checkpointPrefix = "checkpoint-"
	checkpointImages = "checkpoint"
	specDump         = "spec.dump"
	configDump       = "config.dump"
	rootDiff         = "rootfs-diff.tar"
)

// checkpointConfig is config.dump, in the words of checkpointctl.
type checkpointConfig struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
}

// writeCheckpoint packs what CRIU wrote to work, and the rest, to a file at location that is there whole or not at all.
func writeCheckpoint(ctx context.Context, work string, c *containerRecord, oci *specs.Spec, location string) error {
	for name, content := range map[string]any{
		specDump: oci,
		configDump: checkpointConfig{
			ID: string(c.ID), Name: c.Spec.Key.Name, RootfsImage: c.Spec.Image.Name, RootfsImageRef: string(c.Spec.Image.ID),
			RootfsImageName: c.Spec.Image.UserSpecified, OCIRuntime: "libcontainer", CreatedTime: c.CreatedAt, CheckpointedAt: time.Now(),
		},
	} {
		data, err := json.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
			return err
		}
	}
	err := writeNew(filepath.Join(work, rootDiff), func(f *os.File) error { return writeDiff(ctx, c.Upper, f) })
	if err != nil {
		return fmt.Errorf("pack what the container changed: %w", err)
	}
	temp := location + ".tmp-" + newID()[:12]
	err = writeNew(temp, func(f *os.File) error {
		return writeTree(ctx, work, f, checkpointImages, specDump, configDump, rootDiff)
	})
	if err == nil {
		err = os.Rename(temp, location)
	}
	if err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	return nil
}

// writeNew makes a file that only root reads; it must not be there.
func writeNew(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Sync(), f.Close())
}
