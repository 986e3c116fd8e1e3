package native

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"crishim/engine"
)

// volumeImage declares volumes of all kinds; canary is a folder of the host that two of them name through links.
func (b *bench) volumeImage(t *testing.T, canary string) *engine.Image {
	t.Helper()
	volumes := map[string]struct{}{}
	for _, path := range []string{"/data", "new/one", "/abs", "/rel", "/up/../../../../data2", "/mounted", "/proc/x", "/etc/conf"} {
		volumes[path] = struct{}{}
	}
	layer := busyboxLayer(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o750, Uid: 1000, Gid: 2000},
		tar.Header{Typeflag: tar.TypeReg, Name: "data/file", Mode: 0o640, Uid: 1000, Gid: 1000},
		tar.Header{Typeflag: tar.TypeLink, Name: "data/hard", Linkname: "data/file"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "data/out", Linkname: canary},
		tar.Header{Typeflag: tar.TypeDir, Name: "data/sub/", Mode: 0o1777},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "abs", Linkname: canary},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "rel", Linkname: "../../../../../../../.." + canary},
		tar.Header{Typeflag: tar.TypeDir, Name: "etc/conf/", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeReg, Name: "etc/conf/a", Mode: 0o644})
	ref := b.pushWith(t, "volumes:1", v1.Config{Env: []string{"PATH=/bin"}, Volumes: volumes}, layer)
	image, err := b.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// A volume of the image is a folder of the container's own, with what the image has there, that is writable, counted, and
// removed with the container. Links in the image lead nowhere on the host.
//
// Rows: S01 (part)
func TestVolumesOfTheImage(t *testing.T) {
	b := serving(t)
	canary := t.TempDir()
	if err := os.WriteFile(filepath.Join(canary, "secret"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := b.volumeImage(t, canary)
	pod, s := b.runPod(t)
	mounted := t.TempDir()
	var ids []engine.ContainerID
	for _, name := range []string{"a", "b"} {
		spec := b.containerSpec(t, pod, s, name, "trap exit TERM; while :; do sleep 1; done")
		spec.Image = engine.ImageRef{Ref: string(image.ID), ID: image.ID}
		spec.Mounts = []engine.Mount{{ContainerPath: "/mounted", HostPath: mounted}}
		spec.Security.ReadonlyRootfs = true
		st, err := b.CreateContainer(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.StartContainer(t.Context(), st.ID, spec); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, st.ID)
	}
	got := b.sh(t, ids[0], `set -e
		stat -c '%n %a %u:%g %h' /data /data/file /data/sub; cat /data/hard; echo; readlink /data/out; cat /etc/conf/a; echo
		for v in /data /new/one /abs /rel /data2 /mounted /etc/conf; do echo w >$v/written; done
		cat /abs/secret /rel/secret 2>/dev/null || echo closed
		touch /x 2>/dev/null || echo read-only
		cat /etc/hostname >/dev/null; ls /proc/x 2>/dev/null || echo none`)
	want := strings.Join([]string{"/data 750 1000:2000 3", "/data/file 640 1000:1000 2", "/data/sub 1777 0:0 2", "content of data/file", canary,
		"content of etc/conf/a", "closed", "read-only", "none", ""}, "\n")
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if other := b.sh(t, ids[1], "ls /data /new/one"); strings.Contains(other, "written") {
		t.Errorf("the other container sees %s", other)
	}
	if entries, err := os.ReadDir(canary); err != nil || len(entries) != 1 {
		t.Errorf("the host's folder has %v, %v", entries, err)
	}
	if _, err := os.Stat(filepath.Join(mounted, "written")); err != nil {
		t.Errorf("a mount takes the place of a volume: %v", err)
	}
	// What is in a volume is in what the container takes on disk.
	disk := b.status(t, ids[0]).UpperDir
	found := 0
	if err := filepath.WalkDir(disk, func(path string, _ os.DirEntry, err error) error {
		if filepath.Base(path) == "written" {
			found++
		}
		return err
	}); err != nil || found != 5 { // the two links name one place in the root
		t.Errorf("%d files below %s, %v", found, disk, err)
	}
	b.removePod(t, pod)
	if _, err := os.Stat(disk); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", disk, err)
	}
}

func TestVolumesOfTheImageInAUserNamespace(t *testing.T) {
	b := serving(t)
	if !b.Info().Features.UserNamespaces {
		t.Skip("this host has no user namespaces for pods")
	}
	image := b.volumeImage(t, t.TempDir())
	maps := []engine.IDMapping{{ContainerID: 0, HostID: 200000, Length: 65536}}
	pod, s := b.runPod(t, func(s *engine.PodSpec) { s.Namespaces.User = &engine.UserNamespace{UIDs: maps, GIDs: maps} })
	spec := b.containerSpec(t, pod, s, "a", "sleep 1000")
	spec.Image = engine.ImageRef{Ref: string(image.ID), ID: image.ID}
	st, err := b.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.StartContainer(t.Context(), st.ID, spec); err != nil {
		t.Fatal(err)
	}
	want := "/data 1000:2000\n/data/file 1000:1000\n/new/one 0:0\n"
	if got := b.sh(t, st.ID, "stat -c '%n %u:%g' /data /data/file /new/one; touch /new/one/x /data/x"); got != want {
		t.Errorf("got %s", got)
	}
	b.removePod(t, pod)
}

func TestAVolumeOfTheImageThatIsNoFolder(t *testing.T) {
	b := serving(t)
	ref := b.pushWith(t, "badvolume:1", v1.Config{Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{"/file": {}}},
		busyboxLayer(t, tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o644}))
	image, err := b.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	pod, s := b.runPod(t)
	spec := b.containerSpec(t, pod, s, "a", "true")
	spec.Image = engine.ImageRef{Ref: ref, ID: image.ID}
	if _, err := b.CreateContainer(t.Context(), spec); err == nil {
		t.Error("no error")
	}
	if left := len(b.allContainers()); left != 0 {
		t.Errorf("%d containers are left", left)
	}
	b.removePod(t, pod)
}

// An image's configuration has room for hundreds of thousands of volumes. They are refused before anything is made of them.
//
// Rows: S52 (part)
func TestAnImageOfVeryManyVolumesIsRefused(t *testing.T) {
	b := serving(t)
	volumes := map[string]struct{}{}
	for i := range 2000 {
		volumes[fmt.Sprintf("/%x", i)] = struct{}{}
	}
	ref := b.pushWith(t, "manyvolumes:1", v1.Config{Env: []string{"PATH=/bin"}, Volumes: volumes}, busyboxLayer(t))
	image, err := b.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	pod, s := b.runPod(t)
	spec := b.containerSpec(t, pod, s, "a", "true")
	spec.Image = engine.ImageRef{Ref: ref, ID: image.ID}
	if _, err := b.CreateContainer(t.Context(), spec); !errdefs.IsInvalidArgument(err) {
		t.Errorf("the error is %v", err)
	}
	if left := len(b.allContainers()); left != 0 {
		t.Errorf("%d containers are left", left)
	}
	b.removePod(t, pod)
}
