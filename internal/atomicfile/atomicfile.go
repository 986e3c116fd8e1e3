// Package atomicfile replaces a file durably and all at once: readers see the old content or the new, also after a
// power cut.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"crishim/internal/failpoint"

	"golang.org/x/sys/unix"
)

// TempPrefix begins the names of files that a crash may leave in the folder; a loader removes them, but for what is Older than a
// file that it cannot read.
const TempPrefix = ".tmp-"

// Write replaces path with data: a temporary file in the same folder, fsync, rename, fsync of the folder.
func Write(path string, data []byte, mode os.FileMode) error {
	if err := Swap(path, data, mode); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Swap is Write without the last step: after a power cut the whole old content may be there instead of the whole new one.
func Swap(path string, data []byte, mode os.FileMode) error {
	return replace(path, data, mode, (*os.File).Sync, func(temp string) error { return os.Rename(temp, path) })
}

// Place is Swap without fsync: a process that is killed leaves the old content or the new, but a power cut before Settle may
// tear the file. What it held when it was settled last is then at Older(path); of a file that never was it is what was placed
// first. What is placed is removed by Drop, and not written otherwise.
func Place(path string, data []byte, mode os.FileMode) error {
	return replace(path, data, mode, func(*os.File) error { return nil }, func(temp string) error {
		kept, err := renameKeeping(temp, path)
		if kept || err != nil {
			return err
		}
		if err := syncFile(temp); err != nil {
			return err
		}
		return os.Rename(temp, path)
	})
}

// renameKeeping renames temp to path and keeps what was there as its older self; false where that cannot be kept, as on a file
// system without links, and nothing was done.
func renameKeeping(temp, path string) (kept bool, err error) {
	placing.Lock()
	defer placing.Unlock()
	switch err := link(path, Older(path)); {
	case err == nil, errors.Is(err, fs.ErrExist): // one that is there is of the last settling; the file itself is not durable
	case errors.Is(err, fs.ErrNotExist): // nor may a predecessor's be left
		if err := absent(os.Remove(Older(path))); err != nil {
			return false, err
		}
	default:
		return false, nil
	}
	return true, exchange(temp, path)
}

// exchange is a rename over what is at path, which ext4 does not take as a wish to have the new data written out at once
// (auto_da_alloc): that would take longer than all the rest, and Settle does it, later and for many.
func exchange(temp, path string) error {
	err := renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if err != nil { // nothing is there yet, or the file system cannot do it
		return os.Rename(temp, path)
	}
	_ = os.Remove(temp) // of the old content, which has its other name; a loader would
	return nil
}

var renameat2 = unix.Renameat2 // tests have a file system that cannot exchange

// placing is held while a file and its older self change places, which takes no fsync.
var placing sync.Mutex

var link = os.Link // tests have a file system without

// Older is where what path held stays from Place to Settle. Its name begins with TempPrefix.
func Older(path string) string {
	return filepath.Join(filepath.Dir(path), TempPrefix+filepath.Base(path)+".older")
}

// Settle makes durable what was placed at the paths, as long as nothing is placed there meanwhile; OK for one that is not there
// any more.
func Settle(paths ...string) error {
	var errs []error
	for some := range slices.Chunk(paths, atOnce) {
		errs = append(errs, settle(some))
	}
	return errors.Join(errs...)
}

// atOnce is how many files Settle has open.
const atOnce = 64

func settle(paths []string) error {
	var errs []error
	var open, written []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			open = append(open, f)
			// All are on their way before the first is waited for, whose commit of the journal then is that of the others too.
			err = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
			if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) { // else the kernel cannot do it, and fsync will
				written = append(written, f)
				continue
			}
		}
		errs = append(errs, fmt.Errorf("write %s: %w", path, err))
	}
	dirs := map[string]error{}
	var durable []*os.File
	for _, f := range written {
		if err := f.Sync(); err != nil {
			errs = append(errs, fmt.Errorf("write %s: %w", f.Name(), err))
			continue
		}
		durable = append(durable, f)
		dirs[filepath.Dir(f.Name())] = nil
	}
	for dir := range dirs {
		dirs[dir] = SyncDir(dir)
		errs = append(errs, dirs[dir])
	}
	for _, f := range durable {
		if dirs[filepath.Dir(f.Name())] == nil {
			errs = append(errs, outgrow(f))
		}
	}
	return errors.Join(errs...)
}

// outgrow removes the older self of a file that is durable, unless a newer one was placed meanwhile.
func outgrow(durable *os.File) error {
	placing.Lock()
	defer placing.Unlock()
	settled, err := durable.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Lstat(durable.Name()); err != nil || !os.SameFile(now, settled) {
		return absent(err)
	}
	return absent(os.Remove(Older(durable.Name())))
}

// Drop removes what was placed at path, and its older self. A power cut may bring it back. OK when it is absent.
func Drop(path string) error {
	placing.Lock()
	defer placing.Unlock()
	if err := absent(os.Remove(path)); err != nil {
		return err
	}
	return absent(os.Remove(Older(path)))
}

// absent is err, but that what was to be removed may be absent.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// create makes a file of that name and some more. os.CreateTemp would do, but for asking the poller to watch a file that it cannot
// watch, which is a good part of what a small file takes.
func create(name string, mode os.FileMode) (*os.File, error) {
	for {
		temp := fmt.Sprintf("%s-%d", name, rand.Uint64())
		fd, err := unix.Open(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, uint32(mode.Perm()))
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), temp), nil
		case unix.EINTR, unix.EEXIST:
		default:
			return nil, &os.PathError{Op: "open", Path: temp, Err: err}
		}
	}
}

func replace(path string, data []byte, mode os.FileMode, sync func(*os.File) error, rename func(temp string) error) (err error) {
	dir := filepath.Dir(path)
	f, err := create(filepath.Join(dir, TempPrefix+filepath.Base(path)), mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	temp := f.Name()
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	write := func() error {
		if mode&0o077 != 0 { // of which the umask may have taken something
			if err := f.Chmod(mode); err != nil {
				return err
			}
		}
		if _, err := f.Write(data); err != nil {
			return err
		}
		return sync(f)
	}
	werr := write()
	if cerr := f.Close(); werr == nil {
		werr = cerr
	}
	if werr != nil {
		return fmt.Errorf("write %s: %w", path, werr)
	}
	if err := failpoint.Hit("file." + filepath.Base(dir) + ".written"); err != nil {
		return err
	}
	if err := rename(temp); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Remove removes path durably; OK when it is absent.
func Remove(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes creations, renames and removals in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
