package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// document is a manifest or an index: exactly one of the two.
type document struct {
	mediaType string
	index     *v1.IndexManifest
	image     *v1.Manifest
}

// malformed is a document that is not what it has to be.
func malformed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// parseDocument reads a manifest or an index. One that could be read in two ways is refused (CVE-2021-41190): it must say
// what it is, or have the fields of one kind only, and have no key twice. mediaType is what it was sent as, "" when unknown.
func parseDocument(data []byte, mediaType string) (*document, error) {
	return parseAs(data, mediaType, func(sent, says string) bool { return sent == says })
}

// parseLinked reads one that was linked as something, and held to its digest. Tools that convert an index write Docker's types for what
// says OCI's of itself, and the other way round; containerd takes them, too. An index is no image by any link.
func parseLinked(data []byte, mediaType string) (*document, error) {
	return parseAs(data, mediaType, func(linked, says string) bool {
		return types.MediaType(linked).IsIndex() == types.MediaType(says).IsIndex()
	})
}

func parseAs(data []byte, mediaType string, agree func(sent, says string) bool) (*document, error) {
	if err := uniqueKeys(data, true); err != nil {
		return nil, malformed("the manifest is not sound JSON: %w", err)
	}
	var shape struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     json.RawMessage   `json:"manifests"`
		Config        json.RawMessage   `json:"config"`
		Layers        json.RawMessage   `json:"layers"`
		FSLayers      []json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &shape); err != nil {
		return nil, malformed("parse the manifest: %w", err)
	}
	if shape.SchemaVersion == 1 || shape.FSLayers != nil {
		return nil, malformed("the image is of Docker's old format (schema 1), which is no longer supported: push it again with a newer tool")
	}
	if shape.SchemaVersion != 2 {
		return nil, malformed("schemaVersion %d of the manifest is not known", shape.SchemaVersion)
	}
	sent, _, err := mime.ParseMediaType(mediaType)
	if err != nil || !isManifest(sent) {
		sent = "" // servers of static files send anything
	}
	kind := shape.MediaType
	if kind == "" {
		kind = sent
	}
	isIndex := shape.Manifests != nil
	if isIndex && (shape.Config != nil || shape.Layers != nil) {
		return nil, malformed("the manifest is an index and an image at once")
	}
	if kind == "" { // OCI 1.0 lets documents say nothing
		kind = string(types.OCIManifestSchema1)
		if isIndex {
			kind = string(types.OCIImageIndex)
		}
	}
	if !isManifest(kind) {
		return nil, malformed("media type %.100q is not that of an image", kind)
	}
	if sent != "" && !agree(sent, kind) {
		return nil, malformed("the manifest was sent as %s and says that it is %s", sent, kind)
	}
	if types.MediaType(kind).IsIndex() != isIndex {
		return nil, malformed("the manifest is not what its media type %s says", kind)
	}
	out := &document{mediaType: kind}
	if isIndex {
		err = json.Unmarshal(data, &out.index)
	} else {
		err = json.Unmarshal(data, &out.image)
	}
	if err != nil {
		return nil, malformed("parse the manifest: %w", err)
	}
	return out, nil
}

func isManifest(mediaType string) bool {
	t := types.MediaType(mediaType)
	return t.IsImage() || t.IsIndex()
}

// dockerZstdLayer is a layer that a builder compressed with zstd in an image of Docker's form, which has no such type by itself.
const dockerZstdLayer types.MediaType = "application/vnd.docker.image.rootfs.diff.tar.zstd"

// descriptor checks a link of a manifest. Its digest becomes part of paths, so only what is known is let through.
func descriptor(d *v1.Descriptor, limit int64) (ocispec.Descriptor, error) {
	sum := digest.Digest(d.Digest.String())
	if sum.Validate() != nil || sum.Algorithm() != digest.SHA256 {
		return ocispec.Descriptor{}, malformed("digest %.100q is not a sha256 one, others are not supported", sum)
	}
	if d.Size < 0 || d.Size > limit {
		return ocispec.Descriptor{}, fmt.Errorf("blob %s of %d bytes is larger than %d: %w", sum, d.Size, limit, errdefs.ErrResourceExhausted)
	}
	return ocispec.Descriptor{MediaType: string(d.MediaType), Digest: sum, Size: d.Size}, nil
}

// oldConfigs are types that old registries and builders gave configs of Docker's form, which Docker takes too (docker/distribution#1621).
// An artifact is told by its layers.
var oldConfigs = []types.MediaType{"application/octet-stream", "application/json", "text/html", ""}

// links are the config and layers of an image's manifest.
func (d *document) links(limits *Limits) (config ocispec.Descriptor, layers []ocispec.Descriptor, err error) {
	if t := d.image.Config.MediaType; d.image.ArtifactType != "" || !t.IsConfig() && !slices.Contains(oldConfigs, t) {
		return config, nil, malformed("it is an artifact (%.100q), not a container image", max(d.image.ArtifactType, string(d.image.Config.MediaType)))
	}
	if config, err = descriptor(&d.image.Config, limits.Config); err != nil {
		return config, nil, err
	}
	for i := range d.image.Layers {
		if t := d.image.Layers[i].MediaType; !t.IsLayer() && t != dockerZstdLayer {
			return config, nil, malformed("layer %d is of type %.100q, which is not known", i, d.image.Layers[i].MediaType)
		}
		layer, err := descriptor(&d.image.Layers[i], math.MaxInt64)
		if err != nil {
			return config, nil, err
		}
		layers = append(layers, layer)
	}
	return config, layers, nil
}

