package native

import (
	"archive/tar"
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"crishim/engine"
	"crishim/engine/native/image"
)

// tarLayer is a layer of entries; files have their names as content.
func tarLayer(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return layer.Bytes()
}

// runLayers runs a container of the image with these layers over the bench's, which has the same image as a volume at /v, too.
func (b *bench) runLayers(t *testing.T, pod engine.PodID, s *engine.PodSpec, name string, layers ...[]byte) engine.ContainerID {
	t.Helper()
	ref := b.push(t, name+":1", append([][]byte{busyboxLayer(t)}, layers...)...)
	image, err := b.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	spec := b.containerSpec(t, pod, s, name, "sleep 1000")
	spec.Image = engine.ImageRef{Ref: ref, ID: image.ID}
	spec.Mounts = []engine.Mount{{ContainerPath: "/v", Readonly: true, Image: &spec.Image}}
	st, err := b.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.StartContainer(t.Context(), st.ID, spec); err != nil {
		t.Fatal(err)
	}
	return st.ID
}

// An image may have a layer several times: the upper one counts, over what lies between.
func TestAnImageThatHasALayerSeveralTimes(t *testing.T) {
	b := serving(t)
	pod, s := b.runPod(t)
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	a := tarLayer(t, file("both"), file("a"), file("etc/.wh.group"), file("hidden"))
	between := tarLayer(t, file("both"), file("b"), file("etc/group"), file(".wh.hidden"))
	empty := tarLayer(t)
	for name, layers := range map[string][][]byte{"again": {a, between, a}, "empty": {empty, a, empty, empty, between, a, empty}} {
		id := b.runLayers(t, pod, s, name, layers...)
		const want = "both a b hidden ; none\n"
		for _, root := range []string{"/", "/v/"} {
			if got := b.sh(t, id, "cd "+root+"; for f in both a b hidden; do echo -n \"$(cat $f) \"; done; echo -n '; '; ls etc/group 2>/dev/null || echo none"); got != want {
				t.Errorf("%s: %s has %q, want %q", name, root, got, want)
			}
		}
	}
	b.removePod(t, pod)
}

// Folders that a layer uses without an entry of their own are as a lower layer has them, in a container's root and in an image volume,
// also in a pod of a user namespace. They are nothing that the container has written.
func TestFoldersThatALayerImplies(t *testing.T) {
	b := serving(t)
	folder := func(name string, mode int64, owner int) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: owner, Gid: owner, ModTime: time.Unix(1000000, 0)}
	}
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	base := tarLayer(t, folder("tmp/", 0o1777, 0), folder("home/", 0o711, 0), folder("home/nonroot/", 0o700, 65532), folder("etc/", 0o751, 7), folder("gone/", 0o700, 7))
	app := tarLayer(t, file("tmp/x"), file("home/nonroot/app"), file("etc/x"), file(".wh.gone"), file("gone/x"), file("new/x"))
	maps := []engine.IDMapping{{ContainerID: 0, HostID: 200000, Length: 65536}}
	for name, change := range map[string]func(*engine.PodSpec){
		"host": func(*engine.PodSpec) {},
		"own":  func(s *engine.PodSpec) { s.Namespaces.User = &engine.UserNamespace{UIDs: maps, GIDs: maps} },
	} {
		if name == "own" && !b.Info().Features.UserNamespaces {
			t.Log("this host has no user namespaces for pods")
			continue
		}
		pod, s := b.runPod(t, change)
		id := b.runLayers(t, pod, s, name, base, app)
		const want = "tmp 1777 0:0 1000000\nhome 711 0:0 1000000\nhome/nonroot 700 65532:65532 1000000\n"
		look := "stat -c '%n %a %u:%g %Y' tmp home home/nonroot; cat tmp/x home/nonroot/app >/dev/null; stat -c '%n %a %u:%g' etc gone new"
		for _, root := range []string{"/", "/v"} {
			if got := b.sh(t, id, "set -e; cd "+root+"; "+look); got != want+"etc 751 7:7\ngone 755 0:0\nnew 755 0:0\n" {
				t.Errorf("%s: in %s there is %s", name, root, got)
			}
		}
		for _, path := range []string{"tmp", "home"} {
			if _, err := os.Lstat(filepath.Join(b.status(t, id).UpperDir, path)); !os.IsNotExist(err) {
				t.Errorf("%s: %s counts as written: %v", name, path, err)
			}
		}
		b.sh(t, id, "echo w > /tmp/written; echo w > /home/nonroot/written")
		if got := b.sh(t, id, "stat -c '%a %u:%g' /tmp /home/nonroot"); got != "1777 0:0\n700 65532:65532\n" {
			t.Errorf("%s: once something is written there is %s", name, got)
		}
		b.removePod(t, pod)
	}
}

// What may be pulled can be run, and its mount is a line that every program on the node can read.
func TestAnImageOfAsManyLayersAsThereMayBe(t *testing.T) {
	b := serving(t)
	pod, s := b.runPod(t)
	var layers [][]byte
	for i := range image.DefaultLimits.Layers - 1 { // busybox is one
		layers = append(layers, tarLayer(t, tar.Header{Typeflag: tar.TypeReg, Name: strconv.Itoa(i), Mode: 0o644}))
	}
	id := b.runLayers(t, pod, s, "many", layers...)
	if out := b.sh(t, id, "cat /0 /v/0 /"+strconv.Itoa(len(layers)-1)); out != "00"+strconv.Itoa(len(layers)-1) {
		t.Errorf("%q", out)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if len(line) > bufio.MaxScanTokenSize {
			t.Errorf("a line of %d bytes is in the mount table", len(line))
		}
	}
	b.removePod(t, pod)
}
