// Package rmtree removes trees that somebody else filled: it goes by descriptors and never by paths, so that no link, no
// mount and no depth of the tree leads it out, makes it fail or costs more than a few descriptors (docs/reliability.md S13).
package rmtree

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth bounds the descriptors that are open at once. What is deeper is moved up to the top first.
	maxDepth = 64
	// batch is how many names of a folder are read at a time.
	batch = 1024
)

// Remove removes path with everything in it; the folder that path is in is trusted. OK when there is nothing. A mount in the
// tree is an error, and what is in it stays. When ctx ends the rest is left for the next call.
func Remove(ctx context.Context, path string) error {
	parent, err := os.Open(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = parent.Close() }()
	r := remover{ctx: ctx, prefix: ".crishim-" + rand.Text() + "-"}
	if err := r.remove(int(parent.Fd()), filepath.Base(path), 0); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

type remover struct {
	ctx context.Context
	// top is the folder that is removed, for what is moved up; its names there are prefix and a number.
	top    int
	prefix string
	moved  int
}

func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if !errors.Is(err, unix.EISDIR) {
		return gone(err, name)
	}
	if depth == maxDepth {
		r.moved++
		err := unix.Renameat2(dir, name, r.top, r.prefix+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		return gone(err, name)
	}
	// A mount point is another file system's root: EXDEV.
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%.80q is a mount point: %w", name, err)
	}
	if err != nil {
		return gone(err, name)
	}
	file := os.NewFile(uintptr(fd), name)
	defer func() { _ = file.Close() }()
	if depth == 0 {
		r.top = fd
	}
	if err := r.empty(file, depth); err != nil {
		return err
	}
	return gone(unix.Unlinkat(dir, name, unix.AT_REMOVEDIR), name)
}

// empty removes what is in a folder, past errors.
func (r *remover) empty(dir *os.File, depth int) error {
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		// From the start each time: a folder whose entries vanish while it is read may skip some.
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(batch)
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		var failed error
		progress := false
		for _, name := range names {
			if err := r.remove(int(dir.Fd()), name, depth+1); err != nil {
				failed = err
			} else {
				progress = true
			}
		}
		if !progress {
			return failed
		}
	}
}

// gone is err unless the thing is not there, named.
func gone(err error, name string) error {
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("%.80q: %w", name, err)
}
