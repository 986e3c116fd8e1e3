package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/image/unpack"
	"crishim/engine/native/space"
)

// Bounds of what is read. Memory is most of a checkpoint.
const (
	maxBytes   = 256 << 30
	maxEntries = 100_000
	maxDump    = 16 << 20 // of specDump, configDump and deletedFiles
)

// deletedFiles is in archives of CRI-O and Podman, whose rootDiff does not tell what was removed: a JSON array of paths from the
// root, a folder's for all that was in it. They are removed after rootDiff was unpacked.
const deletedFiles = "deleted.files"

// Source is where an archive's content is: a File, or a Tree.
type Source interface {
	// each calls f with every regular file.
	each(ctx context.Context, f func(name string, size int64, content io.Reader) error) error
}

// File is an archive at a path.
type File string

func (f File) each(ctx context.Context, add func(string, int64, io.Reader) error) error {
	file, err := os.OpenFile(string(f), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s is no file: %w", string(f), errdefs.ErrInvalidArgument))
	}
	r := tar.NewReader(file)
	for entries := 0; ctx.Err() == nil; entries++ {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is damaged, or no tar: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if entries >= maxEntries {
			return fmt.Errorf("it has more than %d entries: %w", maxEntries, errdefs.ErrResourceExhausted)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := add(path.Clean(header.Name), header.Size, r); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Tree is a folder with an archive's content, as a layer of an image has it.
type Tree string

func (t Tree) each(ctx context.Context, add func(string, int64, io.Reader) error) error {
	root, err := os.OpenRoot(string(t))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	names := []string{configDump, specDump, rootDiff, deletedFiles}
	images, err := fs.ReadDir(root.FS(), ImagesDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range images {
		names = append(names, path.Join(ImagesDir, entry.Name()))
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := withRegular(root, name, func(size int64, content *os.File) error { return add(name, size, content) })
		if err != nil && !errors.Is(err, unix.ELOOP) {
			return err
		}
	}
	return nil
}

// withRegular calls f with the regular file of the name, and the size that it has then. What is absent or something else is passed
// over: who can change the folder may do so meanwhile. A link is ELOOP.
func withRegular(root *os.Root, name string, f func(size int64, content *os.File) error) error {
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return f(info.Size(), file)
}

// ReadConfig is the checkpoint's config.dump. ErrInvalidArgument where there is none.
func ReadConfig(ctx context.Context, from Source) (*Config, error) {
	config := new(Config)
	found := false
	err := from.each(ctx, func(name string, size int64, content io.Reader) error {
		if name != configDump {
			return nil
		}
		found = true
		return decode(name, size, content, config)
	})
	if err == nil && !found {
		err = fmt.Errorf("it has no %s: %w", configDump, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint: %w", err)
	}
	return config, nil
}

func decode(name string, size int64, content io.Reader, into any) error {
	if size > maxDump {
		return fmt.Errorf("%s has %d bytes, more than %d: %w", name, size, maxDump, errdefs.ErrResourceExhausted)
	}
	if err := json.NewDecoder(content).Decode(into); err != nil {
		return fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Extract puts CRIU's images into dir/ImagesDir, and beside them what the other functions read. dir is made. It leaves the disk what
// image/space keeps free: ErrResourceExhausted.
func Extract(ctx context.Context, from Source, dir string) error {
	if err := extract(ctx, from, dir); err != nil {
		return fmt.Errorf("unpack the checkpoint: %w", err)
	}
	return nil
}

func extract(ctx context.Context, from Source, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, ImagesDir), 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	at, err := root.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = at.Close() }()
	room := space.On(at, 0)
	total, images := int64(0), 0
	err = from.each(ctx, func(name string, size int64, content io.Reader) error {
		parent, base := path.Split(name)
		switch {
		case path.Clean(parent) == ImagesDir && base != "":
			images++
		case name == specDump, name == rootDiff, name == deletedFiles:
		default:
			return nil
		}
		if total += size; total < 0 || total > maxBytes {
			return fmt.Errorf("its files are larger than %d bytes: %w", int64(maxBytes), errdefs.ErrResourceExhausted)
		}
		file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(room.Writer(file), &interruptible{ctx, content})
		return errors.Join(err, file.Close())
	})
	if err == nil && images == 0 {
		err = fmt.Errorf("it has nothing in %s/: %w", ImagesDir, errdefs.ErrInvalidArgument)
	}
	return err
}

// interruptible ends a long copy with its context.
type interruptible struct {
	ctx context.Context
	io.Reader
}

func (r *interruptible) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// RestoreFiles makes what the container had changed of its root in upper, which is empty and lies on layers, lowest first, from what
// Extract put into dir. Folders that are in upper only for what lies in them are as the layers have them.
func RestoreFiles(ctx context.Context, dir string, upper *os.File, layers []string) error {
	added, err := addFiles(ctx, dir, upper)
	if err != nil {
		return err
	}
	removed, err := removeFiles(ctx, dir, upper)
	if err != nil {
		return err
	}
	return unpack.Resemble(ctx, upper, append(added, removed...), layers)
}

// addFiles unpacks rootDiff, and says which folders it implies.
func addFiles(ctx context.Context, dir string, upper *os.File) (implied []string, err error) {
	diff, err := os.Open(filepath.Join(dir, rootDiff))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = diff.Close() }()
	layer, err := unpack.Unpack(ctx, upper, diff, unpack.DefaultLimits, nil)
	return layer.Implied, err
}

// removeFiles does what deletedFiles says, and says which folders it implies.
func removeFiles(ctx context.Context, dir string, upper *os.File) (implied []string, err error) {
	var names []string
	err = readDump(dir, deletedFiles, &names)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(names) > maxEntries {
		return nil, fmt.Errorf("%s has more than %d names: %w", deletedFiles, maxEntries, errdefs.ErrResourceExhausted)
	}
	return unpack.WhiteOut(ctx, upper, names, unpack.DefaultLimits)
}

// Process is the process of the specification that Extract put into dir.
func Process(dir string) (*specs.Process, error) {
	spec := new(specs.Spec)
	err := readDump(dir, specDump, spec)
	if err == nil && spec.Process == nil {
		err = fmt.Errorf("%s has no process: %w", specDump, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint: %w", err)
	}
	return spec.Process, nil
}

// readDump decodes a file that Extract put into dir.
func readDump(dir, name string, into any) error {
	file, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return decode(name, info.Size(), file, into)
}

// CheckProcess says how the process that Extract put into dir differs from the one of oci, by which it is to go on:
// ErrFailedPrecondition. The host's name is not compared, it is the pod's.
func CheckProcess(dir string, oci *specs.Spec) error {
	was, err := Process(dir)
	if err != nil {
		return err
	}
	is := oci.Process
	for _, part := range []struct {
		name    string
		was, is any
		same    bool
	}{
		{"command", was.Args, is.Args, slices.Equal(was.Args, is.Args)},
		{"working directory", was.Cwd, is.Cwd, was.Cwd == is.Cwd},
		{"user", was.User.UID, is.User.UID, was.User.UID == is.User.UID},
		{"group", was.User.GID, is.User.GID, was.User.GID == is.User.GID},
		{"terminal", was.Terminal, is.Terminal, was.Terminal == is.Terminal},
		{"environment", environment(was), environment(is), slices.Equal(environment(was), environment(is))},
	} {
		if !part.same {
			return fmt.Errorf("the checkpoint's %s is %.300q, and %.300q is asked for: %w", part.name, fmt.Sprint(part.was), fmt.Sprint(part.is), errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

func environment(p *specs.Process) []string {
	env := slices.DeleteFunc(slices.Clone(p.Env), func(v string) bool { return strings.HasPrefix(v, "HOSTNAME=") })
	slices.Sort(env)
	return env
}
