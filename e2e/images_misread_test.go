package e2e

import (
	"bytes"
	"encoding/json"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// misread is an image with a configuration of its own.
type misread struct {
	v1.Image
	config, manifest []byte
}

func (m misread) RawConfigFile() ([]byte, error) { return m.config, nil }
func (m misread) RawManifest() ([]byte, error)   { return m.manifest, nil }
func (m misread) Manifest() (*v1.Manifest, error) {
	return v1.ParseManifest(bytes.NewReader(m.manifest))
}
func (m misread) Size() (int64, error) { return int64(len(m.manifest)), nil }
func (m misread) ConfigName() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(m.config))
	return h, err
}
func (m misread) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(m.manifest))
	return h, err
}

// A health check of a wrong type is taken by registries and by containerd's image store, but not by Docker, which has the image
// then and cannot read it.
func TestAnImageWithAConfigurationOfAWrongTypeHidesNoOther(t *testing.T) {
	n := node(t)
	image := harness.Build(t, v1.Config{Cmd: []string{"sh"}, Labels: map[string]string{"misread": harness.ID()}})
	config, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte(`"config":{`), []byte(`"config":{"Healthcheck":"none",`), 1)
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if manifest.Config.Digest, manifest.Config.Size, err = v1.SHA256(bytes.NewReader(config)); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: misread{image, config, raw}, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}},
	})
	ref, err := name.ParseReference(n.Registry.Ref("misread:1"), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref.String()}}); err != nil {
		t.Logf("as on most engines, its pull fails: %v", err)
	}
	if imageStatus(t, n, n.Registry.Ref(harness.Busybox)) == nil {
		t.Error("another image is not found")
	}
	if _, err := n.Shim.Images.ListImages(ctx(t), &runtimeapi.ListImagesRequest{}); err != nil {
		t.Errorf("none are listed: %v", err)
	}
	removeImage(t, n, ref.String())
	list, err := n.Shim.Images.ListImages(ctx(t), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range list.Images {
		if slices.Contains(left.RepoTags, ref.String()) {
			t.Errorf("left: %v", left)
		}
	}
}
