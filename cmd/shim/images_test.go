package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"crishim/config"
)

func TestLookingForImagesMakesNoStore(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	images := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"images", "--root-dir", root}, args...), &out)
		return out.String(), err
	}
	if out, err := images("ls"); err != nil || strings.Count(out, "\n") != 1 {
		t.Errorf("ls: %q, %v", out, err)
	}
	if out, err := images("ls", "--json"); err != nil || out != "[]\n" {
		t.Errorf("ls --json: %q, %v", out, err)
	}
	if out, err := images("verify"); err != nil || out != "there are no images\n" {
		t.Errorf("verify: %q, %v", out, err)
	}
	for _, args := range [][]string{{"ls", "app"}, {"rm", "app"}, {"export", "app"}, {"verify", "app"}} {
		if _, err := images(args...); !errdefs.IsNotFound(err) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := os.Lstat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was made: %v", root, err)
	}
}

func TestImagesAreImportedListedExportedAndRemoved(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	dir := t.TempDir()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("example.org/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "in.tar")
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		t.Fatal(err)
	}
	images := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if err := run(t.Context(), append([]string{"images", "--root-dir", filepath.Join(dir, "root"), "--run-dir", filepath.Join(dir, "run")}, args...), &out); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out.String()
	}
	if out := images("import", archive); !strings.HasPrefix(out, "sha256:") || !strings.Contains(out, tag.String()) {
		t.Fatal(out)
	}
	if out := images("ls"); !strings.Contains(out, tag.String()) {
		t.Fatal(out)
	}
	if out := images("verify"); !strings.Contains(out, tag.String()+": whole\n1 images with 4 blobs ") || !strings.HasSuffix(out, " and 2 layers: 0 damaged\n") {
		t.Errorf("verify: %q", out)
	}
	layers, err := filepath.Glob(filepath.Join(dir, "root/native/images/layers/*/fs"))
	if err != nil || len(layers) != 2 {
		t.Fatal(layers, err)
	}
	if err := os.WriteFile(filepath.Join(layers[0], "more"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var found bytes.Buffer
	err = run(t.Context(), []string{"images", "verify", tag.String(), "--root-dir", filepath.Join(dir, "root"), "--run-dir", filepath.Join(dir, "run")}, &found)
	if !errors.Is(err, verdict(1)) || !strings.Contains(found.String(), `"more" is none of the image's`) || !strings.HasSuffix(found.String(), ": 1 damaged\n") {
		t.Errorf("verify: %q, %v", found.String(), err)
	}
	if out := images("verify", "--fix"); !strings.HasSuffix(out, ": 1 damaged, 1 of them mended\n") {
		t.Errorf("verify --fix: %q", out)
	}
	images("export", "-o", filepath.Join(dir, "out.tar"), tag.String())
	if first, second := images("export", tag.String()), images("export", tag.String()); first != second || len(first) < 2000 {
		t.Fatal("two exports differ")
	}
	images("rm", tag.String())
	images("import", filepath.Join(dir, "out.tar"))
	for _, args := range [][]string{{}, {"pull"}, {"nonsense"}, {"copy", "--root-dir", filepath.Join(dir, "root"), "--from", "docker", "--to", "docker"}} {
		if err := run(t.Context(), append([]string{"images"}, args...), &bytes.Buffer{}); !errors.Is(err, errUsage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// Root's -o /dev/null must not leave a file in the place of the node's /dev/null.
func TestExportPutsNoFileInThePlaceOfADevice(t *testing.T) {
	dir := t.TempDir()
	export := func(_ context.Context, work *imageWork, _ io.Reader, out io.Writer) error {
		if work.Dir != "" {
			t.Errorf("the folder %s is exported to", work.Dir)
		}
		_, err := io.WriteString(out, "archive")
		return err
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // so that opening it to write waits for nobody
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	if err := exportTo(t.Context(), export, imageWork{Command: "export"}, pipe, io.Discard); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Fatalf("the pipe is %v now, %v", info.Mode(), err)
	}
	got := make([]byte, len("archive"))
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != "archive" {
		t.Errorf("the pipe has %q, %v", got, err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(os.DevNull, link); err != nil {
		t.Fatal(err)
	}
	if err := exportTo(t.Context(), export, imageWork{Command: "export"}, link, io.Discard); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(link); err != nil || to != os.DevNull {
		t.Errorf("the link to a device leads to %q, %v", to, err)
	}
	if err := exportTo(t.Context(), export, imageWork{Command: "export"}, dir, io.Discard); !errors.Is(err, errUsage) {
		t.Errorf("to a folder without a /: %v", err)
	}
}

// While the daemon is down an image is kept for a container whose record the server cannot read, as after a downgrade: it runs on the
// image, and the engine's own record says so.
func TestAnImageIsKeptForAContainerWhoseRecordIsNotRead(t *testing.T) {
	for _, kept := range []string{"root/native/records/c1", "run/native/records/containers/c1"} {
		c := config.Default()
		dir := t.TempDir()
		c.RootDir, c.RunDir = filepath.Join(dir, "root"), filepath.Join(dir, "run")
		const id = "sha256:f9a1dd4aa71db471107f87622892907b6172fa0568d5bc4a7a76cf3dde6d0750"
		for path, text := range map[string]string{
			kept: `{"version":99,"container":{"image":"` + id + `"}}`,
			"root/state/containers/0123456789012345678901234567890123456789.json": "damaged",
		} {
			path = filepath.Join(dir, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if users, err := recordedUsers(c, id); err != nil || len(users) != 1 || users[0] != "container c1" {
			t.Errorf("%s: %q, %v", kept, users, err)
		}
		if users, err := recordedUsers(c, "sha256:other"); err != nil || len(users) != 0 {
			t.Errorf("another image: %q, %v", users, err)
		}
	}
}
