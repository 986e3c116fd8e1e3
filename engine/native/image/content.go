package image

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/internal/atomicfile"
	"crishim/internal/process"
)

// content is what blobs/ and layers/ hold. Guarded by Store.mu.
type content struct {
	blobs  map[digest.Digest]*blob
	layers map[digest.Digest]*layer
	// replaced are damaged layers that lie in their places, and not in layers, until a repair has put new ones there.
	replaced map[digest.Digest]*layer
	// verified are blobs that were seen to become a layer, so that nobody gets a layer by claiming its DiffID (S40).
	verified map[digest.Digest]digest.Digest
	// looked are layers that Ready has found whole, or that were unpacked since the start.
	looked map[digest.Digest]*layer
	// inherited is what Store.inherited takes of the images whose layers were asked for, nil where it is none.
	inherited map[engine.ImageID]*usage
	// leases keep content that no record names yet from being removed, by leaseOf.
	leases map[string]int
}

// blob is a file of blobs/. Immutable.
type blob struct {
	size  int64
	usage usage
	since time.Time // its age, while no image uses it
}

// layer is a folder of layers/. Immutable; it is layer.json there.
type layer struct {
	DiffID digest.Digest `json:"diffID"`
	// Blob is what it was unpacked from.
	Blob digest.Digest `json:"blob"`
	// Bytes and Inodes are what it takes on disk, Size the archive without compression.
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
	Size   int64 `json:"size"`
	// Content is that of its files, which an earlier version did not record.
	Content int64 `json:"content,omitempty"`
	// Implied are the folders that the archive had no entry for: in an image they inherit from lower layers.
	Implied []string `json:"implied,omitempty"`

	since time.Time
}

// usage is what something takes on disk.
type usage struct{ bytes, inodes int64 }

func (u *usage) add(o usage) {
	u.bytes += o.bytes
	u.inodes += o.inodes
}

const (
	layerFile = "layer.json"
	layerTree = "fs"
)

func (s *Store) blobPath(d digest.Digest) string {
	return s.path(blobsDir, string(d.Algorithm()), d.Encoded())
}

const tempBase = 36

// tempPath is a new name in tmp/.
func (s *Store) tempPath() string {
	return s.path(tempDir, strconv.FormatUint(s.temp.Add(1), tempBase))
}

// discard removes a file or folder, which is gone from its place at once.
func (s *Store) discard(path string) error {
	temp := s.tempPath()
	if err := os.Rename(path, temp); err != nil {
		return err
	}
	return os.RemoveAll(temp)
}

func (s *Store) partPath(d digest.Digest) string  { return s.path(partsDir, d.Encoded()) }
func (s *Store) layerPath(d digest.Digest) string { return s.path(layersDir, d.Encoded()) }
func (s *Store) layerTree(d digest.Digest) string { return filepath.Join(s.layerPath(d), layerTree) }

// badPrefix begins the names of layers whose description is damaged; the boot in which that was found follows. Containers may run on
// such a layer, so that its files stay until they cannot any more. For pulls it is not there.
const badPrefix = ".bad-"

// setAside gives a layer that is not whole its name of badPrefix.
func (s *Store) setAside(path, boot string) error {
	return os.Rename(path, s.path(layersDir, badPrefix+boot+"-"+filepath.Base(path)+"-"+strconv.FormatInt(time.Now().UnixNano(), tempBase)))
}

// load reads what is on disk. A layer that is not whole is set aside, and one that was before the last boot is moved to tmp/, for removeLeft.
func (c *content) load(s *Store) error {
	c.blobs, c.layers = map[digest.Digest]*blob{}, map[digest.Digest]*layer{}
	c.leases, c.verified = map[string]int{}, map[digest.Digest]digest.Digest{}
	c.looked, c.replaced = map[digest.Digest]*layer{}, map[digest.Digest]*layer{}
	folder := s.path(blobsDir, string(digest.SHA256))
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, entry.Name())
		info, err := entry.Info()
		switch {
		case strings.HasPrefix(entry.Name(), atomicfile.TempPrefix):
			err = os.Remove(filepath.Join(folder, entry.Name()))
		case d.Validate() != nil || err == nil && !info.Mode().IsRegular():
			klog.InfoS("Leaving alone what is no blob", "path", filepath.Join(folder, entry.Name()))
		case err == nil:
			c.blobs[d] = newBlob(info)
		}
		if err != nil {
			return err
		}
	}
	if entries, err = os.ReadDir(s.path(layersDir)); err != nil {
		return err
	}
	boot, err := process.Boot()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := s.path(layersDir, entry.Name())
		if since, bad := strings.CutPrefix(entry.Name(), badPrefix); bad {
			if strings.HasPrefix(since, boot) {
				continue
			}
			temp := s.tempPath()
			if err := os.Rename(path, temp); err != nil {
				return err
			}
			s.left = append(s.left, temp)
			continue
		}
		l, err := readLayer(path, digest.NewDigestFromEncoded(digest.SHA256, entry.Name()))
		if process.Starved(err) {
			return fmt.Errorf("look at layer %s: %w", entry.Name(), err)
		}
		if err != nil {
			klog.ErrorS(err, "Setting aside a layer that is not whole, until the machine boots", "path", path)
			if err := s.setAside(path, boot); err != nil {
				return err
			}
			continue
		}
		c.layers[l.DiffID] = l
		c.verified[l.Blob] = l.DiffID
	}
	return nil
}

