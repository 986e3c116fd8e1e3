package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine/native/space"
)

const (
	// maxPath is the kernel's PATH_MAX without its end.
	maxPath = unix.PathMax - 1
	// maxMajor and maxMinor are the kernel's (include/linux/kdev_t.h): 12 and 20 bits.
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
	// maxID is the largest uid or gid; the next value means "no change" to the kernel.
	maxID = 1<<32 - 2
	// entrySize is about what an entry takes on disk beside a file's content: a block of a folder, of a link or of attributes.
	entrySize = 4096
	// maxImplied and maxImpliedBytes bound the list of implied folders, which is kept in memory as long as the layer is there; who
	// has more does not get them all looked up below (Inherit).
	maxImplied      = 10_000
	maxImpliedBytes = 256 << 10
)

// tree is a layer's folder while it is being made.
type tree struct {
	root   int
	parent parent
	buf    []byte
	room   *space.Room
	// implied are the names of folders that the archive has used and had no entry for yet, by inode: what comes later may put
	// something else into their places.
	implied      map[uint64]string
	impliedBytes int    // of the names that were ever among them
	path         string // of the layer's folder
	// made counts entries, and folders that the archive has none for, of at most limit.
	made, limit int64
}

func newTree(dir *os.File, limits *Limits, room *space.Room) (*tree, error) {
	name, err := os.Readlink(procPath(int(dir.Fd())))
	if err != nil {
		return nil, fmt.Errorf("find the name of the layer's folder: %w", err)
	}
	return &tree{root: int(dir.Fd()), room: room, implied: map[uint64]string{}, path: name, limit: limits.Entries}, nil
}

// take is called before something is made, of which the archive holds so many bytes beside a file's content.
func (t *tree) take(attributes int64) error {
	if t.made++; t.made > t.limit {
		return fmt.Errorf("it has more than %d entries: %w", t.limit, errdefs.ErrResourceExhausted)
	}
	return t.room.Take(entrySize + attributes)
}

// untar makes the entries of an archive in dir.
func untar(ctx context.Context, dir *os.File, archive io.Reader, limits *Limits, room *space.Room) (implied []string, err error) {
	t, err := newTree(dir, limits, room)
	if err != nil {
		return nil, err
	}
	t.buf = make([]byte, 128<<10)
	defer func() {
		if cerr := t.leave(); err == nil {
			err = cerr
		}
	}()
	var files int64
	reader := tar.NewReader(archive)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return t.impliedFolders()
		}
		if err != nil {
			return nil, err
		}
		// A sparse file is larger than what the archive holds of it.
		if files += header.Size; header.Size < 0 || files < 0 || files > limits.Bytes {
			return nil, fmt.Errorf("its files are larger than %s: %w", space.Text(limits.Bytes), errdefs.ErrResourceExhausted)
		}
		attributes := int64(0)
		for _, value := range header.PAXRecords {
			attributes += int64(len(value))
		}
		if err := t.take(attributes); err != nil {
			return nil, err
		}
		if err := t.add(ctx, header, reader); err != nil {
			return nil, fmt.Errorf("entry %.300q: %w", header.Name, err)
		}
	}
}

