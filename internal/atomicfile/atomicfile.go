// Package atomicfile replaces a file durably and all at once: readers see the old content or the new, also after a
// power cut.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"crishim/internal/failpoint"
)

// TempPrefix begins the names of files that a crash may leave in the folder; a loader skips and removes them.
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
	return replace(path, data, mode, (*os.File).Sync)
}

// Place is Swap without fsync: a process that is killed leaves the old content or the new, but a power cut before Settle
// may leave an empty file.
func Place(path string, data []byte, mode os.FileMode) error {
	return replace(path, data, mode, func(*os.File) error { return nil })
}

// Settle makes durable what was placed at the paths; OK for one that is not there any more.
func Settle(paths ...string) error {
	var errs []error
	dirs := map[string]struct{}{}
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("write %s: %w", path, err))
			continue
		}
		dirs[filepath.Dir(path)] = struct{}{}
	}
	for dir := range dirs {
		errs = append(errs, SyncDir(dir))
	}
	return errors.Join(errs...)
}

func replace(path string, data []byte, mode os.FileMode, sync func(*os.File) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, TempPrefix+filepath.Base(path)+"-*")
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
		if err := f.Chmod(mode); err != nil {
			return err
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
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Remove removes path durably; OK when it is absent.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if os.IsNotExist(err) {
			return nil
		}
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