// sinceOf is when a file was last changed: now, where the clock was set back meanwhile, as nothing would be old enough else
// before it has caught up.
func sinceOf(info fs.FileInfo) time.Time {
	if now := time.Now(); info.ModTime().After(now) {
		return now
	}
	return info.ModTime()
}

func newBlob(info fs.FileInfo) *blob {
	b := &blob{size: info.Size(), since: sinceOf(info), usage: usage{bytes: info.Size(), inodes: 1}}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		b.usage.bytes = stat.Blocks * 512
	}
	return b
}

func readLayer(path string, d digest.Digest) (*layer, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(path, layerFile))
	if err != nil {
		return nil, err
	}
	var l layer
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, err
	}
	if l.DiffID != d {
		return nil, fmt.Errorf("%s is layer %s", layerFile, l.DiffID)
	}
	info, err := os.Lstat(filepath.Join(path, layerTree))
	if process.Starved(err) {
		return nil, err
	}
	if err != nil || !info.IsDir() {
		return nil, fmt.Errorf("its folder %s is absent: %w", layerTree, errdefs.ErrDataLoss)
	}
	if info, err = os.Lstat(path); err != nil {
		return nil, err
	}
	l.since = sinceOf(info)
	return &l, nil
}

// imageSize is what an image takes on disk, shared layers included. What it has several times counts once: several indexes lead to one
// manifest, and a layer may be there again.
func (c *content) imageSize(rec *record) int64 {
	var sum int64
	counted := map[digest.Digest]bool{}
	for _, d := range rec.DiffIDs {
		if l := cmp.Or(c.layers[d], c.replaced[d]); l != nil && !counted[d] {
			sum += l.Bytes
		}
		counted[d] = true
	}
	clear(counted) // a layer that is not compressed has a blob of the same digest
	for i := range rec.Manifests {
		for _, b := range rec.Manifests[i].blobs() {
			if !counted[b.Digest] {
				sum += b.Size
			}
			counted[b.Digest] = true
		}
	}
	return sum
}

// readBlob reads a small blob and holds it to its digest.
func (s *Store) readBlob(d digest.Digest, limit int64) ([]byte, error) {
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit || digest.FromBytes(data) != d {
		return nil, fmt.Errorf("blob %s is damaged on disk, remove the image and pull it again: %w", d, errdefs.ErrDataLoss)
	}
	return data, nil
}

// writeBlob stores a small blob, whose digest was checked.
func (s *Store) writeBlob(d digest.Digest, data []byte) error {
	s.mu.Lock()
	have := s.content.blobs[d]
	s.mu.Unlock()
	if have != nil && have.size == int64(len(data)) {
		return nil
	}
	path := s.blobPath(d)
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return diskError("store blob "+string(d), err)
	}
	return s.addBlob(d)
}

// addBlob takes a blob in whose file is in its place.
func (s *Store) addBlob(d digest.Digest) error {
	info, err := os.Lstat(s.blobPath(d))
	if err != nil {
		return fmt.Errorf("store blob %s: %w", d, err)
	}
	b := newBlob(info)
	b.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content.blobs[d] = b
	return nil
}

// leaseOf is the key of a blob's or layer's lease.
func blobLease(d digest.Digest) string  { return "blob " + string(d) }
func layerLease(d digest.Digest) string { return "layer " + string(d) }

// lease keeps content, also what is still to come, until release.
func (s *Store) lease(keys ...string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		s.content.leases[key]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, key := range keys {
			if s.content.leases[key]--; s.content.leases[key] == 0 {
				delete(s.content.leases, key)
			}
		}
	}
}

// diskError gives the error of a write its class.
func diskError(doing string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%s: the disk is full, free some space: %w: %w", doing, err, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
