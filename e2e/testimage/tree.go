// Package testimage builds container images in memory, file by file, so that the tests need no network and no image of
// others, and can make images that no builder would.
//
// A Tree is a root file system in the order of its layer; Tree.Layer and Image turn it into something that
// go-containerregistry pushes, or that `docker load` takes. Busybox is the usual base.
package testimage

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Tree is a root file system under construction. Parents are made as needed, 0755 and root's.
type Tree struct {
	entries []entry
	known   map[string]bool
}

type entry struct {
	header tar.Header
	data   []byte
}

// epoch is the time of every file, so that equal trees have equal digests.
var epoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// Add appends one entry as it is, hostile names included: nothing is checked and no parent is made.
func (t *Tree) Add(header tar.Header, data []byte) {
	header.ModTime, header.Size = epoch, int64(len(data))
	t.entries = append(t.entries, entry{header, data})
	if t.known == nil {
		t.known = map[string]bool{}
	}
	t.known[header.Name] = true
}

// Dir adds a directory.
func (t *Tree) Dir(name string, mode os.FileMode) { t.OwnedDir(name, mode, 0, 0) }

// OwnedDir adds a directory of a user.
func (t *Tree) OwnedDir(name string, mode os.FileMode, uid, gid int) {
	name = clean(name)
	t.parents(name)
	t.Add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: tarMode(mode), Uid: uid, Gid: gid}, nil)
}

// File adds a regular file.
func (t *Tree) File(name string, mode os.FileMode, data []byte) {
	name = clean(name)
	t.parents(name)
	t.Add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: tarMode(mode)}, data)
}

// HostFile adds a copy of a file of this machine.
func (t *Tree) HostFile(name, source string, mode os.FileMode) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return fmt.Errorf("copying into the image: %w", err)
	}
	t.File(name, mode, data)
	return nil
}

// HardLink adds a second name of a file that was added before.
func (t *Tree) HardLink(name, existing string) {
	name = clean(name)
	t.parents(name)
	t.Add(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: clean(existing), Mode: 0o755}, nil)
}

// Symlink adds a symbolic link with the target exactly as given.
func (t *Tree) Symlink(name, target string) {
	name = clean(name)
	t.parents(name)
	t.Add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// Has says whether a file of that name was added.
func (t *Tree) Has(name string) bool { return t.known[clean(name)] }

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (t *Tree) parents(name string) {
	dir := path.Dir(name)
	if dir == "." || t.known[dir+"/"] {
		return
	}
	t.Dir(dir, 0o755)
}

// tarMode keeps the set-id and sticky bits, which os.FileMode has elsewhere.
func tarMode(mode os.FileMode) int64 {
	m := int64(mode.Perm())
	for _, bit := range []struct {
		mode os.FileMode
		tar  int64
	}{{os.ModeSetuid, 0o4000}, {os.ModeSetgid, 0o2000}, {os.ModeSticky, 0o1000}} {
		if mode&bit.mode != 0 {
			m |= bit.tar
		}
	}
	return m
}

// Tar writes the tree as a tar file.
func (t *Tree) Tar(w io.Writer) error {
	out := tar.NewWriter(w)
	for _, e := range t.entries {
		if err := out.WriteHeader(&e.header); err != nil {
			return fmt.Errorf("writing %s: %w", e.header.Name, err)
		}
		if _, err := out.Write(e.data); err != nil {
			return fmt.Errorf("writing %s: %w", e.header.Name, err)
		}
	}
	return out.Close()
}

// Layer turns the tree into an image layer.
func (t *Tree) Layer() (v1.Layer, error) {
	var buffer bytes.Buffer
	if err := t.Tar(&buffer); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buffer.Bytes())), nil
	}, tarball.WithCompressedCaching)
}

// Image makes an image for this machine's architecture of layers and a configuration.
func Image(architecture string, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config, file.Created = architecture, "linux", config, v1.Time{Time: epoch}
	return mutate.ConfigFile(image, file)
}
