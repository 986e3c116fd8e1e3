package unpack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Stacked is an unpacked layer of an image.
type Stacked struct {
	// Dir is its folder.
	Dir string
	// Implied are those of its Layer.
	Implied []string
}

// maxLookups bounds how often the layers of an image are looked into, far above what real ones need: some seconds. What was not looked
// up by then stays as it is.
const maxLookups = 500_000

// Inherit makes, in dir, which is empty, the layer of folders that lies on an image's layers, which are lowest first: each folder
// that the uppermost layer that has it only implies, as the nearest layer below has it that has an entry for it, and the folders
// that these lie in. overlay shows a folder with the mode, owner, times and attributes that its uppermost layer has, and those of a
// layer are its own alone: on other layers the same one inherits something else. made says whether there is any.
//
// An image whose archives were unpacked one upon the other, into one folder, would have the same folders.
func Inherit(ctx context.Context, dir *os.File, layers []Stacked) (made bool, err error) {
	s := &stack{ctx: ctx, known: map[string]stacked{}}
	defer s.close()
	if err := s.open(layers); err != nil {
		return false, err
	}
	names, err := s.inherited()
	if err != nil || len(names) == 0 {
		return false, err
	}
	return true, s.makeFolders(int(dir.Fd()), names)
}

// Resemble gives folders of dir, a layer that lies on others, lowest first, which are complete, the mode, owner, time and attributes
// that these have them with. What they do not have stays as it is, and what is no folder of dir is passed over.
func Resemble(ctx context.Context, dir *os.File, names, layers []string) error {
	s := &stack{ctx: ctx, known: map[string]stacked{}}
	defer s.close()
	var all []Stacked
	for _, layer := range layers {
		all = append(all, Stacked{Dir: layer})
	}
	if err := s.open(all); err != nil {
		return err
	}
	for _, name := range names {
		if s.lookups >= maxLookups {
			return nil
		}
		fd, err := openExact(int(dir.Fd()), name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open the folder %.300q: %w", name, err)
		}
		_ = unix.Close(fd)
		below, err := s.folder(name)
		if err == nil && below.said != nil {
			err = s.copyFolder(below.said, int(dir.Fd()), name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// stack is an image's layers, uppermost first, put together as overlay does it.
type stack struct {
	ctx     context.Context
	layers  []*stackedLayer
	known   map[string]stacked
	lookups int
}

type stackedLayer struct {
	Stacked
	root    int
	implies map[string]bool
}

// stacked is a folder of a stack.
type stacked struct {
	// layers have it, uppermost first, and what lies in it is theirs.
	layers []*stackedLayer
	// said is the uppermost that has an entry for it; nil where there is none.
	said *stackedLayer
}

func (s *stack) open(layers []Stacked) error {
	for _, l := range slices.Backward(layers) {
		root, err := unix.Open(l.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the layer %s: %w", l.Dir, err)
		}
		opened := &stackedLayer{Stacked: l, root: root, implies: map[string]bool{}}
		s.layers = append(s.layers, opened)
		for _, name := range l.Implied {
			opened.implies[name] = true
		}
	}
	s.known["."] = stacked{layers: s.layers}
	return nil
}

func (s *stack) close() {
	for _, l := range s.layers {
		_ = unix.Close(l.root)
	}
}

// inherited are the folders to make, each after those that it lies in.
func (s *stack) inherited() ([]string, error) {
	all := map[string]bool{}
	for _, l := range s.layers {
		for _, name := range l.Implied {
			if err := s.ctx.Err(); err != nil {
				return nil, err
			}
			if s.lookups >= maxLookups {
				break
			}
			folder, err := s.folder(name)
			if err != nil {
				return nil, err
			}
			if folder.said == nil || folder.said == folder.layers[0] {
				continue
			}
			for ; name != "." && !all[name]; name = path.Dir(name) {
				all[name] = true
			}
		}
	}
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// folder is one of the stack, by a relative name that leads through no link; it has no layers where there is none.
func (s *stack) folder(name string) (stacked, error) {
	if known, ok := s.known[name]; ok || path.IsAbs(name) {
		return known, nil
	}
	above, err := s.folder(path.Dir(name))
	if err != nil {
		return stacked{}, err
	}
	var f stacked
	hidden := false // what lower layers have in it: not what they say of itself
	for _, l := range above.layers {
		found, err := s.look(l, name)
		if err != nil {
			return stacked{}, err
		}
		if found.absent {
			continue
		}
		if !found.folder {
			break
		}
		if !hidden {
			f.layers = append(f.layers, l)
		}
		if f.said == nil && !found.implied {
			f.said = l
		}
		if hidden = hidden || found.opaque; hidden && f.said != nil {
			break
		}
	}
	s.known[name] = f
	return f, nil
}

// piece is what one layer has of a name.
type piece struct{ absent, folder, implied, opaque bool }

// look looks into a layer. The name's parents are folders in it.
func (s *stack) look(l *stackedLayer, name string) (piece, error) {
	s.lookups++
	fd, err := openExact(l.root, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return piece{absent: true}, nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return piece{}, nil
	case err != nil:
		return piece{}, fmt.Errorf("open %.300q of the layer %s: %w", name, l.Dir, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return piece{}, fmt.Errorf("stat %.300q of the layer %s: %w", name, l.Dir, err)
	}
	p := piece{folder: true}
	// Lists that an earlier version made name folders, too, that an entry followed for: most of them show it. (A group may be that of
	// a set-gid folder that it lies in.)
	p.implied = l.implies[name] && stat.Uid == 0 && stat.Mode&0o7777 == impliedMode
	if p.opaque, err = isOpaque(fd); err != nil {
		return piece{}, fmt.Errorf("look at %.300q of the layer %s: %w", name, l.Dir, err)
	}
	return p, nil
}

// openExact opens a folder of a layer by a name without links.
func openExact(root int, name string) (int, error) {
	return openBelow(root, name, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
}

// makeFolders makes folders of the stack in a folder, which becomes what the layers' uppermost root is.
func (s *stack) makeFolders(root int, names []string) error {
	for _, name := range names {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if err := unix.Mkdirat(root, name, 0o700); err != nil {
			return fmt.Errorf("make the folder %.300q: %w", name, err)
		}
	}
	// Only then, as what is made in a folder changes its times, and takes of its attributes.
	for _, name := range names {
		f := s.known[name]
		from := f.layers[0]
		if f.said != nil {
			from = f.said
		}
		if err := s.copyFolder(from, root, name); err != nil {
			return err
		}
	}
	return s.copyFolder(s.layers[0], root, ".")
}

// copyFolder gives a folder that was just made what the layer's own has, but for what lies in it.
func (s *stack) copyFolder(l *stackedLayer, root int, name string) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	from, err := openExact(l.root, name)
	if err != nil {
		return fmt.Errorf("open %.300q of the layer %s: %w", name, l.Dir, err)
	}
	defer func() { _ = unix.Close(from) }()
	to, err := openExact(root, name)
	if err != nil {
		return fmt.Errorf("open the folder %.300q: %w", name, err)
	}
	defer func() { _ = unix.Close(to) }()
	if err := copyAttributes(from, to); err != nil {
		return fmt.Errorf("make the folder %.300q as the layer %s has it: %w", name, l.Dir, err)
	}
	return nil
}

// copyAttributes goes by the order of setOpen.
func copyAttributes(from, to int) error {
	var stat unix.Stat_t
	if err := unix.Fstat(from, &stat); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := unix.Fchown(to, int(stat.Uid), int(stat.Gid)); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	if err := unix.Fchmod(to, stat.Mode&0o7777); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	if err := unix.UtimesNanoAt(to, ".", []unix.Timespec{{Nsec: unix.UTIME_OMIT}, stat.Mtim}, 0); err != nil {
		return fmt.Errorf("set the times: %w", err)
	}
	return nil
}