// refused is an entry that no honest archive has, or that cannot be a file here.
func refused(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// inside is the name of an entry relative to the layer, "." for the layer itself.
func inside(name string) (string, error) {
	if len(name) > maxPath {
		return "", refused("the path is longer than %d bytes", maxPath)
	}
	if strings.ContainsRune(name, 0) {
		return "", refused("the path has a NUL")
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if rel := path.Clean(strings.TrimLeft(name, "/")); rel == ".." || strings.HasPrefix(rel, "../") {
		return "", refused("the path leaves the layer")
	}
	if clean == "" {
		return ".", nil
	}
	return clean, nil
}

// add makes one entry.
func (t *tree) add(ctx context.Context, header *tar.Header, content io.Reader) error {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil // git archive's comment
	}
	name, err := inside(header.Name)
	if err != nil {
		return err
	}
	if err := checkOwner(header); err != nil {
		return err
	}
	if name == "." {
		if header.Typeflag != tar.TypeDir {
			return refused("only a folder can be the layer's root")
		}
		if err := t.leave(); err != nil {
			return err
		}
		return setFolder(t.root, header)
	}
	folder, base := path.Split(name)
	folder = path.Clean(folder)
	if done, err := t.whiteout(folder, base); done || err != nil {
		return err
	}
	if header.Typeflag == tar.TypeDir {
		// Its own times are set at once: nobody may still be about to restore older ones.
		if err := t.leave(); err != nil {
			return err
		}
	}
	if err := t.enter(folder); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return t.folder(base, header)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return t.file(ctx, base, header, content)
	case tar.TypeLink:
		return t.link(base, header)
	case tar.TypeSymlink:
		return t.symlink(base, header)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return t.device(base, header)
	}
	return refused("entries of type %q are not known", header.Typeflag)
}

func checkOwner(header *tar.Header) error {
	if header.Uid < 0 || header.Uid > maxID || header.Gid < 0 || header.Gid > maxID {
		return refused("owner %d:%d is none", header.Uid, header.Gid)
	}
	return nil
}

