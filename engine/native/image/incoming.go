package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crishim/engine/native/space"
)

// incoming is an archive whose files were read. Each is a part of the store by its digest, until an image takes it.
type incoming struct {
	store *Store
	at    *progress
	files map[string]ocispec.Descriptor // by clean name
	links map[string]string             // archives of old engines link equal layers to each other
	kept  []digest.Digest
	taken int // of files and links, which may be several of one name
	// leases keep what was read, and what was here before, until the images have taken theirs.
	leases []func()
}

// maxArchiveName is the longest name of an archive's entry, or target of a link, the kernel's PATH_MAX: no tool writes a longer one.
const maxArchiveName = 4096

func (in *incoming) readTar(ctx context.Context, plain io.Reader) error {
	reader := tar.NewReader(plain)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		// Names are kept until the end, and tar knows no longest one.
		if len(header.Name) > maxArchiveName || len(header.Linkname) > maxArchiveName {
			return malformed("archive entry %.300q has a name of more than %d bytes", header.Name, maxArchiveName)
		}
		name := path.Clean(header.Name)
		switch header.Typeflag {
		case tar.TypeReg:
			err = in.take(ctx, name, reader)
		case tar.TypeSymlink:
			err = in.link(name, path.Join(path.Dir(name), header.Linkname))
		case tar.TypeLink:
			err = in.link(name, path.Clean(header.Linkname))
		}
		if err != nil {
			return fmt.Errorf("archive entry %.300q: %w", header.Name, err)
		}
	}
}

func (in *incoming) readDir(ctx context.Context, root *os.Root) error {
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return ctx.Err()
		}
		// Looked at before it is opened: of a FIFO that would wait for its writer, whatever ctx says, and a device would notice. A link
		// that leads out of the folder is an error.
		if info, err := root.Stat(name); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return err // it became something else meanwhile
		}
		return in.take(ctx, name, &contextReader{ctx, f})
	})
}

func (in *incoming) link(name, target string) error {
	in.links[name] = target
	return in.bounded()
}

// bounded counts an entry.
func (in *incoming) bounded() error {
	if in.taken++; in.taken > in.store.options.Limits.ArchiveEntries {
		return fmt.Errorf("the archive has more than %d entries: %w", in.store.options.Limits.ArchiveEntries, errdefs.ErrResourceExhausted)
	}
	return nil
}

// take stores a file as a part by its digest.
func (in *incoming) take(ctx context.Context, name string, content io.Reader) error {
	if err := in.bounded(); err != nil {
		return err
	}
	temp := in.store.tempPath()
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return diskError("store it", err)
	}
	defer func() { _ = os.Remove(temp) }() // unless it has moved on
	sum := sha256.New()
	n, err := io.Copy(space.On(f, in.store.options.Limits.Layer.Reserve).Writer(f), io.TeeReader(content, sum))
	if err = errors.Join(err, f.Close()); err != nil {
		return diskError("store it", err)
	}
	in.at.touch()
	d := digest.NewDigest(digest.SHA256, sum)
	if hex, ok := strings.CutPrefix(name, ocispec.ImageBlobsDir+"/sha256/"); ok && hex != d.Encoded() {
		return errCorrupt
	}
	in.files[name] = ocispec.Descriptor{Digest: d, Size: n}
	in.leases = append(in.leases, in.store.lease(blobLease(d)))
	return in.keep(ctx, temp, d, n)
}

// keep moves a file to the parts, unless its content is here already.
func (in *incoming) keep(ctx context.Context, temp string, d digest.Digest, size int64) error {
	s := in.store
	unlock, err := s.fetching.Lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	have := s.content.blobs[d]
	s.mu.Unlock()
	if have != nil && have.size == size {
		return nil
	}
	in.kept = append(in.kept, d)
	if err := os.Rename(temp, s.partPath(d)); err != nil {
		return diskError("store it", err)
	}
	return nil
}

// clear removes what no image took.
func (in *incoming) clear() {
	for _, release := range in.leases {
		release()
	}
	s := in.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range in.kept {
		if s.content.leases[blobLease(d)] == 0 { // else a pull, or another import, is at it
			_ = os.Remove(s.partPath(d)) // most have moved to their places; others, Run removes in time
		}
	}
}

// find is a file of the archive, by way of links.
func (in *incoming) find(name string) (ocispec.Descriptor, error) {
	name = path.Clean(name)
	for range 10 {
		if desc, ok := in.files[name]; ok {
			return desc, nil
		}
		target, ok := in.links[name]
		if !ok {
			break
		}
		name = target
	}
	return ocispec.Descriptor{}, malformed("the archive has no file %.300q", name)
}

// file opens content of the archive.
func (in *incoming) file(d digest.Digest) (*os.File, error) {
	f, err := os.Open(in.store.partPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(in.store.blobPath(d))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the archive lacks %s: %w", d, errdefs.ErrNotFound)
	}
	return f, err
}

func (in *incoming) read(d digest.Digest, limit int64) ([]byte, error) {
	f, err := in.file(d)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", d, limit, errdefs.ErrResourceExhausted)
	}
	if digest.FromBytes(data) != d {
		return nil, fmt.Errorf("%s: %w", d, errCorrupt)
	}
	return data, nil
}

// manifest implements source.
func (in *incoming) manifest(_ context.Context, ref string, limit int64) (data []byte, mediaType string, err error) {
	data, err = in.read(digest.Digest(ref), limit)
	return data, "", err
}

// open implements source. What the archive has, is a part that is whole: only what it lacks is asked for.
func (in *incoming) open(_ context.Context, d digest.Digest, _ int64) (*blobStream, error) {
	return nil, fmt.Errorf("the archive lacks blob %s: %w", d, errdefs.ErrNotFound)
}
