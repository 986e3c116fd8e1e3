package image

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// A folder that is imported may hold a FIFO, as one that a container has written to: nothing waits for its writer.
func TestAFIFOInAFolderThatIsImportedIsPassedOver(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	s := newStore(t, nil)
	want := pull(t, s, ref)
	dir := filepath.Join(t.TempDir(), "layout")
	if err := s.ExportDir(t.Context(), dir, []string{ref}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("fifo", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	images, err := newStore(t, nil).ImportDir(t.Context(), dir, ImportOptions{}) // or this test never ends
	if err != nil || len(images) != 1 || images[0].ID != want.ID {
		t.Fatalf("%v, %v", images, err)
	}
}

// Names are kept in memory until the archive's end: an archive of a hundred thousand of one MiB each is a hundred MiB compressed.
func TestNamesInAnArchiveAreBounded(t *testing.T) {
	long := strings.Repeat("x/", 5000) + "f"
	for name, header := range map[string]tar.Header{
		"a file": {Name: long, Typeflag: tar.TypeReg},
		"a link": {Name: long, Typeflag: tar.TypeSymlink, Linkname: "f"},
		"target": {Name: "f", Typeflag: tar.TypeSymlink, Linkname: long},
	} {
		in := &incoming{store: newStore(t, nil), at: newProgress(), files: map[string]ocispec.Descriptor{}, links: map[string]string{}}
		err := in.readTar(t.Context(), bytes.NewReader(archive(t, entry{header, ""})))
		if !errdefs.IsInvalidArgument(err) || len(in.links) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
