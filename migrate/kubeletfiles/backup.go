package kubeletfiles

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"crishim/internal/atomicfile"
)

// backupVersion is raised when the form changes.
const backupVersion = 1

// Backup is what a switch changed and how to undo it: the files with their old content, and what the caller wants back.
type Backup struct {
	Version int       `json:"version"`
	Taken   time.Time `json:"taken"`
	Edits   []Edit    `json:"edits"`
	// Units are the systemd units that the switch stops, with their state before.
	Units []UnitState `json:"units,omitempty"`
	// Endpoint is the kubelet's new one, OldEndpoint the one before.
	Endpoint    string `json:"endpoint"`
	OldEndpoint string `json:"oldEndpoint,omitempty"`
}

// UnitState is a systemd unit as it was.
type UnitState struct {
	Name    string `json:"name"`
	Active  bool   `json:"active"`
	Enabled bool   `json:"enabled"`
}

// Save keeps a backup in path, durably, before anything is changed. ErrAlreadyExists where there is one: it is the way back
// from an earlier switch.
func (b *Backup) Save(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("there is a backup of an earlier switch in %s: undo that first (crishim adopt --rollback), or move the file away: %w", path, errdefs.ErrAlreadyExists)
	}
	b.Version = backupVersion
	data, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	// The files may hold secrets in flags.
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// LoadBackup reads one. ErrNotFound where there is none.
func LoadBackup(path string) (*Backup, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no backup in %s: no switch to undo: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	b := &Backup{}
	if err := json.Unmarshal(data, b); err != nil {
		return nil, fmt.Errorf("backup %s: %w", path, err)
	}
	if b.Version != backupVersion {
		return nil, fmt.Errorf("backup %s is of version %d, this program knows %d: %w", path, b.Version, backupVersion, errdefs.ErrFailedPrecondition)
	}
	return b, nil
}

// Apply writes the edits below root. A file that is not as it was read is left alone, with all that follow: ErrConflict.
func Apply(root string, edits []Edit) error {
	for _, e := range edits {
		if err := replace(root, e.Path, e.Before, e.After, e.Mode, e.New, false); err != nil {
			return err
		}
	}
	return nil
}

// CheckEdits says which files are neither as they were before their edits nor as they were after: Apply and Restore leave those alone
// (ErrConflict).
func CheckEdits(root string, edits []Edit) error {
	var errs []error
	for _, e := range edits {
		now, err := os.ReadFile(filepath.Join(root, e.Path))
		switch {
		case errors.Is(err, fs.ErrNotExist) && e.New:
		case errors.Is(err, fs.ErrNotExist):
			errs = append(errs, gone(e.Path))
		case err != nil:
			errs = append(errs, err)
		case string(now) == e.After, string(now) == e.Before && !e.New:
		default:
			errs = append(errs, changed(e.Path))
		}
	}
	return errors.Join(errs...)
}

func gone(path string) error { return fmt.Errorf("%s is gone: %w", path, errdefs.ErrConflict) }

func changed(path string) error {
	return fmt.Errorf("%s was changed by somebody else meanwhile: %w", path, errdefs.ErrConflict)
}

// Restore puts the old files back below root. A file that somebody has changed since is left alone (ErrConflict), the
// others are restored; force restores it too. What is restored already is fine.
func Restore(root string, edits []Edit, force bool) error {
	var errs []error
	for _, e := range edits {
		if e.New {
			errs = append(errs, remove(root, e, force))
			continue
		}
		errs = append(errs, replace(root, e.Path, e.After, e.Before, e.Mode, false, force))
	}
	return errors.Join(errs...)
}

// replace writes to where a link leads, with the owner that the file has.
func replace(root, path, from, to string, mode fs.FileMode, absent, force bool) error {
	on := filepath.Join(root, path)
	if real, err := filepath.EvalSymlinks(on); err == nil {
		on = real
	}
	now, err := os.ReadFile(on)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !absent && !force {
			return gone(path)
		}
		if err := makeFolder(filepath.Dir(on)); err != nil {
			return err
		}
	case err != nil:
		return err
	case string(now) == to:
		return nil
	case (absent || string(now) != from) && !force:
		return changed(path)
	}
	owner, _ := os.Stat(on)
	if err := atomicfile.Write(on, []byte(to), mode); err != nil {
		return err
	}
	if owner == nil {
		return nil
	}
	if st, ok := owner.Sys().(*syscall.Stat_t); ok && (st.Uid != 0 || st.Gid != 0) {
		return os.Chown(on, int(st.Uid), int(st.Gid))
	}
	return nil
}

// makeFolder makes an absent folder, open to be read whatever the umask is.
func makeFolder(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

func remove(root string, e Edit, force bool) error {
	on := filepath.Join(root, e.Path)
	now, err := os.ReadFile(on)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if string(now) != e.After && !force {
		return changed(e.Path)
	}
	if err := os.Remove(on); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(on))
}
