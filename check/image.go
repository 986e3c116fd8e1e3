package check

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"time"

	"archive/tar"
	"bytes"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// programPath is where the program lies in the image.
const programPath = "/crishim"

// loopbackRegistry serves the test image to engines on this node.
type loopbackRegistry struct {
	Reference string
	server    *http.Server
}

func serveImage(program string) (*loopbackRegistry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &loopbackRegistry{
		Reference: fmt.Sprintf("%s/crishim/check:latest", l.Addr()),
		server:    &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: 10 * time.Second},
	}
	go func() { _ = r.server.Serve(l) }()
	if err := r.push(program); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *loopbackRegistry) push(program string) error {
	image, err := programImage(program)
	if err != nil {
		return err
	}
	ref, err := name.ParseReference(r.Reference, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, image)
}

// Close ends the registry.
func (r *loopbackRegistry) Close() { _ = r.server.Close() }

// programImage is an image of one layer with the program in it.
func programImage(program string) (v1.Image, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"tmp/", "etc/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: programPath[1:], Mode: 0o755, Size: int64(len(data))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Entrypoint = []string{programPath}
	config.Config.Env = []string{"PATH=/"}
	return mutate.ConfigFile(image, config)
}
