package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/atomicfile"
	"crishim/internal/process"
	"crishim/internal/seal"
	"crishim/registry"
)

// recordVersion is that of the files in records/. A file of a newer version stays as it is: its image is absent until it is
// pulled again, which records it anew, but all content that it names stays too, in use or not.
const recordVersion = 1

// errNewer is the reason of a record that a later version of this program wrote.
var errNewer = errors.New("written by a newer version of crishim")

const (
	recordSuffix = ".json"
	badSuffix    = ".bad"
)

// record is an image on disk.
type record struct {
	Version int            `json:"version"`
	ID      engine.ImageID `json:"id"` // the digest of the config
	// Tags are full names. The image whose tag has the highest sequence number has it: a crash may leave it on two.
	Tags []tag `json:"tags,omitempty"`
	// Digests are full names with the digest that they were pulled by: of a manifest or of an index.
	Digests []string `json:"digests,omitempty"`
	// DiffIDs are the layers, lowest first.
	DiffIDs []digest.Digest `json:"diffIDs"`
	// Manifests are all that were pulled with this config; several differ in how layers are compressed.
	Manifests []manifest `json:"manifests"`
	Pulled    time.Time  `json:"pulled"`
}

type tag struct {
	Name string `json:"name"`
	Seq  uint64 `json:"seq"`
}

// manifest is one way in which the image's content is held.
type manifest struct {
	// Indexes lead to the manifest, outermost first.
	Indexes  []ocispec.Descriptor `json:"indexes,omitempty"`
	Manifest ocispec.Descriptor   `json:"manifest"`
	Config   ocispec.Descriptor   `json:"config"`
	// Layers are compressed, one for each DiffID.
	Layers []ocispec.Descriptor `json:"layers"`
}

// blobs are all blobs of the manifest.
func (m *manifest) blobs() []ocispec.Descriptor {
	return slices.Concat(m.Indexes, []ocispec.Descriptor{m.Manifest, m.Config}, m.Layers)
}

// stored is an image in memory. Immutable.
type stored struct {
	record record
	image  engine.Image
}

// recordName is the file of an image, "" when id is none: it becomes part of a path.
func recordName(id engine.ImageID) string {
	d, err := digest.Parse(string(id))
	if err != nil || d.Algorithm() != digest.SHA256 {
		return ""
	}
	return d.Encoded() + recordSuffix
}

// writeRecord makes an image, or its new names, durable.
func (s *Store) writeRecord(rec *record) error {
	data, err := seal.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record image %s: %w", rec.ID, err)
	}
	if err := atomicfile.Write(s.path(recordsDir, recordName(rec.ID)), data, 0o600); err != nil {
		return diskError("record image "+string(rec.ID), err)
	}
	return nil
}

// load reads what is on disk.
func (s *Store) load() error {
	if err := s.findLeft(); err != nil {
		return fmt.Errorf("look for what a crash left: %w", err)
	}
	if err := s.content.load(s); err != nil {
		return err
	}
	if err := s.loadInherited(); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.path(recordsDir))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := s.path(recordsDir, entry.Name())
		switch {
		case strings.HasPrefix(entry.Name(), atomicfile.TempPrefix):
			_ = os.Remove(path) // what a crash left; if it fails, it is tried again at the next start
		case strings.HasSuffix(entry.Name(), recordSuffix+badSuffix):
			s.aside[entry.Name()] = true
		case strings.HasSuffix(entry.Name(), recordSuffix):
			img, err := s.readImage(path)
			if errors.Is(err, errNewer) {
				klog.ErrorS(err, "Leaving alone an image of a newer version; it can be pulled again", "path", path)
				continue
			}
			if process.Starved(err) {
				return fmt.Errorf("read the record of an image: %w", err)
			}
			if err != nil {
				klog.ErrorS(err, "Setting aside an image that is not whole; it can be pulled again", "path", path)
				_ = os.Rename(path, path+badSuffix)
				s.aside[entry.Name()+badSuffix] = true
				continue
			}
			s.images[img.record.ID] = img
			for i := range img.record.Manifests {
				for n, l := range img.record.Manifests[i].Layers {
					s.content.verified[l.Digest] = img.record.DiffIDs[n]
				}
			}
		}
	}
	for _, loser := range s.settleTags() {
		// Or it would have the tag again once the image that got it is removed.
		if err := s.writeRecord(loser); err != nil {
			klog.ErrorS(err, "A tag that moved is still on record for the image that it left", "image", loser.ID)
		}
	}
	return nil
}

