package pause

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"testing"

	"crishim/internal/pause"
)

func TestArchiveIsAnImageOfOneExecutableAndAlwaysTheSame(t *testing.T) {
	archive, err := Archive("example.org/pause:1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := Archive("example.org/pause:1")
	if err != nil || !bytes.Equal(archive, again) {
		t.Fatalf("the archive varies (%v)", err)
	}
	files := untar(t, archive)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || len(manifest[0].RepoTags) != 1 || manifest[0].RepoTags[0] != "example.org/pause:1" || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest %+v", manifest)
	}
	var config struct {
		Architecture string
		Config       struct{ Entrypoint []string }
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(files[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	layer := files[manifest[0].Layers[0]]
	want := fmt.Sprintf("sha256:%x", sha256.Sum256(layer))
	if config.Architecture != runtime.GOARCH || len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != want {
		t.Fatalf("config %+v, want layer %s", config, want)
	}
	if program := untar(t, layer)["pause"]; !bytes.Equal(program, pause.Program()) || len(program) > 20<<10 {
		t.Fatalf("the layer holds %d bytes of program, want the %d embedded", len(program), len(pause.Program()))
	}
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		header, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
