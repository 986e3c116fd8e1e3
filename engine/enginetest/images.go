package enginetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// NewImage is an image with one tag and one digest, all made of ref alone: "busybox" is docker.io/library/busybox:latest.
func NewImage(ref string) engine.Image {
	name, tagged, err := normalize(ref)
	if err != nil {
		panic(err) // a wrong literal in a test
	}
	image := engine.Image{
		ID: engine.ImageID(digestOf("config " + tagged)), Size: 1 << 20,
		RepoDigests: []string{name + "@" + digestOf("manifest "+tagged)},
		Entrypoint:  []string{"run"},
		Layers:      []string{digestOf("layer " + tagged)},
	}
	if !strings.Contains(tagged, "@") {
		image.RepoTags = []string{tagged}
	}
	return image
}

func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// normalize is the repository and the whole reference in full.
func normalize(ref string) (name, full string, err error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", "", fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return named.Name(), named.String(), nil
}

// AddImage puts an image into the store, as a pull by somebody else does.
func (m *Memory) AddImage(image engine.Image) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.images[image.ID] = image
	m.tell(func(s engine.Sink) { s.ImagesChanged() })
}

// Pulls are the pulls so far.
func (m *Memory) Pulls() []engine.PullSpec {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.pulls)
}

// ListImages implements engine.Images.
func (m *Memory) ListImages(ctx context.Context) ([]engine.Image, error) {
	done, err := m.begin(ctx, "ListImages")
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []engine.Image
	for _, id := range slices.Sorted(maps.Keys(m.images)) {
		list = append(list, m.images[id])
	}
	return list, done()
}

// Image implements engine.Images.
func (m *Memory) Image(ctx context.Context, ref string) (*engine.Image, error) {
	done, err := m.begin(ctx, "Image")
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, image := range m.images {
		if matches(&image, ref) {
			return &image, done()
		}
	}
	return nil, notFound("image", ref)
}

func matches(image *engine.Image, ref string) bool {
	hexID := strings.TrimPrefix(string(image.ID), "sha256:")
	prefix := strings.TrimPrefix(ref, "sha256:")
	if len(prefix) >= 12 && strings.HasPrefix(hexID, prefix) {
		return true
	}
	_, full, err := normalize(ref)
	return err == nil && (slices.Contains(image.RepoTags, full) || slices.Contains(image.RepoDigests, full))
}

// PullImage implements engine.Images.
func (m *Memory) PullImage(ctx context.Context, spec *engine.PullSpec) (*engine.Image, error) {
	m.mu.Lock()
	m.pulls = append(m.pulls, *spec)
	m.mu.Unlock()
	done, err := m.begin(ctx, "PullImage")
	if err != nil {
		return nil, err
	}
	if _, _, err := normalize(spec.Ref); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, image := range m.opts.Registry {
		if matches(&image, spec.Ref) {
			m.images[image.ID] = image
			m.tell(func(s engine.Sink) { s.ImagesChanged() })
			return &image, done()
		}
	}
	return nil, notFound("image", spec.Ref)
}

// RemoveImage implements engine.Images.
func (m *Memory) RemoveImage(ctx context.Context, id engine.ImageID) error {
	done, err := m.begin(ctx, "RemoveImage")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.containers {
		if c.image.ID == id {
			return fmt.Errorf("remove image %s: container %s uses it: %w", id, c.id, errdefs.ErrFailedPrecondition)
		}
	}
	if _, ok := m.images[id]; ok {
		delete(m.images, id)
		m.tell(func(s engine.Sink) { s.ImagesChanged() })
	}
	return done()
}

// ImageFS implements engine.Images.
func (m *Memory) ImageFS(ctx context.Context) (images, containers []engine.FSUsage, err error) {
	done, err := m.begin(ctx, "ImageFS")
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	usage := engine.FSUsage{Timestamp: time.Now(), Mountpoint: "/", InodesUsed: uint64(len(m.images))}
	for _, image := range m.images {
		usage.UsedBytes += image.Size
	}
	return []engine.FSUsage{usage}, []engine.FSUsage{{Timestamp: usage.Timestamp, Mountpoint: "/"}}, done()
}
