package enginetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"crishim/engine"

	"github.com/containerd/errdefs"
)

var _ engine.ImageCarrier = (*Memory)(nil)

// archive is what one Memory gives another: the image, and a digest of it.
type archive struct {
	Image  json.RawMessage
	Digest string
}

// DamageExport has the next ExportImage write something that is not what it says it is.
func (m *Memory) DamageExport() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.damage = true
}

// ExportImage implements engine.ImageCarrier. The step "ExportImage.half" is reached when half is written.
func (m *Memory) ExportImage(ctx context.Context, id engine.ImageID, w io.Writer) error {
	done, err := m.begin(ctx, "ExportImage")
	if err != nil {
		return err
	}
	m.mu.Lock()
	image, ok := m.images[id]
	damage := m.damage
	m.damage = false
	m.mu.Unlock()
	if !ok {
		return notFound("image", string(id))
	}
	content, err := json.Marshal(image)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	if damage {
		content = bytes.Replace(content, []byte("sha256:"), []byte("sha256:0"), 1)
	}
	data, err := json.Marshal(archive{content, hex.EncodeToString(sum[:])})
	if err != nil {
		return err
	}
	if _, err := w.Write(data[:len(data)/2]); err != nil {
		return err
	}
	if err := m.reach(ctx, "ExportImage.half"); err != nil {
		return err
	}
	if _, err := w.Write(data[len(data)/2:]); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return done()
}

// ImportImage implements engine.ImageCarrier. With Options.ManifestIDs the image gets an id of this store's own.
func (m *Memory) ImportImage(ctx context.Context, r io.Reader, image *engine.Image) (*engine.Image, error) {
	done, err := m.begin(ctx, "ImportImage")
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var read archive
	var got engine.Image
	if err := json.Unmarshal(data, &read); err != nil {
		return nil, fmt.Errorf("import an image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if sum := sha256.Sum256(read.Image); hex.EncodeToString(sum[:]) != read.Digest {
		return nil, fmt.Errorf("import an image: it is damaged: %w", errdefs.ErrDataLoss)
	}
	if err := json.Unmarshal(read.Image, &got); err != nil {
		return nil, err
	}
	got.RepoTags, got.RepoDigests = slices.Clone(image.RepoTags), slices.Clone(image.RepoDigests)
	if m.opts.ManifestIDs {
		got.ID = manifestID(&got)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, other := range m.images {
		other.RepoTags = slices.DeleteFunc(slices.Clone(other.RepoTags), func(tag string) bool { return id != got.ID && slices.Contains(got.RepoTags, tag) })
		m.images[id] = other
	}
	m.images[got.ID] = got
	m.tell(func(s engine.Sink) { s.ImagesChanged() })
	return &got, done()
}

// manifestID is the id of a store that takes the manifest's digest for it.
func manifestID(image *engine.Image) engine.ImageID {
	if len(image.RepoDigests) > 0 {
		_, digest, _ := strings.Cut(image.RepoDigests[0], "@")
		return engine.ImageID(digest)
	}
	return engine.ImageID(digestOf("manifest " + strings.Join(image.Layers, " ")))
}
