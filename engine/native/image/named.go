package image

import (
	"encoding/json"
	"errors"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine/native/image/unpack"
	"crishim/registry"
)

// wanted is an image that the archive names.
type wanted struct {
	root  ocispec.Descriptor
	names names
}

// images are what the archive says that it holds.
func (in *incoming) images() ([]wanted, error) {
	if desc, err := in.find(indexFile); err == nil {
		return in.layoutImages(desc)
	}
	desc, err := in.find(dockerManifestFile)
	if err != nil {
		return nil, malformed("it is neither an archive of docker save nor an OCI layout: it has no %s and no %s", dockerManifestFile, indexFile)
	}
	return in.dockerImages(desc)
}

// layoutImages reads an index.json. Several entries for one image become one image with several names.
func (in *incoming) layoutImages(desc ocispec.Descriptor) ([]wanted, error) {
	data, err := in.read(desc.Digest, in.store.options.Limits.Manifest)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(data, ocispec.MediaTypeImageIndex)
	if err != nil || doc.index == nil {
		return nil, malformed("%s is no index: %w", indexFile, err)
	}
	foreign := func(m *v1.Descriptor) bool { return fitness(m.Platform, &in.store.options.Platform) == 0 }
	// One name may be that of an image for each of several platforms.
	runs := map[string]bool{}
	for i := range doc.index.Manifests {
		if m := &doc.index.Manifests[i]; isManifest(string(m.MediaType)) && !foreign(m) {
			runs[nameIn(m.Annotations)] = true
		}
	}
	var out []wanted
	for i := range doc.index.Manifests {
		m := &doc.index.Manifests[i]
		if !isManifest(string(m.MediaType)) || (m.Platform != nil && m.Platform.OS == "unknown") {
			continue // an attestation, or something else beside the images
		}
		if foreign(m) && runs[nameIn(m.Annotations)] {
			continue
		}
		root, err := descriptor(m, in.store.options.Limits.Manifest)
		if err != nil {
			return nil, err
		}
		as := layoutNames(m.Annotations, root.Digest)
		if n := len(out); n > 0 && out[n-1].root.Digest == root.Digest {
			out[n-1].names.tags = append(out[n-1].names.tags, as.tags...)
			out[n-1].names.digests = append(out[n-1].names.digests, as.digests...)
			continue
		}
		out = append(out, wanted{root, as})
	}
	return out, nil
}

// nameIn is the name of an entry of index.json, "" for none.
func nameIn(annotations map[string]string) string {
	name := annotations[nameAnnotation]
	if short := annotations[ocispec.AnnotationRefName]; name == "" && strings.ContainsAny(short, "/:") {
		name = short // by other tools this is the whole name
	}
	return name
}

// layoutNames are those of an entry of index.json.
func layoutNames(annotations map[string]string, root digest.Digest) names {
	name := nameIn(annotations)
	if _, d, ok := strings.Cut(name, "@"); ok && d == string(root) && registry.FullName(name) != "" {
		return names{digests: []string{registry.FullName(name)}}
	}
	tag := fullTag(name)
	if name == "" || tag == "" {
		return names{}
	}
	return names{tags: []string{tag}, digests: []string{tag[:strings.LastIndexByte(tag, ':')] + "@" + string(root)}}
}

// dockerImages reads a manifest.json, and makes for each image the manifest that it lacks.
func (in *incoming) dockerImages(desc ocispec.Descriptor) ([]wanted, error) {
	data, err := in.read(desc.Digest, in.store.options.Limits.Manifest)
	if err != nil {
		return nil, err
	}
	var list []dockerManifest
	if err := errors.Join(uniqueKeys(data, false), json.Unmarshal(data, &list)); err != nil {
		return nil, malformed("parse %s: %w", dockerManifestFile, err)
	}
	var out []wanted
	for i := range list {
		root, err := in.dockerImage(&list[i])
		if err != nil {
			return nil, err
		}
		as := names{}
		for _, name := range list[i].RepoTags {
			tag := fullTag(name)
			if tag == "" {
				return nil, malformed("%.300q in %s is no name with a tag", name, dockerManifestFile)
			}
			as.tags = append(as.tags, tag)
		}
		out = append(out, wanted{root, as})
	}
	return out, nil
}

// dockerImage makes a manifest for an image of docker save. It is the same for the same archive.
func (in *incoming) dockerImage(image *dockerManifest) (ocispec.Descriptor, error) {
	made := struct {
		SchemaVersion int                  `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		Config        ocispec.Descriptor   `json:"config"`
		Layers        []ocispec.Descriptor `json:"layers"`
	}{2, string(types.DockerManifestSchema2), ocispec.Descriptor{}, []ocispec.Descriptor{}}
	var err error
	if made.Config, err = in.find(image.Config); err != nil {
		return ocispec.Descriptor{}, err
	}
	made.Config.MediaType = string(types.DockerConfigJSON)
	for _, name := range image.Layers {
		desc, err := in.find(name)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		if desc.MediaType, err = in.layerType(desc.Digest); err != nil {
			return ocispec.Descriptor{}, err
		}
		made.Layers = append(made.Layers, desc)
	}
	data, err := json.Marshal(made)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	root := ocispec.Descriptor{MediaType: made.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	in.leases = append(in.leases, in.store.lease(blobLease(root.Digest)))
	return root, in.store.writeBlob(root.Digest, data)
}

// layerType is the media type by what a layer is compressed with.
func (in *incoming) layerType(d digest.Digest) (string, error) {
	f, err := in.file(d)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	var magic [4]byte
	n, err := io.ReadFull(f, magic[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	switch unpack.Compression(magic[:n]) {
	case unpack.Gzip:
		return string(types.DockerLayer), nil
	case unpack.Zstd:
		return string(types.OCILayerZStd), nil
	}
	return string(types.DockerUncompressedLayer), nil
}
