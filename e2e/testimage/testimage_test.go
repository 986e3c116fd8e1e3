package testimage

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestTreeMakesParentsOnceAndKeepsModes(t *testing.T) {
	var tree Tree
	tree.File("a/b/one", 0o4755|os.ModeSetuid, []byte("x"))
	tree.File("/a/b/two", 0o600, nil)
	tree.HardLink("a/three", "/a/b/one")
	tree.Symlink("a/out", "../../../etc")
	var buffer bytes.Buffer
	if err := tree.Tar(&buffer); err != nil {
		t.Fatal(err)
	}
	want := []tar.Header{
		{Name: "a/", Mode: 0o755}, {Name: "a/b/", Mode: 0o755}, {Name: "a/b/one", Mode: 0o4755}, {Name: "a/b/two", Mode: 0o600},
		{Name: "a/three", Mode: 0o755, Linkname: "a/b/one"}, {Name: "a/out", Mode: 0o777, Linkname: "../../../etc"},
	}
	reader := tar.NewReader(&buffer)
	for _, w := range want {
		got, err := reader.Next()
		if err != nil {
			t.Fatalf("before %s: %v", w.Name, err)
		}
		if got.Name != w.Name || got.Mode != w.Mode || got.Linkname != w.Linkname {
			t.Errorf("got %s %o -> %q, want %s %o -> %q", got.Name, got.Mode, got.Linkname, w.Name, w.Mode, w.Linkname)
		}
	}
}

func TestEqualTreesHaveEqualDigests(t *testing.T) {
	var digests []string
	for range 2 {
		var tree Tree
		tree.File("etc/motd", 0o644, []byte("hello"))
		layer, err := tree.Layer()
		if err != nil {
			t.Fatal(err)
		}
		image, err := Image("amd64", v1.Config{User: "1000"}, layer)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest.String())
	}
	if digests[0] != digests[1] {
		t.Errorf("digests differ: %v", digests)
	}
}

func TestBusyboxOfAMissingProgramFails(t *testing.T) {
	if _, err := Busybox(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("no error")
	}
}
