// Package pause carries the image of a pod's sandbox process (internal/pause) inside the daemon, so that a node without a
// registry can run pods. A caller loads Archive into a Docker Engine under the name that it wants.
package pause

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"crishim/internal/pause"
)

// DefaultRef names the built-in image. It is never pulled: no registry has this name (RFC 2606).
const DefaultRef = "crishim.invalid/pause:1"

// The image is the same bytes, and so the same id, wherever it is made.
var created = time.Date(2024, time.January, 1, 0, 0, 0, 0, time.UTC)

// user is the one of the upstream pause image; a pod's security context overrides it.
const user = "65535:65535"

// Archive is the image for this machine's architecture in the form of docker save, holding it under repoTag, a familiar
// or full name with a tag.
func Archive(repoTag string) ([]byte, error) {
	layer, err := tarball(file{name: "pause", mode: 0o755, data: pause.Program()})
	if err != nil {
		return nil, fmt.Errorf("make the layer of the pause image: %w", err)
	}
	config, err := json.Marshal(imageConfig(layer))
	if err != nil {
		return nil, fmt.Errorf("make the config of the pause image: %w", err)
	}
	configName := hexDigest(config) + ".json"
	layerName := hexDigest(layer) + "/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{
		"Config": configName, "RepoTags": []string{repoTag}, "Layers": []string{layerName},
	}})
	if err != nil {
		return nil, fmt.Errorf("make the manifest of the pause image: %w", err)
	}
	archive, err := tarball(
		file{name: configName, mode: 0o644, data: config},
		file{name: layerName, mode: 0o644, data: layer},
		file{name: "manifest.json", mode: 0o644, data: manifest},
	)
	if err != nil {
		return nil, fmt.Errorf("make the archive of the pause image: %w", err)
	}
	return archive, nil
}

// imageConfig is the OCI image config; encoding/json sorts the keys of maps, so its bytes do not vary.
func imageConfig(layer []byte) map[string]any {
	return map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      created,
		"config": map[string]any{
			"Entrypoint": []string{"/pause"},
			"Env":        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"User":       user,
			"WorkingDir": "/",
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hexDigest(layer)}},
		"history": []map[string]any{{"created": created, "created_by": "crishim pause"}},
	}
}

type file struct {
	name string
	mode int64
	data []byte
}

func tarball(files ...file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: created, Format: tar.FormatUSTAR,
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func hexDigest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