// readImage reads a record and makes sure that what it names is here.
func (s *Store) readImage(path string) (*stored, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	rec, err := decodeRecord(filepath.Base(path), data)
	if errors.Is(err, errNewer) {
		for _, named := range digest.DigestRegexp.FindAllString(string(data), -1) {
			s.foreign[digest.Digest(named)] = true
		}
	}
	if err != nil {
		return nil, err
	}
	for _, d := range rec.DiffIDs {
		if s.content.layers[d] == nil {
			return nil, fmt.Errorf("layer %s is absent: %w", d, errdefs.ErrDataLoss)
		}
	}
	for i := range rec.Manifests {
		for _, b := range rec.Manifests[i].blobs() {
			if have := s.content.blobs[b.Digest]; have == nil || have.size != b.Size {
				return nil, fmt.Errorf("blob %s is absent or not of %d bytes: %w", b.Digest, b.Size, errdefs.ErrDataLoss)
			}
		}
	}
	return s.newStored(rec)
}

// decodeRecord reads the content of a file of records/.
func decodeRecord(name string, data []byte) (*record, error) {
	var header struct {
		Version int `json:"version"`
	}
	if err := seal.Unmarshal(data, &header); err != nil {
		return nil, err
	}
	if header.Version > recordVersion {
		return nil, fmt.Errorf("%w: version %d, this one knows up to %d", errNewer, header.Version, recordVersion)
	}
	rec := new(record)
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, err
	}
	if rec.Version != recordVersion || name != recordName(rec.ID) || len(rec.Manifests) == 0 {
		return nil, fmt.Errorf("version %d of %q is not expected in this file", rec.Version, rec.ID)
	}
	for _, ref := range rec.Digests {
		if registry.FullName(ref) == "" || !strings.Contains(ref, "@") {
			return nil, fmt.Errorf("%q is not a name with a digest", ref)
		}
	}
	for i := range rec.Manifests {
		m := &rec.Manifests[i]
		if len(m.Layers) != len(rec.DiffIDs) || engine.ImageID(m.Config.Digest) != rec.ID {
			return nil, fmt.Errorf("manifest %s is of another image", m.Manifest.Digest)
		}
	}
	return rec, nil
}

// newStored makes the image of a record; its content is here.
func (s *Store) newStored(rec *record) (*stored, error) {
	config, err := s.readConfig(rec.ID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &stored{record: *rec, image: imageOf(rec, config, s.content.imageSize(rec))}, nil
}

// settleTags gives each tag to the image that got it last, and returns the records that name one still that they lost.
func (s *Store) settleTags() (changed []*record) {
	owner := map[string]tag{}
	holder := map[string]engine.ImageID{}
	for id, img := range s.images {
		for _, t := range img.record.Tags {
			if have, ok := owner[t.Name]; !ok || t.Seq > have.Seq {
				owner[t.Name], holder[t.Name] = t, id
			}
			s.tagSeq = max(s.tagSeq, t.Seq)
		}
	}
	for id, img := range s.images {
		kept := *img
		kept.record.Tags = slices.DeleteFunc(slices.Clone(img.record.Tags), func(t tag) bool { return holder[t.Name] != id })
		kept.image.RepoTags = familiar(tagNames(kept.record.Tags))
		s.images[id] = &kept
		if len(kept.record.Tags) < len(img.record.Tags) {
			changed = append(changed, &kept.record)
		}
	}
	s.index()
	return changed
}

// index fills byName. The caller holds s.mu, or is alone.
func (s *Store) index() {
	clear(s.byName)
	for id, img := range s.images {
		for _, name := range slices.Concat(tagNames(img.record.Tags), img.record.Digests) {
			s.byName[name] = id
		}
	}
}

func tagNames(tags []tag) []string {
	names := make([]string, len(tags))
	for i, t := range tags {
		names[i] = t.Name
	}
	return names
}

// findLeft finds what a crash left in tmp/, and takes no name from it.
func (s *Store) findLeft() error {
	entries, err := os.ReadDir(s.path(tempDir))
	for _, entry := range entries {
		s.left = append(s.left, s.path(tempDir, entry.Name()))
		if n, err := strconv.ParseUint(entry.Name(), tempBase, 64); err == nil {
			s.temp.Store(max(s.temp.Load(), n))
		}
	}
	return err
}

// removeLeft removes what was left. It may be whole layers: nobody waits for it.
func (s *Store) removeLeft(ctx context.Context) {
	for _, path := range s.left {
		if ctx.Err() != nil {
			return // the next start finds it
		}
		if err := os.RemoveAll(path); err != nil {
			klog.ErrorS(err, "Removing what a crash left in the image store failed; the next start tries it again", "path", path)
		}
	}
	s.left = nil
}
