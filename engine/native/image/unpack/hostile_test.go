package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"crishim/internal/rowsize"
)

// inChroot runs work with root as its root. The thread that it ran on ends with it.
func inChroot(root string, work func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		done <- errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chroot(root), unix.Chdir("/"))
		done <- work()
	}()
	if err := <-done; err != nil {
		<-done
		return fmt.Errorf("chroot: %w", err)
	}
	return <-done
}

// reference applies an archive as simply as can be, in a chroot, where nothing can get out.
func reference(root string, entries []entry) error {
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	return inChroot(root, func() error {
		for _, e := range entries {
			if err := referenceEntry(&e); err != nil {
				return err
			}
		}
		return nil
	})
}

func referenceEntry(e *entry) error {
	if rel := path.Clean(strings.TrimLeft(e.Name, "/")); rel == ".." || strings.HasPrefix(rel, "../") {
		return errors.New("out of the root")
	}
	name := path.Clean("/" + e.Name)
	if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	var there os.FileInfo
	if e.Typeflag == tar.TypeLink {
		if rel := path.Clean(strings.TrimLeft(e.Linkname, "/")); rel == ".." || strings.HasPrefix(rel, "../") {
			return errors.New("out of the root")
		}
		var err error
		if there, err = os.Lstat(path.Clean("/" + e.Linkname)); err != nil || there.IsDir() {
			return errors.New("no such target")
		}
	}
	if have, err := os.Lstat(name); err == nil && (!have.IsDir() || e.Typeflag != tar.TypeDir) {
		if there != nil && os.SameFile(have, there) {
			return nil
		}
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	switch e.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(name, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	case tar.TypeReg:
		if err := os.WriteFile(name, []byte(e.content), 0o644); err != nil {
			return err
		}
		return os.Chtimes(name, e.ModTime, e.ModTime)
	case tar.TypeSymlink:
		return os.Symlink(e.Linkname, name)
	case tar.TypeLink:
		return os.Link(path.Clean("/"+e.Linkname), name)
	}
	return nil
}

// stride is which of the orders of TestS34 are run, every one of so many; all of them take minutes. It has no divisor in common
// with the number of entries, so that each of them comes at each place.
const stride = 15

// Orders of every three of these, each as one archive: what a chroot makes of it is what is made of it here, and
// nothing outside changes.
//
// Rows: S34
func TestS34HostileArchivesAreAsInAChroot(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	outside := filepath.Join(base, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "canary"), []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := listing(t, outside)
	canary := filepath.Join(outside, "canary")
	ops := []entry{
		dir("d/"), file("d/f", "in d"), file("l", "l"), file("l/f", "through l"), dir("l/"), dir("l/sub/"),
		symlink("l", outside), symlink("l", "../../../../../../../.."+outside), symlink("l", "d"), symlink("l", "/d"), symlink("l", canary),
		symlink("d", outside), symlink("d/f", canary), link("h", "d/f"), link("h", canary), link("l", "h"), link("h", "l"), file("h", "through h"),
		file("../x", "out"), file("/x", "absolute"), file("l/../x", "by dots"), symlink("l", "l"), link("h", "../../../../../../.."+canary),
		file("l"+outside+"/canary", "deep"), symlink("d/f", "../l"), file("d/f/g", "through both"),
	}
	accepted, refused, n := 0, 0, 0
	at := make([][3]bool, len(ops))
	step := rowsize.Of(stride, 1)
	for i := range ops {
		for j := range ops {
			for k := range ops {
				if n++; i == j || j == k || i == k || n%step != 0 {
					continue
				}
				at[i][0], at[j][1], at[k][2] = true, true, true
				entries := []entry{ops[i], ops[j], ops[k]}
				ours, theirs := filepath.Join(base, "ours"), filepath.Join(base, "theirs")
				_, err := unpackTo(t, ours, archive(t, entries...), DefaultLimits)
				want := reference(theirs, entries)
				if err != nil && !errdefs.IsInvalidArgument(err) {
					t.Fatalf("%v: %v", names(entries), err)
				}
				if (err == nil) != (want == nil) {
					t.Errorf("%v: %v, in a chroot %v", names(entries), err, want)
				}
				if err == nil && want == nil {
					accepted++
					if got, want := listing(t, ours), listing(t, theirs); !slices.Equal(got, want) {
						t.Errorf("%v:\n%s\nin a chroot\n%s", names(entries), strings.Join(got, "\n"), strings.Join(want, "\n"))
					}
				} else {
					refused++
				}
				if err := errors.Join(os.RemoveAll(ours), os.RemoveAll(theirs)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if after := listing(t, outside); !slices.Equal(before, after) {
			t.Fatalf("outside changed after %v:\n%s", names(ops[i:i+1]), strings.Join(after, "\n"))
		}
	}
	for i, places := range at {
		if places != [3]bool{true, true, true} {
			t.Errorf("%v comes at %v only", names(ops[i:i+1]), places)
		}
	}
	if accepted < 300 || refused < 100 {
		t.Errorf("%d archives were accepted and %d refused: the corpus is too one-sided", accepted, refused)
	}
	t.Logf("%d archives accepted, %d refused", accepted, refused)
}

func names(entries []entry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, fmt.Sprintf("%c %s > %s", e.Typeflag, e.Name, e.Linkname))
	}
	return out
}

// An entry never changes what was there before the layer: everything is made anew.
//
// Rows: S36
func TestS36ModesAreOfWhatWasMadeOnly(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	canary := filepath.Join(base, "canary")
	if err := os.WriteFile(canary, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := file("l", "x")
	open.Mode = 0o6777
	root := filepath.Join(base, "l")
	if _, err := unpackTo(t, root, archive(t, symlink("l", canary), open, symlink("m", canary), link("n", "m")), DefaultLimits); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(canary); err != nil || info.Mode().Perm() != 0o600 || info.Size() != 0 {
		t.Fatalf("%v %v", info, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, "l"), &st); err != nil || st.Mode != unix.S_IFREG|0o6777 {
		t.Fatalf("%o %v", st.Mode, err)
	}
}

// zeros reads as many.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// bomb compresses one file of zeros.
func bomb(t *testing.T, size int64, compress func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	z := compress(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: size, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, zeros(size)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sparse is an archive of one GNU sparse file that claims a size and holds nothing.
func sparse(size int64) []byte {
	header := make([]byte, 512)
	copy(header, "f")
	copy(header[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00        S")
	copy(header[257:], "ustar  \x00")
	for _, at := range []int{386, 483} { // one piece at the end, of the no bytes that follow here; the size
		number := header[at : at+12]
		number[0] = 0x80
		for i, rest := 11, size; i > 0; i-- {
			number[i] = byte(rest)
			rest >>= 8
		}
	}
	copy(header[398:], fmt.Sprintf("%011o\x00", 0))
	sum := 0
	for _, c := range header {
		sum += int(c)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(header, make([]byte, 1024)...)
}

// Rows: S37
func TestS37BombsAreStopped(t *testing.T) {
	needRoot(t)
	limits := Limits{Bytes: 64 << 20, Entries: 1000, ZstdWindow: 8 << 20}
	gz := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	window := func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w, zstd.WithWindowSize(64<<20), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	many := make([]entry, 2000)
	for i := range many {
		many[i] = file(fmt.Sprintf("f%d", i), "")
	}
	deep := make([]entry, 100) // each makes 20 folders that have none
	for i := range deep {
		deep[i] = file(fmt.Sprintf("d%d%s/f", i, strings.Repeat("/d", 19)), "")
	}
	small := bomb(t, 30<<20, gz)
	tests := []struct {
		name string
		data []byte
	}{
		{"bytes", bomb(t, 100<<20, gz)},
		{"a zstd window", bomb(t, 100<<20, window)},
		{"a zstd window of 2 GiB", []byte("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00")},
		{"entries", archive(t, many...)},
		{"folders without an entry", archive(t, deep...)},
		{"a sparse file's size", sparse(1 << 40)},
		{"concatenated members", bytes.Repeat(small, 4)},
		{"bytes after the end", func() []byte {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			_, _ = z.Write(archive(t, file("f", "")))
			_, _ = io.Copy(z, zeros(100<<20))
			_ = z.Close()
			return b.Bytes()
		}()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			_, err := unpackTo(t, filepath.Join(t.TempDir(), "l"), tt.data, limits)
			if !errdefs.IsResourceExhausted(err) {
				t.Fatalf("not stopped: %v", err)
			}
			if took := time.Since(start); took > rowsize.Of(2*time.Minute, 2*time.Second) {
				t.Errorf("it took %v", took)
			}
		})
	}
	t.Run("a header of 100 MiB", func(t *testing.T) {
		header := make([]byte, 512)
		copy(header, "x")
		copy(header[100:], "0000644\x000000000\x000000000\x00"+fmt.Sprintf("%011o\x00", 100<<20)+"00000000000\x00        x")
		copy(header[257:], "ustar\x0000")
		sum := 0
		for _, c := range header {
			sum += int(c)
		}
		copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
		d, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		read := &counted{Reader: io.MultiReader(bytes.NewReader(header), zeros(200<<20))}
		if _, err := Unpack(t.Context(), d, read, DefaultLimits, nil); !errdefs.IsInvalidArgument(err) || read.n > 2<<20 {
			t.Errorf("%v after %d bytes", err, read.n)
		}
	})
}

// counted counts what was read.
// Files without content by the million take no memory, and no more of the archive is read than up to the bound.
//
// Rows: S37 (part)
func TestS37FilesWithoutEndAreStopped(t *testing.T) {
	needRoot(t)
	limits := DefaultLimits
	limits.Entries = rowsize.Of(2_000, limits.Entries)
	r, w := io.Pipe()
	go func() {
		files := tar.NewWriter(w)
		for i := range 2 * limits.Entries {
			if files.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/f%d", i/1000, i), Typeflag: tar.TypeReg, Mode: 0o644}) != nil {
				return
			}
		}
		_ = w.Close()
	}()
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	read := &counted{Reader: r}
	if _, err := Unpack(t.Context(), d, read, limits, nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("not stopped: %v", err)
	}
	_ = r.Close()
	if most := int64(limits.Entries)*512 + 1<<20; read.n > most {
		t.Errorf("%d bytes were read of the %d up to the bound", read.n, most)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapSys > before.HeapSys+64<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before.HeapSys, after.HeapSys)
	}
}

type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// Without a bound of bytes a layer may take what the disk has, short of what is kept free of it, and no more is ever read of an
// archive than could be on the disk.
//
// Rows: S37
func TestS37BombsLeaveTheDiskItsReserve(t *testing.T) {
	needRoot(t)
	const size, reserve = 64 << 20, 40 << 20
	gz := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	many := make([]entry, 8000) // that take a page each
	for i := range many {
		many[i] = symlink(fmt.Sprintf("l%d", i), strings.Repeat("x", 4000))
	}
	for name, data := range map[string][]byte{
		"a file":               bomb(t, 100<<20, gz),
		"a file that would go": bomb(t, 30<<20, gz),
		"a sparse file":        sparse(size - 1<<20),
		"a sparse file's size": sparse(1 << 50),
		"links":                archive(t, many...),
		"bytes after the end":  append(archive(t, file("f", "")), make([]byte, size)...),
	} {
		t.Run(name, func(t *testing.T) {
			disk := t.TempDir()
			if err := unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }()
			limits := DefaultLimits
			limits.Reserve = reserve
			_, err := unpackTo(t, filepath.Join(disk, "l"), data, limits)
			if !errdefs.IsResourceExhausted(err) || errors.Is(err, unix.ENOSPC) {
				t.Fatalf("not stopped: %v", err)
			}
			var fs unix.Statfs_t
			if err := unix.Statfs(disk, &fs); err != nil || int64(fs.Bavail)*fs.Bsize < reserve-1<<20 {
				t.Errorf("%d bytes are left, %v", int64(fs.Bavail)*fs.Bsize, err)
			}
		})
	}
}

// An image of a disk is compressed to next to nothing.
func TestZerosAreUnpacked(t *testing.T) {
	needRoot(t)
	data := bomb(t, 128<<20, func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w)
		if err != nil {
			t.Fatal(err)
		}
		return z
	})
	if got, err := unpackTo(t, filepath.Join(t.TempDir(), "l"), data, DefaultLimits); err != nil || got.Bytes < 128<<20 {
		t.Errorf("%d bytes became %d: %v", len(data), got.Bytes, err)
	}
}

// The decompressor is in this process: nothing is looked for on the PATH.
//
// Rows: S38 (part)
func TestS38NoProgramIsRun(t *testing.T) {
	needRoot(t)
	bin := t.TempDir()
	ran := filepath.Join(bin, "ran")
	for _, name := range []string{"unpigz", "pigz", "gzip", "gunzip", "zstd", "unzstd", "xz", "unxz", "bzip2", "tar"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n: > "+ran+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	plain := archive(t, file("f", "1"))
	for magic, data := range map[string][]byte{"gzip": nil, "zstd": nil, "xz": append([]byte("\xfd7zXZ\x00"), plain...), "bzip2": append([]byte("BZh9"), plain...)} {
		var b bytes.Buffer
		switch magic {
		case "gzip":
			z := gzip.NewWriter(&b)
			_, _ = z.Write(plain)
			_ = z.Close()
		case "zstd":
			z, err := zstd.NewWriter(&b)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = z.Write(plain)
			_ = z.Close()
		default:
			b.Write(data)
		}
		_, err := unpackTo(t, filepath.Join(t.TempDir(), "l"), b.Bytes(), DefaultLimits)
		if (err == nil) != (data == nil) {
			t.Errorf("%s: %v", magic, err)
		}
	}
	if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program was run: %v", err)
	}
}

// A damaged archive is an error at every byte where it may end, and never a hang or a panic.
func TestArchiveMayEndAnywhere(t *testing.T) {
	needRoot(t)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(archive(t, dir("d/"), file("d/f", strings.Repeat("content", 100)), symlink("l", "d")))
	_ = z.Close()
	for n := range b.Len() {
		_, err := unpackTo(t, filepath.Join(t.TempDir(), "l"), b.Bytes()[:n], DefaultLimits)
		if n == 0 {
			continue // no bytes are an archive without entries
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestUnpackEndsWithItsContext(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 10 << 30, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	_, err = Unpack(ctx, d, io.MultiReader(&b, zeros(10<<30)), DefaultLimits, func(n int) {
		if seen += n; seen > 1<<20 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// FuzzUnpack finds an archive that changes what is outside, panics, or is taken without being whole.
//
// Rows: S34, S36 (part)
func FuzzUnpack(f *testing.F) {
	needRoot(f)
	outside := f.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("canary"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Add(archive(f, symlink("l", outside), file("l/canary", "x")))
	f.Add(archive(f, dir("d/"), link("h", canary), file("h", "x"), file("d/.wh.f", ""), file("d/.wh..wh..opq", "")))
	f.Add(archive(f, symlink("l", ".."), dir("l/"), file("l/../x", "x"), device(tar.TypeChar, "n", 1, 3), device(tar.TypeFifo, "p", 0, 0)))
	f.Add(sparse(1 << 20))
	limits := Limits{Bytes: 1 << 20, Entries: 100, ZstdWindow: 1 << 20}
	work := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		before := listing(t, outside)
		root := filepath.Join(work, "l")
		got, err := unpackTo(t, root, data, limits)
		if err == nil && got.DiffID.Validate() != nil {
			t.Error("no digest")
		}
		if after := listing(t, outside); !slices.Equal(before, after) {
			t.Errorf("outside changed:\n%s", strings.Join(after, "\n"))
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
}

// Each name that is taken away may need folders of its own.
func TestWhatIsTakenAwayIsBounded(t *testing.T) {
	needRoot(t)
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	names := []string{"a/b/c", "d"}
	if _, err := WhiteOut(t.Context(), dir, names, Limits{Entries: 3}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v", err)
	}
	if implied, err := WhiteOut(t.Context(), dir, names, Limits{Entries: 2}); err != nil || len(implied) != 0 {
		t.Errorf("again, without new folders: %v, %v", implied, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := WhiteOut(ctx, dir, names, DefaultLimits); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Links let an archive go on where its names end: each of these leads to the end of the one before.
func TestNoFolderLiesWhereNoPathLeads(t *testing.T) {
	needRoot(t)
	const folder, levels = "dddddddd", 200 // 1800 bytes a part
	way := strings.TrimSuffix(strings.Repeat(folder+"/", levels), "/")
	deep := func(last func(name string) entry) []byte {
		entries := []entry{dir(way), symlink("l0", way)}
		for i := range 3 {
			name := fmt.Sprintf("l%d/%s", i, way)
			entries = append(entries, last(name), symlink(fmt.Sprintf("l%d", i+1), name))
		}
		return archive(t, entries...)
	}
	for name, last := range map[string]func(string) entry{
		"folders":         dir,
		"implied folders": func(name string) entry { return file(name+"/f", "") },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := unpackTo(t, filepath.Join(t.TempDir(), "l"), deep(last), DefaultLimits); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "deeper") {
				t.Error(err)
			}
		})
	}
	if _, err := unpackTo(t, filepath.Join(t.TempDir(), "l"), archive(t, dir(way), symlink("l", way), dir("l/"+way)), DefaultLimits); err != nil {
		t.Errorf("as deep as a path leads: %v", err)
	}
}
