package treesize

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crishim/internal/rmtree"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func of(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	size, err := Of(ctx, dir, Options{Gently: true})
	return size.Bytes, size.Inodes, err
}

// Folders that are left out are so with all that is in them, and only they, whatever else has their name.
func TestLeavesOutWhatIsSkipped(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"skipped/a/b", "kept/skipped/a"} {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	size, err := Of(t.Context(), dir, Options{Skip: []string{filepath.Join(dir, "skipped"), filepath.Join(dir, "absent")}})
	if err != nil || size.Inodes != 4 {
		t.Errorf("%+v, %v", size, err)
	}
}

func TestCountsWhatIsThereOnceAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "big")
	must(t, os.WriteFile(outside, make([]byte, 1<<20), 0o644))
	must(t, os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a/file"), make([]byte, 100_000), 0o644))
	empty, inodes, err := of(t.Context(), dir)
	if err != nil || inodes != 5 || empty < 100_000 || empty > 200_000 {
		t.Fatalf("%d bytes, %d inodes, %v", empty, inodes, err)
	}
	// A hard link is the same inode; links out of the tree are not followed.
	must(t, os.Link(filepath.Join(dir, "a/file"), filepath.Join(dir, "a/b/again")))
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(dir, "a/b/out")))
	must(t, os.Symlink("../../..", filepath.Join(dir, "a/b/up")))
	bytes, inodes, err := of(t.Context(), dir)
	if err != nil || inodes != 7 || bytes > empty+64_000 {
		t.Errorf("%d bytes (before %d), %d inodes, %v", bytes, empty, inodes, err)
	}
	if size, err := Of(t.Context(), dir, Options{}); err != nil || size.Content != 100_000 {
		t.Errorf("%d bytes of content, %v", size.Content, err)
	}
}

func TestAVeryDeepTreeEnds(t *testing.T) {
	dir := t.TempDir()
	here := dir
	for range 200 { // names of 15 bytes: 3.2 KB of path
		here = filepath.Join(here, strings.Repeat("d", 15))
	}
	must(t, os.MkdirAll(here, 0o755))
	if _, inodes, err := of(t.Context(), dir); err != nil || inodes != 201 {
		t.Errorf("%d inodes, %v", inodes, err)
	}
}

// A path ends at 4 KiB; what a pod writes below that counts as well.
//
// Rows: S13 (part)
func TestSeesWhatIsBelowEveryPath(t *testing.T) {
	const depth = 20000
	dir := t.TempDir()
	t.Cleanup(func() { must(t, rmtree.Remove(context.Background(), dir)) }) // TempDir's own would need a descriptor for each
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range depth {
		if i%5000 == 0 { // beside the way down
			must(t, unix.Mkdirat(at, "a", 0o755))
			must(t, unix.Mkdirat(at, "z", 0o755))
		}
		must(t, unix.Mkdirat(at, "d", 0o755))
		next, err := unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		_ = unix.Close(at)
		must(t, err)
		at = next
	}
	fd, err := unix.Openat(at, "hidden", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	must(t, err)
	must(t, unix.Fallocate(fd, 0, 0, 8<<20))
	must(t, errors.Join(unix.Close(fd), unix.Close(at)))
	var before, after unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	after = before
	after.Cur = 64 + uint64(descriptors(t))
	must(t, syscall.Setrlimit(unix.RLIMIT_NOFILE, (*syscall.Rlimit)(&after)))
	bytes, inodes, err := of(t.Context(), dir)
	must(t, syscall.Setrlimit(unix.RLIMIT_NOFILE, (*syscall.Rlimit)(&before)))
	if err != nil || inodes != 1+depth+8+1 || bytes < 8<<20 {
		t.Errorf("%d inodes, %d bytes, %v", inodes, bytes, err)
	}
}

// Folders beside the way down were each found again from the root: a pod's tree of 32,000 took minutes, in which nothing else of the
// node was measured, and one of a million would have taken days.
//
// Rows: S13 (part)
func TestTheTimeGrowsWithTheFoldersAndNotWithTheirDepth(t *testing.T) {
	const depth = 1000
	dir := t.TempDir()
	t.Cleanup(func() { must(t, rmtree.Remove(context.Background(), dir)) })
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range depth {
		for _, name := range []string{"a", "d", "z"} {
			must(t, unix.Mkdirat(at, name, 0o755))
		}
		next, err := unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		_ = unix.Close(at)
		must(t, err)
		at = next
	}
	must(t, unix.Close(at))
	before := descriptors(t)
	var w walker
	size, err := w.walk(t.Context(), dir)
	if err != nil || size.Inodes != 1+3*depth {
		t.Fatalf("%+v, %v", size, err)
	}
	if w.steps > 3*int(size.Inodes) {
		t.Errorf("the kernel followed %d names to %d folders", w.steps, size.Inodes)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// The way up from a folder that was moved leads elsewhere, out of the tree even: what was beside it is found from the root.
func TestAFolderThatIsMovedLeadsNobodyOut(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "a", "z"), 0o755))
	must(t, os.MkdirAll(filepath.Join(outside, "z"), 0o755))
	inode := func(fd int) uint64 {
		var st unix.Stat_t
		must(t, unix.Fstat(fd, &st))
		return st.Ino
	}
	open := func(path string) int {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		return fd
	}
	root := open(dir)
	defer func() { _ = unix.Close(root) }()
	var st unix.Stat_t
	must(t, unix.Fstat(root, &st))
	w := walker{root: root, device: st.Dev}
	defer w.close()
	under := func(path string) uint64 {
		fd := open(path)
		defer func() { _ = unix.Close(fd) }()
		return inode(fd)
	}
	top := &folder{name: ".", inode: st.Ino}
	a := &folder{parent: top, name: "a", inode: under(filepath.Join(dir, "a"))}
	w.last, w.lastFD = &folder{parent: a, name: "b", inode: under(filepath.Join(dir, "a", "b"))}, open(filepath.Join(dir, "a", "b"))
	want := under(filepath.Join(dir, "a", "z"))
	must(t, os.Rename(filepath.Join(dir, "a", "b"), filepath.Join(outside, "b")))
	fd, err := w.open(&folder{parent: a, name: "z", inode: want})
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	if inode(fd) != want {
		t.Error("another folder was opened")
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestEndsWithItsContextAndMissesAbsentFolders(t *testing.T) {
	if _, _, err := of(t.Context(), filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	dir := t.TempDir()
	for i := range batch + 1 {
		must(t, os.WriteFile(filepath.Join(dir, strings.Repeat("x", 1+i%100)+string(rune('a'+i/100))), nil, 0o644))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := of(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
