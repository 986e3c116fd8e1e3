package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/atomicfile"
	"crishim/internal/process"
	"crishim/registry"
)

// records keep the repository digests of images that were pulled through a mirror: Docker knows them under the helper's
// name only. One file per image, named after its id.
type records struct {
	dir string

	mu   sync.Mutex
	byID map[engine.ImageID]*record
}

// record is the file's form. A change of meaning needs another version.
type record struct {
	Version     int      `json:"version"`
	ID          string   `json:"id"`
	RepoDigests []string `json:"repoDigests"`

	written time.Time // in this process; a list made before it does not show the image
}

const (
	recordVersion = 1
	recordSuffix  = ".json"
	// badSuffix is given to a file that cannot be read, so that it is looked at once.
	badSuffix = ".bad"
)

func loadRecords(dir string) *records {
	r := &records{dir: dir, byID: map[engine.ImageID]*record{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			klog.ErrorS(err, "Reading the digests of pulled images failed")
		}
		return r
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if strings.HasPrefix(entry.Name(), atomicfile.TempPrefix) {
			_ = os.Remove(path) // a crash left it; it is in nobody's way
			continue
		}
		if !strings.HasSuffix(entry.Name(), recordSuffix) {
			continue
		}
		record, err := readRecord(path)
		if process.Starved(err) {
			klog.ErrorS(err, "A record of an image's digests is left to the next start, or to the image's next pull", "path", path)
			continue
		}
		if err != nil {
			klog.ErrorS(err, "Setting aside a record of an image's digests", "path", path)
			_ = os.Rename(path, path+badSuffix) // if it fails, it is tried again at the next start
			continue
		}
		r.byID[engine.ImageID(record.ID)] = record
	}
	return r
}

func readRecord(path string) (*record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return nil, err
	}
	if rec.Version != recordVersion || filepath.Base(path) != recordName(rec.ID) {
		return nil, fmt.Errorf("version %d of %q is not expected in this file", rec.Version, rec.ID)
	}
	for _, ref := range rec.RepoDigests {
		if registry.FullName(ref) == "" || !strings.Contains(ref, "@") {
			return nil, fmt.Errorf("%q is not a name with a digest", ref)
		}
	}
	return &rec, nil
}

// recordName is the file of an image, "" when id is none: it becomes part of a path.
func recordName(id string) string {
	hex, ok := strings.CutPrefix(id, "sha256:")
	if !ok || len(hex) != 64 || !registry.IsHex(hex) {
		return ""
	}
	return hex + recordSuffix
}

// digests are the recorded ones of an image.
func (r *records) digests(id engine.ImageID) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec := r.byID[id]; rec != nil {
		return slices.Clone(rec.RepoDigests)
	}
	return nil
}

// find is the image that a full name with a digest was recorded for, "" if none.
func (r *records) find(name string) engine.ImageID {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, rec := range r.byID {
		if slices.ContainsFunc(rec.RepoDigests, func(ref string) bool { return registry.FullName(ref) == name }) {
			return id
		}
	}
	return ""
}

// add records durably that the image is repoDigest, a familiar name with a digest, beside those on record. The file counts
// where this process knows of none: there may have been no descriptor to load it.
func (r *records) add(id engine.ImageID, repoDigest string) error {
	name := recordName(string(id))
	if name == "" {
		return fmt.Errorf("record the digest of an image: Docker gave it the id %q", id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	path, next := filepath.Join(r.dir, name), &record{Version: recordVersion, ID: string(id), written: time.Now()}
	old := r.byID[id]
	if old != nil && slices.Contains(old.RepoDigests, repoDigest) {
		old.written = next.written
		return nil
	}
	if old == nil {
		var err error
		if old, err = readRecord(path); process.Starved(err) {
			return fmt.Errorf("record the digest of an image beside those on record: %w", err)
		}
	}
	if old != nil {
		next.RepoDigests = slices.Clone(old.RepoDigests)
	}
	if !slices.Contains(next.RepoDigests, repoDigest) {
		next.RepoDigests = append(next.RepoDigests, repoDigest)
	}
	data, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("record the digest of an image: %w", err)
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("record the digest of an image: %w", err)
	}
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("record the digest of an image: %w", err)
	}
	r.byID[id] = next
	return nil
}

// remove forgets an image.
func (r *records) remove(id engine.ImageID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.removeLocked(id)
}

func (r *records) removeLocked(id engine.ImageID) error {
	if r.byID[id] == nil {
		return nil
	}
	if err := atomicfile.Remove(filepath.Join(r.dir, recordName(string(id)))); err != nil {
		return fmt.Errorf("forget the digests of image %s: %w", id, err)
	}
	delete(r.byID, id)
	return nil
}

// prune forgets the images that a list made at the given time does not hold.
func (r *records) prune(present map[engine.ImageID]bool, listed time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for id, rec := range r.byID {
		if !present[id] && rec.written.Before(listed) {
			errs = append(errs, r.removeLocked(id))
		}
	}
	return errors.Join(errs...)
}
