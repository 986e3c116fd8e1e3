package image

import (
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Tools that convert an index write Docker's types for manifests that say OCI's of themselves, and the other way round. containerd and
// CRI-O take them: what counts is that an index is not taken for an image (CVE-2021-41190).
func TestAnIndexMayLinkAsOfTheOtherForm(t *testing.T) {
	oci := mutate.MediaType(imageWith(t, layerOf(t, file("a", "1"))), types.OCIManifestSchema1)
	docker := imageWith(t, layerOf(t, file("a", "2")))
	linked := func(what mutate.Appendable, as types.MediaType) v1.ImageIndex {
		here := hostPlatform()
		return mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: what, Descriptor: v1.Descriptor{
			MediaType: as, Platform: &v1.Platform{OS: here.OS, Architecture: here.Architecture},
		}})
	}
	reg := newSite(t, nil)
	s := newStore(t, nil)
	for name, index := range map[string]v1.ImageIndex{
		"oci-as-docker": linked(oci, types.DockerManifestSchema2),
		"docker-as-oci": linked(docker, types.OCIManifestSchema1),
		"nested":        linked(linked(docker, types.OCIManifestSchema1), types.DockerManifestList),
	} {
		if img := pull(t, s, reg.push(t, name+":v1", index)); len(img.Layers) != 1 {
			t.Errorf("%s: %v", name, img)
		}
	}
	for as, what := range map[types.MediaType]interface{ RawManifest() ([]byte, error) }{
		types.OCIImageIndex: oci, types.DockerManifestList: docker,
		types.OCIManifestSchema1: linked(oci, types.OCIManifestSchema1), types.DockerManifestSchema2: linked(docker, types.DockerManifestSchema2),
	} {
		data, err := what.RawManifest()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseLinked(data, string(as)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("linked as %s: %v", as, err)
		}
	}
}