func (t *tree) folder(base string, header *tar.Header) error {
	err := unix.Mkdirat(t.parent.fd, base, 0o700)
	opaque := false
	if errors.Is(err, unix.EEXIST) {
		var stat unix.Stat_t
		if err := unix.Fstatat(t.parent.fd, base, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		if err = nil; stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			opaque = isWhiteout(&stat) // what the whiteout hid below stays hidden
			if err = t.remove(base); err == nil {
				err = unix.Mkdirat(t.parent.fd, base, 0o700)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("make the folder: %w", err)
	}
	fd, err := unix.Openat(t.parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the folder: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := t.nameOf(fd); err != nil {
		return err
	}
	if opaque {
		if err := setOpaque(fd); err != nil {
			return err
		}
	}
	if err := t.noteEntry(fd); err != nil {
		return err
	}
	return setFolder(fd, header)
}

// setFolder gives an open folder its attributes.
func setFolder(fd int, header *tar.Header) error {
	if err := setOpen(fd, header); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(fd, ".", times(header), 0); err != nil {
		return fmt.Errorf("set the times: %w", err)
	}
	return nil
}

// setOpen gives an open file or folder its owner, extended attributes and mode. The order matters: a change of owner takes
// set-id bits and capabilities away.
func setOpen(fd int, header *tar.Header) error {
	if err := unix.Fchown(fd, header.Uid, header.Gid); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	if err := setXattrs(fd, header); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(header.Mode&0o7777)); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	return nil
}

func (t *tree) file(ctx context.Context, base string, header *tar.Header, content io.Reader) error {
	const flags = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	var fd int
	err := t.create(base, func() (err error) {
		fd, err = unix.Openat(t.parent.fd, base, flags, 0o600)
		return err
	})
	if err != nil {
		return fmt.Errorf("make the file: %w", err)
	}
	err = t.fill(ctx, fd, content)
	if err == nil {
		err = setOpen(fd, header)
	}
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = fmt.Errorf("write: %w", cerr)
	}
	if err != nil {
		return err
	}
	return t.setTimes(base, header)
}

func (t *tree) fill(ctx context.Context, fd int, content io.Reader) error {
	for {
		n, err := content.Read(t.buf)
		if err := t.room.Take(int64(n)); err != nil {
			return err
		}
		for rest := t.buf[:n]; len(rest) > 0; {
			if err := ctx.Err(); err != nil {
				return err
			}
			written, err := unix.Write(fd, rest)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return fmt.Errorf("write: %w", err)
			}
			rest = rest[written:]
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (t *tree) symlink(base string, header *tar.Header) error {
	if header.Linkname == "" || len(header.Linkname) > maxPath || strings.ContainsRune(header.Linkname, 0) {
		return refused("the symbolic link's target is none")
	}
	// Where it points to is nobody's business here: it is never followed but inside the layer.
	if err := t.create(base, func() error { return unix.Symlinkat(header.Linkname, t.parent.fd, base) }); err != nil {
		return fmt.Errorf("make the symbolic link: %w", err)
	}
	if err := unix.Fchownat(t.parent.fd, base, header.Uid, header.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	return t.setTimes(base, header)
}

func (t *tree) device(base string, header *tar.Header) error {
	mode := uint32(header.Mode & 0o7777)
	device := 0
	if header.Typeflag != tar.TypeFifo {
		if header.Devmajor < 0 || header.Devmajor > maxMajor || header.Devminor < 0 || header.Devminor > maxMinor {
			return refused("device %d:%d is out of range", header.Devmajor, header.Devminor)
		}
		if header.Typeflag == tar.TypeChar && header.Devmajor == 0 && header.Devminor == 0 {
			return refused("character device 0:0 is overlay's whiteout, which an archive may not hold")
		}
		device = int(unix.Mkdev(uint32(header.Devmajor), uint32(header.Devminor)))
	}
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[header.Typeflag]
	if err := t.create(base, func() error { return unix.Mknodat(t.parent.fd, base, kind|0o600, device) }); err != nil {
		return fmt.Errorf("make the device: %w", err)
	}
	if err := unix.Fchownat(t.parent.fd, base, header.Uid, header.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	// It was just made, in a folder that nobody else has: it is no link.
	if err := unix.Fchmodat(t.parent.fd, base, mode, 0); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	return t.setTimes(base, header)
}

// link makes a hard link to an entry that came before it.
func (t *tree) link(base string, header *tar.Header) error {
	name, err := inside(header.Linkname)
	if err != nil || name == "." || header.Linkname == "" {
		return refused("the hard link's target %.300q is not in the layer", header.Linkname)
	}
	folder, target := path.Split(name)
	from, err := openFolder(t.root, path.Clean(folder))
	if err != nil {
		return refused("the hard link's target %.300q is not in the layer (%v)", header.Linkname, err)
	}
	defer func() { _ = unix.Close(from) }()
	var there, here unix.Stat_t
	if err := unix.Fstatat(from, target, &there, unix.AT_SYMLINK_NOFOLLOW); err != nil || isWhiteout(&there) || there.Mode&unix.S_IFMT == unix.S_IFDIR {
		return refused("the hard link's target %.300q is no file of the layer", header.Linkname)
	}
	if unix.Fstatat(t.parent.fd, base, &here, unix.AT_SYMLINK_NOFOLLOW) == nil && here.Ino == there.Ino {
		return nil // it is that file already, under this name or another
	}
	if err := t.create(base, func() error { return unix.Linkat(from, target, t.parent.fd, base, 0) }); err != nil {
		return fmt.Errorf("make the hard link: %w", err)
	}
	return nil
}

// create makes something new; what an earlier entry of that name made gives way.
func (t *tree) create(base string, create func() error) error {
	err := create()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := t.remove(base); err != nil {
		return err
	}
	return create()
}

// remove takes away what an earlier entry made.
func (t *tree) remove(base string) error {
	err := unix.Unlinkat(t.parent.fd, base, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	parent, err := os.OpenRoot(procPath(t.parent.fd))
	if err != nil {
		return err
	}
	defer func() { _ = parent.Close() }()
	return parent.RemoveAll(base)
}

func (t *tree) setTimes(base string, header *tar.Header) error {
	if err := unix.UtimesNanoAt(t.parent.fd, base, times(header), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the times: %w", err)
	}
	return nil
}

// times leaves the time of access alone.
func times(header *tar.Header) []unix.Timespec {
	modified := header.ModTime
	return []unix.Timespec{
		{Nsec: unix.UTIME_OMIT},
		{Sec: modified.Unix(), Nsec: int64(modified.Nanosecond())},
	}
}
