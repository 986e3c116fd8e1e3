package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/atomicfile"
	"crishim/internal/failpoint"
	"crishim/internal/process"
	"crishim/internal/seal"
)

// records are the records of one kind: DIR/ID, which a reboot leaves, and a copy COPIES/ID, which it does not. The copy
// stands in for a record that is damaged, and for one that could not be replaced because its disk is full or read-only.
type records struct {
	// kind is for messages and failpoints.
	kind        string
	dir, copies string
	// aside takes what is damaged.
	aside *quarantine
}

// save replaces the record of id. Where that fails its copy is replaced all the same, which lasts until a reboot. Calls for
// one id are ordered by the caller.
func (s records) save(id string, record any) error {
	data, err := seal.Marshal(record)
	if err != nil {
		return err
	}
	return failpoint.Around("native."+s.kind+".record", func() error {
		err := replaceFile(s.dir, id, data)
		if copyErr := replaceFile(s.copies, id, data); copyErr != nil {
			klog.V(2).InfoS("A record has no copy in the run folder", "id", id, "err", copyErr)
		}
		if err != nil {
			return fmt.Errorf("record %s %s: %w", s.kind, id, diskError(err))
		}
		return nil
	})
}

// remove takes the record away, the copy first: a copy alone is a record that was lost.
func (s records) remove(id string) error {
	return failpoint.Around("native."+s.kind+".forget", func() error {
		if err := errors.Join(removeFile(filepath.Join(s.copies, id)), removeFile(filepath.Join(s.dir, id))); err != nil {
			return fmt.Errorf("remove the record of %s %s: %w", s.kind, id, diskError(err))
		}
		return nil
	})
}

// replaceFile puts a file into a folder of ours at once, as seen by who looks or is killed; a power cut may lose it.
func replaceFile(dir, name string, data []byte) error {
	temp := filepath.Join(dir, atomicfile.TempPrefix+name)
	err := os.WriteFile(temp, data, 0o600)
	if err == nil {
		err = os.Rename(temp, filepath.Join(dir, name))
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return err
}

// RecordedUsers are the containers whose records, or copies of them, name an image: for who works on the store while no engine has
// it. What is in a record is not asked further, so that one of a newer version counts, and a damaged one as far as it goes.
func RecordedUsers(rootDir, runDir string, id engine.ImageID) ([]string, error) {
	of := containerRecords(rootDir, runDir)
	var users []string
	for _, dir := range []string{of.dir, of.copies} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			if strings.HasPrefix(entry.Name(), ".") {
				continue // half-written, or set aside: its container was ended then
			}
			data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
			if err != nil {
				return nil, err
			}
			name := "container " + entry.Name()
			if bytes.Contains(data, []byte(id)) && !slices.Contains(users, name) {
				users = append(users, name)
			}
		}
	}
	return users, nil
}

// containerRecords are those of the engine with these folders.
func containerRecords(rootDir, runDir string) records {
	return records{kind: "container", dir: filepath.Join(rootDir, "records"), copies: filepath.Join(runDir, "records", "containers")}
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// found is a record as it was read, which can be trusted.
type found struct {
	header
	data []byte
}

// read reads the record at path.
func read(ctx context.Context, path string) (found, error) {
	var data []byte
	if err := patiently(ctx, "read a record", func() (err error) { data, err = os.ReadFile(path); return err }); err != nil {
		return found{}, err
	}
	return decode(data)
}

// decode finds the header of a record of this version or another.
func decode(data []byte) (found, error) {
	f := found{data: data}
	if err := seal.Unmarshal(data, &f.header); err != nil {
		return f, err
	}
	if f.Version <= 0 {
		return f, fmt.Errorf("it has no version: %w", errdefs.ErrDataLoss)
	}
	return f, nil
}

// load calls add with each record of a version up to ours, and newer with the content of each later one. A record that
// cannot be read is set aside and its copy taken; without one it is passed over: it keeps nothing else from being served. What this
// process cannot read for want of a descriptor is waited for.
func (s records) load(ctx context.Context, add, newer func(id string, data []byte) error) error {
	var ids []string
	if err := patiently(ctx, "list records", func() (err error) { ids, err = s.ids(); return err }); err != nil {
		return err
	}
	for _, id := range ids {
		path := filepath.Join(s.dir, id)
		record, err := read(ctx, path)
		if process.Starved(err) {
			return err
		}
		if err == nil && record.Version > recordVersion {
			err = newer(id, record.data)
			if err == nil {
				continue
			}
		}
		copied, copyErr := read(ctx, filepath.Join(s.copies, id))
		if process.Starved(copyErr) {
			return copyErr
		}
		useCopy := copyErr == nil && copied.Version <= recordVersion && copied.Boot == boot()
		if err == nil && (!useCopy || copied.Revision <= record.Revision) {
			if err = add(id, record.data); err == nil {
				if copyErr != nil && !errors.Is(copyErr, fs.ErrNotExist) {
					klog.ErrorS(copyErr, "The copy of a record of the native engine cannot be read and is replaced", "kind", s.kind, "id", id)
					quiet(replaceFile(s.copies, id, record.data), "replace the copy of a record", id)
				}
				continue
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			klog.ErrorS(err, "A record of the native engine cannot be read and is set aside", "kind", s.kind, "path", path)
			s.aside.setAside(path)
		}
		if !useCopy {
			if copyErr == nil && copied.Version <= recordVersion {
				_ = os.Remove(filepath.Join(s.copies, id)) // of an earlier boot
			}
			continue
		}
		klog.InfoS("A record of the native engine is taken from its copy", "kind", s.kind, "id", id)
		if err := add(id, copied.data); err != nil {
			klog.ErrorS(err, "The copy of a record cannot be read either", "kind", s.kind, "id", id)
			continue
		}
		quiet(replaceFile(s.dir, id, copied.data), "put back a record", id)
	}
	return nil
}

// ids are those that have a record or a copy of one. What a crash left half-written is removed.
func (s records) ids() ([]string, error) {
	var ids []string
	seen := map[string]bool{}
	for _, dir := range []string{s.dir, s.copies} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			name := entry.Name()
			switch {
			case strings.HasPrefix(name, atomicfile.TempPrefix):
				_ = os.Remove(filepath.Join(dir, name))
			case strings.HasPrefix(name, "."), seen[name]:
			default:
				seen[name] = true
				ids = append(ids, name)
			}
		}
	}
	return ids, nil
}
