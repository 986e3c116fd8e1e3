package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// disk is a small file system of its own.
type disk struct{ dir string }

// diskKinds are one whose writes fail at once, and one that finds out late and needs blocks for folders too.
var diskKinds = map[string]func(t *testing.T, dir string){
	"tmpfs": func(t *testing.T, dir string) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,nr_inodes=400"); err != nil {
			t.Fatal(err)
		}
	},
	"ext4": func(t *testing.T, dir string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, 16<<20); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-N", "400", file}, {"mount", "-o", "loop", file, dir}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Skipf("a small ext4 needs mkfs.ext4 and loop devices: %v: %v: %s", args, err, out)
			}
		}
	},
}

func newDisk(t *testing.T, kind string) *disk {
	t.Helper()
	needRoot(t)
	d := &disk{dir: t.TempDir()}
	diskKinds[kind](t, d.dir)
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

// leave fills it until so many bytes are left, in the blocks that it has.
func (d *disk) leave(t *testing.T, bytes int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(d.dir, "ballast"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, size := range []int{64 << 10, 4096, 1} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(max(0, info.Size()-bytes)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// leaveInodes makes files until so many are left to be made.
func (d *disk) leaveInodes(t *testing.T, n int) {
	t.Helper()
	dir := filepath.Join(d.dir, "many")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	made := 0
	for ; ; made++ {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprint(made)), nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range min(n, made) {
		if err := os.Remove(filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
}

// empty gives everything back.
func (d *disk) empty(t *testing.T) {
	t.Helper()
	for _, name := range []string{"ballast", "many"} {
		if err := os.RemoveAll(filepath.Join(d.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// A pull or an import that meets a full disk, at whatever step, fails as ResourceExhausted, harms nothing that is there, and
// leaves no more than content to go on with. With no byte free an image can be removed. With space it then succeeds.
//
// Rows: R19 (part)
func TestR19PullsAndImportsOnAFullDisk(t *testing.T) {
	reg := newSite(t, nil)
	shared := layerOf(t, dir("d/"), file("d/shared", noise(200_000)))
	var many []entry
	for i := range 40 {
		many = append(many, file(fmt.Sprintf("many/%d", i), "x"))
	}
	kept, gone := reg.push(t, "kept:v1", imageWith(t, shared)), reg.push(t, "gone:v1", imageWith(t, shared, layerOf(t, file("g", noise(50_000)))))
	next := reg.push(t, "next:v1", imageWith(t, shared, layerOf(t, file("n", noise(300_000))), layerOf(t, many...)))
	source := newStore(t, nil)
	pull(t, source, next)
	var archive bytes.Buffer
	if err := source.Export(t.Context(), &archive, []string{next}); err != nil {
		t.Fatal(err)
	}
	ways := map[string]func(s *Store) error{
		"pull": func(s *Store) error {
			_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: next, NoProgress: time.Minute})
			return err
		},
		"import": func(s *Store) error {
			_, err := s.Import(t.Context(), bytes.NewReader(archive.Bytes()), ImportOptions{Name: next, Source: "a test"})
			return err
		},
	}
	for kind := range diskKinds {
		for name, way := range ways {
			t.Run(kind+", "+name, func(t *testing.T) {
				d := newDisk(t, kind)
				s := reopen(t, filepath.Join(d.dir, "images"), nil)
				pull(t, s, kept)
				failed := 0
				try := func(left string, fill func()) {
					t.Helper()
					pull(t, s, gone)
					fill()
					err := way(s)
					if err != nil && !errdefs.IsResourceExhausted(err) {
						t.Errorf("%s left: %v", left, err)
					}
					if err != nil {
						failed++
						if _, err := s.Image(t.Context(), next); !errdefs.IsNotFound(err) {
							t.Errorf("%s left: the image that failed: %v", left, err)
						}
					}
					d.empty(t)
					d.leave(t, 0)
					for _, ref := range []string{gone, next} {
						if err := s.RemoveImage(t.Context(), engine.ImageID(ref)); err != nil {
							t.Errorf("%s left: remove %s with no byte free: %v", left, ref, err)
						}
					}
					if err := s.Collect(t.Context(), 0); err != nil {
						t.Errorf("%s left: collect with no byte free: %v", left, err)
					}
					d.empty(t)
					if list, err := s.ListImages(t.Context()); err != nil || len(list) != 1 {
						t.Errorf("%s left: the images are %v, %v", left, list, err)
					}
					sound(t, s)
				}
				for _, bytes := range []int64{0, 1, 8, 40, 90, 140, 190, 250, 290, 310, 330, 400, 500, 620, 650, 700, 800} {
					try(fmt.Sprintf("%d KiB", bytes), func() { d.leave(t, bytes<<10) })
				}
				for _, inodes := range []int{0, 1, 2, 4, 7, 12, 40, 50, 55} {
					try(fmt.Sprintf("%d inodes", inodes), func() { d.leaveInodes(t, inodes) })
				}
				if failed < 5 {
					t.Errorf("%d tries failed: the disk was not full", failed)
				}
				_ = s.Close()
				d.leave(t, 0)
				s = reopen(t, s.root, nil)
				if img, err := s.Image(t.Context(), kept); err != nil || read(t, s, img.ID, 0, "d/shared") != noise(200_000) {
					t.Errorf("after a start on a full disk: %v", err)
				}
				d.empty(t)
				if err := way(s); err != nil {
					t.Fatal(err)
				}
				sound(t, s)
			})
		}
	}
}

// A layer cannot be compared on a full disk, which is said and no damage.
func TestVerifyOnAFullDisk(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("f", noise(200_000)))))
	d := newDisk(t, "tmpfs")
	s := reopen(t, filepath.Join(d.dir, "images"), nil)
	pull(t, s, ref)
	d.leave(t, 0)
	if _, err := s.Verify(t.Context(), nil, nil); !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
	d.empty(t)
	sound(t, s)
}
