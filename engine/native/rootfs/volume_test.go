package rootfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// smallVolume makes a volume of the image's folder /v on a disk of 4 MiB.
func smallVolume(t *testing.T, dir string) (string, error) {
	t.Helper()
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	s, err := Open(filepath.Join(disk, "state"), filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Remove(context.WithoutCancel(t.Context()), "c")
		_ = unix.Unmount(s.run, unix.MNT_DETACH)
	})
	l := &Layers{Dirs: []string{dir}}
	if _, err := s.Mount(t.Context(), "c", l); err != nil {
		t.Fatal(err)
	}
	return s.MakeVolume(t.Context(), "c", 0, "/v", l)
}

// Hard links stay such in the copy.
func TestHardLinksOfAVolumeAreCountedOnce(t *testing.T) {
	dir := layer(t, map[string]string{"v/f0": strings.Repeat("x", 1<<20)})
	for i := range 8 {
		if err := os.Link(dir+"/v/f0", fmt.Sprintf("%s/v/f%d", dir, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := smallVolume(t, dir); err != nil {
		t.Errorf("1 MiB with 9 names on a disk of 4: %v", err)
	}
}

// Holes do not.
func TestASparseFileOfAVolume(t *testing.T) {
	dir := layer(t, map[string]string{"v/f0": "x"})
	if err := os.Truncate(dir+"/v/f0", 16<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := smallVolume(t, dir); !errdefs.IsResourceExhausted(err) {
		t.Errorf("16 MiB of nothing on a disk of 4: %v", err)
	}
}

// Two that fit one after the other do not fill the disk together.
func TestVolumesThatAreCopiedAtOnce(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	s, err := Open(filepath.Join(disk, "state"), filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(s.run, unix.MNT_DETACH) })
	l := &Layers{Dirs: []string{layer(t, map[string]string{"v/file": strings.Repeat("x", 40<<20)})}}
	var all sync.WaitGroup
	for _, id := range []engine.ContainerID{"a", "b"} {
		if _, err := s.Mount(t.Context(), id, l); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Remove(context.WithoutCancel(t.Context()), id) })
	}
	for _, id := range []engine.ContainerID{"a", "b"} {
		all.Go(func() {
			if _, err := s.MakeVolume(t.Context(), id, 0, "/v", l); err != nil && !errdefs.IsResourceExhausted(err) {
				t.Errorf("the disk was filled: %v", err)
			}
		})
	}
	all.Wait()
}

// What a copy has written already is not counted against the next one a second time.
func TestAVolumeBesideOneThatIsNearlyCopied(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	from := layer(t, map[string]string{"v/file": strings.Repeat("x", 28<<20)}) + "/v"
	var s Store
	volumes := []string{disk + "/0", disk + "/1", disk + "/2"}
	for _, volume := range volumes {
		if err := os.Mkdir(volume, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	first, err := s.takeRoom(t.Context(), from, volumes[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(volumes[0]+"/file", make([]byte, 27<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	second, err := s.takeRoom(t.Context(), from, volumes[1])
	if err != nil {
		t.Fatalf("28 MiB beside 28 of which 27 are there, on a disk of 64: %v", err)
	}
	if _, err := s.takeRoom(t.Context(), from, volumes[2]); !errdefs.IsResourceExhausted(err) {
		t.Errorf("28 MiB more: %v", err)
	}
	first()
	second()
	if len(s.copies) != 0 {
		t.Errorf("%d copies are still counted", len(s.copies))
	}
}
