package space

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A fiftieth of the disk stays free; what is written in large pieces and what is written in small ones ends at the same place.
func TestADiskIsNeverFilled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a disk of its own needs root")
	}
	const size = 50 << 20
	for name, piece := range map[string]int{"large": 3 << 20, "small": 4 << 10} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=50m"); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
			f, err := os.Create(filepath.Join(dir, "f"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			room := On(f, 0)
			if left, whole, err := room.Left(); err != nil || left != size-size/share || whole != size {
				t.Fatalf("%d of %d are left, %v", left, whole, err)
			}
			written := 0
			for err = room.Take(int64(piece)); err == nil; err = room.Take(int64(piece)) {
				if _, err := f.Write(make([]byte, piece)); err != nil {
					t.Fatalf("after %d bytes: %v", written, err)
				}
				written += piece
			}
			if !errdefs.IsResourceExhausted(err) || written > size-size/share || written < size-size/share-piece {
				t.Errorf("%d bytes were written: %v", written, err)
			}
		})
	}
}

// Empty files take no bytes.
func TestInodesAreNotUsedUp(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a disk of its own needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g,nr_inodes=20000"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	at, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = at.Close() }()
	room, made := On(at, 0), 0
	for err = room.Take(4096); err == nil && made < 20000; err = room.Take(4096) {
		if err := unix.Mknod(filepath.Join(dir, strconv.Itoa(made)), unix.S_IFREG|0o600, 0); err != nil {
			t.Fatalf("after %d files: %v", made, err)
		}
		made++
	}
	if !errdefs.IsResourceExhausted(err) || made < 19000 {
		t.Errorf("%d files were made: %v", made, err)
	}
}

func TestText(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0 bytes", 10239: "10239 bytes", 10240: "10 KiB", 8 << 20: "8192 KiB", 21 << 30: "21 GiB", 1 << 60: "1048576 TiB"} {
		if got := Text(bytes); got != want {
			t.Errorf("%d is %s, want %s", bytes, got, want)
		}
	}
}