// choose takes the manifest for a platform out of an index.
func (d *document) choose(platform *ocispec.Platform, limit int64) (ocispec.Descriptor, error) {
	best, rank := -1, 0
	var offered []string
	for i := range d.index.Manifests {
		m := &d.index.Manifests[i]
		if !isManifest(string(m.MediaType)) {
			continue
		}
		if m.Platform != nil {
			offered = append(offered, m.Platform.String())
		}
		if r := fitness(m.Platform, platform); r > rank {
			best, rank = i, r
		}
	}
	if best < 0 {
		return ocispec.Descriptor{}, fmt.Errorf("there is no image for %s/%s, only for %.500s: %w",
			platform.OS, platform.Architecture, strings.Join(offered, ", "), errdefs.ErrNotFound)
	}
	return descriptor(&d.index.Manifests[best], limit)
}

// half is what architectures of 64 bits run of 32, as containerd has it, too.
var half = map[string]ocispec.Platform{"amd64": {Architecture: "386"}, "arm64": {Architecture: "arm", Variant: "v8"}}

// The classes of fitness, each above all variants of the one before.
const (
	unsaid    = 1
	ofHalf    = 100
	ofItsKind = 200
)

// fitness says how well a manifest's platform is for the wanted one; 0 is not at all. A manifest without a platform is the
// last resort, the one before it programs of 32 bits. Of ARM's variants the newest that runs here is best.
func fitness(have *v1.Platform, want *ocispec.Platform) int {
	switch {
	case have == nil:
		return unsaid
	case have.OS != want.OS:
		return 0
	}
	arch, of := normal(have.Architecture, have.Variant)
	class, architecture, wanted := ofItsKind, want.Architecture, variant(want.Architecture, want.Variant)
	if other, ok := half[architecture]; ok && arch == other.Architecture {
		class, architecture, wanted = ofHalf, other.Architecture, other.Variant
	}
	switch {
	case arch != architecture:
		return 0
	case of == wanted:
		return class + 10
	case of < wanted && len(of) == len(wanted): // "v6" < "v7"
		return class + slices.Index([]string{"v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9"}, of)
	}
	return 0
}

// normal is a platform of a manifest as Go names it: builders also write what uname says, and variants without their "v" (containerd
// takes them, too).
func normal(architecture, named string) (arch, of string) {
	switch strings.ToLower(architecture) {
	case "x86_64", "x86-64":
		architecture = "amd64"
	case "aarch64":
		architecture = "arm64"
	}
	if named != "" && named[0] >= '0' && named[0] <= '9' {
		named = "v" + named
	}
	if architecture == "arm64" {
		named = strings.TrimSuffix(named, ".0")
	}
	return architecture, variant(architecture, named)
}

// variant is the architecture's first where none is said.
func variant(architecture, variant string) string {
	switch {
	case variant != "":
		return variant
	case architecture == "arm64":
		return "v8"
	case architecture == "arm":
		return "v7"
	case architecture == "amd64":
		return "v1"
	}
	return ""
}

// hostPlatform is this machine's. Newer variants of amd64 run on newer machines only, and every image has the first.
func hostPlatform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH, Variant: variant(runtime.GOARCH, "")}
}

// parseConfig reads the config of an image.
func parseConfig(data []byte) (*ocispec.Image, error) {
	if err := uniqueKeys(data, false); err != nil {
		return nil, malformed("the config is not sound JSON: %w", err)
	}
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, malformed("parse the config: %w", err)
	}
	if config.RootFS.Type != "layers" {
		return nil, malformed("the config's rootfs is of type %.100q, not of layers", config.RootFS.Type)
	}
	for _, d := range config.RootFS.DiffIDs {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return nil, malformed("diff_id %.100q is not a sha256 one, others are not supported", d)
		}
	}
	return &config, nil
}

const (
	// maxDepth bounds how deep JSON may nest.
	maxDepth = 100
	// maxElements bounds how many elements its lists have, together: an empty one takes three bytes, and what it is read into a hundred
	// times as much. Real documents have some hundreds, manifest.json of an archive of many images thousands.
	maxElements = 100_000
)

// uniqueKeys fails where an object has a key twice, which readers resolve differently, and where reading it would take far more
// memory than its size says. With fold, keys of the outermost object that differ in case only are the same, as they are to encoding/json.
func uniqueKeys(data []byte, fold bool) error {
	c := checker{decoder: json.NewDecoder(bytes.NewReader(data)), fold: fold}
	c.decoder.UseNumber()
	if err := c.value(0); err != nil {
		return err
	}
	if _, err := c.decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the document")
	}
	return nil
}

// checker walks a document.
type checker struct {
	decoder  *json.Decoder
	fold     bool
	elements int
}

func (c *checker) value(depth int) error {
	token, err := c.decoder.Token()
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	switch token {
	case json.Delim('{'):
		err = c.object(depth)
	case json.Delim('['):
		for err == nil && c.decoder.More() {
			if c.elements++; c.elements > maxElements {
				return fmt.Errorf("its lists have more than %d elements", maxElements)
			}
			err = c.value(depth + 1)
		}
	default:
		return nil
	}
	if err == nil {
		_, err = c.decoder.Token() // the end of it
	}
	return err
}

func (c *checker) object(depth int) error {
	keys := map[string]bool{}
	for c.decoder.More() {
		key, err := c.decoder.Token()
		if err != nil {
			return err
		}
		name, _ := key.(string)
		if c.fold && depth == 0 {
			name = strings.ToLower(name)
		}
		if keys[name] {
			return fmt.Errorf("key %.100q is there twice", name)
		}
		keys[name] = true
		if err := c.value(depth + 1); err != nil {
			return err
		}
	}
	return nil
}
