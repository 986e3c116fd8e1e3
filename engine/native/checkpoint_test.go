package native

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// entries are what a tar has, by name; a folder's name ends with a slash, a link has its target for content.
func entries(t *testing.T, data []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = string(content) + h.Linkname
	}
}

// Rows: S68 (part)
func TestACheckpointsArchive(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("whiteouts need root")
	}
	dir := t.TempDir()
	work, upper, location := filepath.Join(dir, "work"), filepath.Join(dir, "upper"), filepath.Join(dir, "c.tar")
	for _, d := range []string{filepath.Join(work, checkpointImages), filepath.Join(upper, "etc"), filepath.Join(upper, "all")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(dir, "secret")
	for path, content := range map[string]string{
		filepath.Join(work, checkpointImages, "core-1.img"): "image", filepath.Join(work, "dump.log"): "log", secret: "secret", filepath.Join(upper, "etc/new"): "new",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(secret, filepath.Join(upper, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(upper, "etc/gone"), unix.S_IFCHR, 0); err != nil {
		t.Skipf("no whiteouts here: %v", err)
	}
	if err := unix.Mkfifo(filepath.Join(upper, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	opaque := unix.Setxattr(filepath.Join(upper, "all"), "trusted.overlay.opaque", []byte("y"), 0) == nil
	c := &containerRecord{ID: "4567", CreatedAt: time.Now(), Upper: upper, Spec: engine.ContainerSpec{Key: engine.ContainerKey{Name: "c"}, Image: engine.ImageRef{ID: "sha256:ab"}}}
	if err := writeCheckpoint(t.Context(), work, c, &specs.Spec{Version: specs.Version}, location); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(location); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	data, err := os.ReadFile(location)
	if err != nil {
		t.Fatal(err)
	}
	all := entries(t, data)
	want := []string{"checkpoint/", "checkpoint/core-1.img", "config.dump", "rootfs-diff.tar", "spec.dump"}
	if got := slices.Sorted(maps.Keys(all)); !slices.Equal(got, want) {
		t.Errorf("the archive has %v, want %v", got, want)
	}
	var config map[string]any
	if err := json.Unmarshal([]byte(all["config.dump"]), &config); err != nil || config["id"] != "4567" || config["rootfsImageRef"] != "sha256:ab" {
		t.Errorf("%v, %v", config, err)
	}
	diff := entries(t, []byte(all["rootfs-diff.tar"]))
	want = []string{"all/", "etc/", "etc/.wh.gone", "etc/new", "fifo", "link"}
	if opaque {
		want = append(want, "all/.wh..wh..opq")
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(diff)); !slices.Equal(got, want) || diff["etc/new"] != "new" || diff["link"] != secret {
		t.Errorf("the difference has %v, want %v", diff, want)
	}
	if strings.Contains(all["rootfs-diff.tar"], "secret\x00\x00secret") || diff["link"] == "secret" {
		t.Error("a link was followed")
	}
	if left, _ := filepath.Glob(location + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// A link at the location is replaced, not followed.
	if err := os.Remove(location); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, location); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(work, rootDiff)); err != nil {
		t.Fatal(err)
	}
	if err := writeCheckpoint(t.Context(), work, c, &specs.Spec{}, location); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(secret); err != nil || string(data) != "secret" {
		t.Errorf("the link at the location was followed: %q, %v", data, err)
	}
}

// Without CRIU, or on a kernel that is none for it, the reason is said.
func TestWithoutCRIUThereAreNoCheckpoints(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	if err := checkCRIU(t.Context()); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "need the program criu") {
		t.Errorf("%v", err)
	}
	criu := filepath.Join(bin, "criu")
	for script, fine := range map[string]bool{"#!/bin/sh\necho Looks good\n": true, "#!/bin/sh\necho kerndat_vdso_fill_symtable failed >&2\nexit 1\n": false} {
		if err := os.WriteFile(criu, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		err := checkCRIU(t.Context())
		if fine && err != nil || !fine && (!errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "kerndat_vdso")) {
			t.Errorf("%q: %v", script, err)
		}
	}
}

// What the engine says it can is what it does.
func TestACheckpointIsRefusedWithTheReason(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	location := filepath.Join(t.TempDir(), "c.tar")
	err := b.CheckpointContainer(t.Context(), id, location)
	if b.Info().Features.Checkpoint {
		if _, serr := os.Stat(location); err != nil || serr != nil {
			t.Errorf("%v, %v", err, serr)
		}
	} else if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "criu") {
		t.Errorf("%v", err)
	}
	if st := b.status(t, id); st.State != engine.ContainerRunning {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
}
