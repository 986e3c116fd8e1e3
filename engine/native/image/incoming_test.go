package image

import (
	"os"
	"path/filepath"
	"testing"

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
