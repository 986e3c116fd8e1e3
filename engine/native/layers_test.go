package native

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"

	"crishim/engine"
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
