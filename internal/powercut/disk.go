// Package powercut is a disk for tests whose power can be cut after any write: what ext4 wrote to it, and where it flushed,
// is kept in order, and a later boot can be had of any part of that. It is used by tests only.
//
// The disk is a file of a FUSE file system in this process, below a loop device (dm-log-writes does the same where a kernel
// has the device mapper).
package powercut

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Disk is a disk with an ext4 file system.
type Disk struct {
	// Dir is where it is mounted.
	Dir string

	t      testing.TB
	blank  []byte
	random *rand.Rand

	mu     sync.Mutex
	data   []byte
	writes []write
}

// write is one of ext4, or a flush where it has no bytes.
type write struct {
	offset int64
	bytes  []byte
}

// New is a disk of so many bytes, until the test ends. It skips where one cannot be made.
func New(t testing.TB, size int64) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a disk whose power can be cut needs root")
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("a disk whose power can be cut needs mkfs.ext4")
	}
	d := &Disk{t: t, random: rand.New(rand.NewPCG(1, uint64(size)))}
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	// Nothing is initialised in the background: each write is one of the test's.
	if out, err := exec.Command(mkfs, "-q", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	d.blank, err = os.ReadFile(image)
	must(t, err)
	d.data = slices.Clone(d.blank)

	served := t.TempDir()
	server, err := fs.Mount(served, &folder{disk: d}, &fs.Options{MountOptions: fuse.MountOptions{
		DirectMountStrict: true, DisableXAttrs: true, MaxWrite: 1 << 20, FsName: "powercut", Name: "powercut",
	}})
	if err != nil {
		t.Skipf("a disk whose power can be cut needs FUSE: %v", err)
	}
	// Without auto_da_alloc ext4 does not repair by itself what is renamed before it was synced, and nothing is written back
	// before it must be.
	disk, err := os.OpenFile(filepath.Join(served, diskName), os.O_RDWR, 0)
	must(t, err)
	mounted, err := mountExt4(disk, map[string]string{"commit": "3600", "noauto_da_alloc": "", "nodiscard": ""})
	must(t, errors.Join(disk.Close(), unix.Unmount(served, unix.MNT_DETACH)))
	if err != nil {
		t.Skipf("a disk whose power can be cut: %v", err)
	}
	d.Dir = mounted.Name()
	t.Cleanup(func() {
		must(t, mounted.Close())
		ended := make(chan struct{})
		go func() { server.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second): // in a mount namespace that somebody made in the wrong moment
			t.Log("the disk is still in use")
		}
	})
	return d
}

// Now is how many writes the disk has taken.
func (d *Disk) Now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.writes)
}

// everything has every moment be walked: `make crash`.
const everything = "E2E_CRASH"

// Moments are numbers of writes to cut the power after: so many of those since the first, or all where E2E_CRASH=all.
func (d *Disk) Moments(most int) []int {
	now := d.Now()
	moments := make([]int, now+1)
	for i := range moments {
		moments[i] = i
	}
	if os.Getenv(everything) == "all" || now < most {
		return moments
	}
	d.random.Shuffle(len(moments), func(i, j int) { moments[i], moments[j] = moments[j], moments[i] })
	moments = moments[:most]
	slices.Sort(moments)
	return moments
}

// Cut calls look with the folder as the next boot finds it where the power was cut after so many writes. Of those since the
// last flush, which a disk may do in any order, lossy loses some.
func (d *Disk) Cut(writes int, lossy bool, look func(dir string)) {
	d.t.Helper()
	d.mu.Lock()
	done := d.writes[:writes:writes]
	d.mu.Unlock()
	flushed := 0
	for i := range done {
		if done[i].bytes == nil {
			flushed = i
		}
	}
	data := slices.Clone(d.blank)
	for i := range done {
		if i > flushed && lossy && d.random.IntN(2) == 0 {
			continue
		}
		copy(data[done[i].offset:], done[i].bytes)
	}
	image, err := memory(data)
	must(d.t, err)
	defer func() { must(d.t, image.Close()) }()
	mounted, err := mountExt4(image, nil)
	if err != nil {
		d.t.Fatalf("the disk cannot be mounted after a power cut: %v", err)
	}
	defer func() { must(d.t, mounted.Close()) }()
	look(mounted.Name())
}

// memory is a file with the data, and holes where there is nothing. It costs no real disk a flush.
func memory(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("powercut", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "powercut")
	if err := f.Truncate(int64(len(data))); err != nil {
		return nil, err
	}
	zero := make([]byte, 4096)
	for offset := 0; offset < len(data); offset += len(zero) {
		if block := data[offset : offset+len(zero)]; !bytes.Equal(block, zero) {
			if _, err := f.WriteAt(block, int64(offset)); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// diskName is the one file of the file system.
const diskName = "disk"

type folder struct {
	fs.Inode
	disk *Disk
}

func (f *folder) OnAdd(ctx context.Context) {
	f.AddChild(diskName, f.NewPersistentInode(ctx, &file{disk: f.disk}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
}

// file is the disk as the loop device sees it. Each write of the loop device is one here: the kernel keeps none back.
type file struct {
	fs.Inode
	disk *Disk
}

var (
	_ fs.NodeOnAdder   = (*folder)(nil)
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
)

func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = syscall.S_IFREG|0o600, uint64(len(f.disk.data)), 4096
	return 0
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, dest []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	n := copy(dest, f.disk.data[min(offset, int64(len(f.disk.data))):])
	return fuse.ReadResultData(dest[:n]), 0
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, offset int64) (uint32, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if offset+int64(len(data)) > int64(len(f.disk.data)) {
		return 0, syscall.ENOSPC
	}
	f.disk.writes = append(f.disk.writes, write{offset, bytes.Clone(data)})
	return uint32(copy(f.disk.data[offset:], data)), 0
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.disk.writes = append(f.disk.writes, write{})
	return 0
}
