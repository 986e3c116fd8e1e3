// Package checkpoint owns the archive of a container's checkpoint, in the form that CRI-O, containerd and checkpointctl know:
// CRIU's images below checkpoint/, spec.dump (the OCI specification), config.dump, and what the container changed of its
// image's files in rootfs-diff.tar; others' have what it removed in deleted.files.
//
// An archive that is read is hostile in its form: names lead nowhere and sizes are bounded. What CRIU makes of its images is
// not checked by anybody: they decide what runs, and with which rights. Mounts, devices and tags in it are not used.
package checkpoint

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/internal/atomicfile"
)

// The names in an archive.
const (
	ImagesDir  = "checkpoint" // CRIU's
	specDump   = "spec.dump"
	configDump = "config.dump"
	rootDiff   = "rootfs-diff.tar"
)

// Config is config.dump, in the words of checkpointctl.
type Config struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
}

// SaveFiles adds to work, which has ImagesDir, what the container changed of its root: the writable layer at upper.
func SaveFiles(ctx context.Context, work, upper string) error {
	err := writeNew(filepath.Join(work, rootDiff), func(f *os.File) error { return writeDiff(ctx, upper, f) })
	if err != nil {
		return fmt.Errorf("pack what the container changed: %w", err)
	}
	return nil
}

// Pack makes an archive at location, of work with what SaveFiles added and the rest. It is there whole or not at all.
func Pack(ctx context.Context, work string, config *Config, oci *specs.Spec, location string) error {
	for name, content := range map[string]any{specDump: oci, configDump: config} {
		data, err := json.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
			return err
		}
	}
	err := appear(location, func(f *os.File) error { return writeTree(ctx, work, f, ImagesDir, specDump, configDump, rootDiff) })
	if err != nil {
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	return nil
}

// appear makes a file that only root reads, and that has no name before it is whole: a crash leaves nothing. Where it takes the place of
// an older one, and on a file system without such files, it has a hidden name of its own beside the location meanwhile.
func appear(location string, write func(*os.File) error) error {
	dir := filepath.Dir(location)
	temp := filepath.Join(dir, ".checkpoint-"+rand.Text())
	name, err := writeNameless(dir, write, location, temp)
	if errors.Is(err, errNamed) {
		name, err = temp, writeNew(temp, write)
	}
	if err == nil && name == temp {
		err = os.Rename(temp, location)
	}
	if err != nil {
		_ = os.Remove(temp)
		return err
	}
	if err := atomicfile.SyncDir(dir); err != nil {
		return fmt.Errorf("the archive is there, but may not outlive a power cut: %w", err)
	}
	return nil
}

// errNamed is where files have names from the start.
var errNamed = errors.New("the file system has no files without a name")

// writeNameless makes a file in dir that gets the first of two names that is free.
func writeNameless(dir string, write func(*os.File) error, first, second string) (name string, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "", errNamed
	}
	f := os.NewFile(uintptr(fd), first)
	defer func() { _ = f.Close() }()
	if err := errors.Join(write(f), f.Sync()); err != nil {
		return "", err
	}
	for _, name = range []string{first, second} {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			return name, nil
		}
	}
	return "", errNamed
}

// writeNew makes a file that only root reads; it must not be there.
func writeNew(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Sync(), f.Close())
}
