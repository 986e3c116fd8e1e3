package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"crishim/engine/native/image/unpack"
	"crishim/engine/native/space"
)

// The whiteouts of layers: what a container removed, and a folder of which nothing below shows through.
const (
	whiteout       = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
)

// writeTree writes the named files and folders of a folder of ours as a tar. It leaves the disk what space keeps free.
func writeTree(ctx context.Context, dir string, to *os.File, names ...string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	p := newPacker(ctx, root, to)
	for _, name := range names {
		if err := fs.WalkDir(anyNames{root}, name, p.add); err != nil {
			return err
		}
	}
	return p.w.Close()
}

// writeDiff writes the writable layer at upper as an image's layer. The container may change it meanwhile: nothing outside is
// read, whatever it puts in the place of what, and the disk keeps free what space says, whatever sizes its files have.
func writeDiff(ctx context.Context, upper string, to *os.File) error {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	p := newPacker(ctx, root, to)
	p.layer = true
	if err := fs.WalkDir(anyNames{root}, ".", p.add); err != nil {
		return err
	}
	return p.w.Close()
}

// anyNames is the folder for WalkDir. Root.FS would refuse folders whose names are no UTF-8.
type anyNames struct{ root *os.Root }

func (a anyNames) Open(name string) (fs.File, error)     { return openDir(a.root, name) }
func (a anyNames) Stat(name string) (fs.FileInfo, error) { return a.root.Lstat(name) }

func (a anyNames) ReadDir(name string) ([]fs.DirEntry, error) {
	dir, err := openDir(a.root, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	entries, err := dir.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// openDir opens a folder, and nothing that has come into its place.
func openDir(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

type packer struct {
	ctx   context.Context
	root  *os.Root
	w     *tar.Writer
	room  *space.Room
	layer bool
}

func newPacker(ctx context.Context, root *os.Root, to *os.File) *packer {
	room := space.On(to, 0)
	return &packer{ctx: ctx, root: root, w: tar.NewWriter(room.Writer(to)), room: room}
}

// add is a fs.WalkDirFunc. What vanishes meanwhile is passed over.
func (p *packer) add(name string, _ fs.DirEntry, err error) error {
	if p.ctx.Err() != nil {
		return p.ctx.Err()
	}
	if errors.Is(err, fs.ErrNotExist) || name == "." {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := p.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s has no owner", name)
	}
	if p.layer && info.Mode()&fs.ModeCharDevice != 0 && stat.Rdev == 0 {
		return p.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteout+path.Base(name)), ModTime: info.ModTime()})
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = p.root.Readlink(name); err != nil {
			return err
		}
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // a tar has none
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name, header.Uid, header.Gid, header.Uname, header.Gname = name, int(stat.Uid), int(stat.Gid), "", ""
	switch {
	case info.IsDir():
		header.Name += "/"
		return p.folder(name, header)
	case !info.Mode().IsRegular():
		return p.w.WriteHeader(header)
	}
	return p.file(name, header)
}

// file writes a regular file as long as it was when it was opened.
func (p *packer) file(name string, header *tar.Header) error {
	return withRegular(p.root, name, func(size int64, content *os.File) error {
		header.Size = size
		if err := p.room.Fits(size, 0); err != nil { // before the first byte: it may have holes and be larger than any disk
			return fmt.Errorf("%.300s: %w", name, err)
		}
		if err := p.attributes(header, content); err != nil {
			return err
		}
		if err := p.w.WriteHeader(header); err != nil {
			return err
		}
		n, err := io.Copy(p.w, io.LimitReader(content, size))
		if err == nil && n < size {
			err = fmt.Errorf("%s was cut while it was read", name)
		}
		return err
	})
}

// folder writes a folder, and that nothing below it shows through where that is so.
func (p *packer) folder(name string, header *tar.Header) error {
	dir, err := openDir(p.root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := p.attributes(header, dir); err != nil {
		return err
	}
	if err := p.w.WriteHeader(header); err != nil || !p.layer {
		return err
	}
	value := make([]byte, 8)
	n, err := unix.Fgetxattr(int(dir.Fd()), "trusted.overlay.opaque", value)
	if err != nil || strings.TrimRight(string(value[:n]), "\x00") != "y" {
		return nil
	}
	return p.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, opaqueWhiteout)})
}

// attributes adds a file's or folder's extended ones: among them are the capabilities of programs.
func (p *packer) attributes(header *tar.Header, of *os.File) (err error) {
	if !p.layer {
		return nil
	}
	if header.PAXRecords, err = unpack.Xattrs(int(of.Fd())); err != nil {
		return fmt.Errorf("%.300s: %w", header.Name, err)
	}
	return nil
}
