package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// needRoot skips where owners, devices and trusted attributes cannot be set.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
}

type entry struct {
	tar.Header
	content string
}

var past = time.Unix(1_000_000, 0)

func file(name, content string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: past}, content}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: past}, ""}
}

func link(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}, ""}
}

func hides(name string) entry { return file(name, "") }

func symlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777, ModTime: past}, ""}
}

func device(kind byte, name string, major, minor int64) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Mode: 0o600, Devmajor: major, Devminor: minor, ModTime: past}, ""}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpackTo unpacks into a new folder.
func unpackTo(t testing.TB, path string, data []byte, limits Limits) (Layer, error) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	return Unpack(t.Context(), d, bytes.NewReader(data), limits, nil)
}

// listing lists a folder, one line per object: what it is, whose, and what is in it.
func listing(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		line := fmt.Sprintf("%s %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" links %d %q at %d", st.Nlink, data, st.Mtim.Sec)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		var value [8]byte
		if n, err := unix.Lgetxattr(path, opaqueXattr, value[:]); err == nil {
			line += " opaque=" + string(value[:n])
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestLayerHasWhatTheArchiveSays(t *testing.T) {
	needRoot(t)
	suid := file("bin/su", "x")
	suid.Mode, suid.Uid, suid.Gid = 0o4755, 0, 5
	capable := file("bin/ping", "x")
	// A capability of version 2, cap_net_raw+ep.
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.note": "n"}
	owned := dir("home/u/")
	owned.Uid, owned.Gid, owned.Mode = 1000, 1001, 0o2750
	l := symlink("home/u/l", "../../etc/passwd")
	l.Uid, l.Gid = 7, 8
	long := file(strings.Repeat("deep/", 60)+"f", "long")
	data := archive(t, dir("./"), suid, capable, owned, l, link("bin/sudo", "bin/su"), device(tar.TypeChar, "dev/null", 1, 3),
		device(tar.TypeBlock, "dev/sda", 8, 0), device(tar.TypeFifo, "fifo", 0, 0), long, file("home/u/f", "1"), file("/abs", "abs"))
	root := filepath.Join(t.TempDir(), "l")
	got, err := unpackTo(t, root, data, DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); string(got.DiffID) != want || got.Bytes != int64(len(data)) {
		t.Errorf("%s of %d bytes, want %s", got.DiffID, got.Bytes, want)
	}
	lines := strings.Join(listing(t, root), "\n")
	for _, want := range []string{
		"bin/su 104755 0:5 links 2", "bin/sudo 104755 0:5 links 2", "home/u 42750 1000:1001", "home/u/l 120777 7:8 -> ../../etc/passwd",
		"dev/null 20600 0:0 device 1:3", "dev/sda 60600 0:0 device 8:0", "fifo 10600", "deep/f 100644 0:0 links 1 \"long\" at 1000000", "abs 100644",
	} {
		if !strings.Contains(lines, want) {
			t.Errorf("there is no %q in\n%s", want, lines)
		}
	}
	var value [64]byte
	if n, err := unix.Lgetxattr(filepath.Join(root, "bin/ping"), "security.capability", value[:]); err != nil || string(value[:n]) != capability {
		t.Errorf("the capability is %q (%v)", value[:max(n, 0)], err)
	}
	for path, want := range map[string]int64{"home/u": past.Unix(), ".": past.Unix(), "home/u/l": past.Unix()} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, path), &st); err != nil || st.Mtim.Sec != want {
			t.Errorf("%s was modified at %d (%v), want %d", path, st.Mtim.Sec, err, want)
		}
	}
	if want := []string{"bin", "deep", "deep/deep"}; !slices.Equal(got.Implied[:3], want) || !slices.Equal(got.Implied[61:], []string{"dev", "home"}) {
		t.Errorf("implied are %v", got.Implied)
	}
}

func TestEveryFormOfCompression(t *testing.T) {
	needRoot(t)
	plain := archive(t, file("a", "1"))
	var gz, zs bytes.Buffer
	z := gzip.NewWriter(&gz)
	_, err := z.Write(plain[:700])
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	z = gzip.NewWriter(&gz) // a second member
	_, err = z.Write(plain[700:])
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	encoder, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	_, err = encoder.Write(plain)
	if err := errors.Join(err, encoder.Close()); err != nil {
		t.Fatal(err)
	}
	skipped := append([]byte{0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'h', 'i'}, zs.Bytes()...)
	for name, data := range map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes(), "zstd after a skippable frame": skipped} {
		root := filepath.Join(t.TempDir(), "l")
		got, err := unpackTo(t, root, data, DefaultLimits)
		if want := fmt.Sprintf("sha256:%x", sha256.Sum256(plain)); err != nil || string(got.DiffID) != want {
			t.Errorf("%s: %v %v", name, got, err)
		}
		if content, err := os.ReadFile(filepath.Join(root, "a")); err != nil || string(content) != "1" {
			t.Errorf("%s: %q %v", name, content, err)
		}
	}
}

// Rows: S35
func TestS35Whiteouts(t *testing.T) {
	needRoot(t)
	smuggled := file("f", "x")
	smuggled.PAXRecords = map[string]string{
		"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.opaque": "y",
		"SCHILY.xattr.trusted.overlay.metacopy": "", "SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.security.ima": "x",
	}
	smuggledDir, smuggledMark, smuggledOpaque := dir("d/"), hides("d/.wh.f"), hides("d/.wh..wh..opq")
	smuggledDir.PAXRecords, smuggledMark.PAXRecords, smuggledOpaque.PAXRecords = smuggled.PAXRecords, smuggled.PAXRecords, smuggled.PAXRecords
	tests := []struct {
		name    string
		entries []entry
		want    []string // lines of the tree, without the root; nil: refused
	}{
		{"of a file", []entry{dir("d/"), hides("d/.wh.f")}, []string{"d 40755 0:0", "d/f 20000 0:0 device 0:0"}},
		{"in an implied folder", []entry{hides("d/.wh.f")}, []string{"d 40755 0:0", "d/f 20000 0:0 device 0:0"}},
		{"at the top", []entry{hides(".wh.f")}, []string{"f 20000 0:0 device 0:0"}},
		{"opaque", []entry{dir("d/"), hides("d/.wh..wh..opq"), file("d/f", "")}, []string{"d 40755 0:0 opaque=y", `d/f 100644 0:0 links 1 "" at 1000000`}},
		{"opaque after its content", []entry{dir("d/"), file("d/f", ""), hides("d/.wh..wh..opq")}, []string{"d 40755 0:0 opaque=y", `d/f 100644 0:0 links 1 "" at 1000000`}},
		{"opaque in an implied folder", []entry{hides("d/.wh..wh..opq")}, []string{"d 40755 0:0 opaque=y"}},
		{"opaque before its folder", []entry{hides("d/.wh..wh..opq"), dir("d/")}, []string{"d 40755 0:0 opaque=y"}},
		{"and then the file", []entry{hides(".wh.f"), file("f", "n")}, []string{`f 100644 0:0 links 1 "n" at 1000000`}},
		{"the file and then it", []entry{file("f", "n"), hides(".wh.f")}, []string{`f 100644 0:0 links 1 "n" at 1000000`}},
		{"and then a folder", []entry{hides(".wh.d"), dir("d/")}, []string{"d 40755 0:0 opaque=y"}},
		{"a folder and then it", []entry{dir("d/"), hides(".wh.d")}, []string{"d 40755 0:0 opaque=y"}},
		{"and then something in it", []entry{hides(".wh.d"), file("d/f", "")}, []string{"d 40755 0:0 opaque=y", `d/f 100644 0:0 links 1 "" at 1000000`}},
		{"and then a link", []entry{hides(".wh.l"), symlink("l", "x")}, []string{"l 120777 0:0 -> x"}},
		{"a link and then it", []entry{symlink("l", "/etc"), hides(".wh.l")}, []string{"l 120777 0:0 -> /etc"}},
		{"twice", []entry{hides(".wh.f"), hides(".wh.f")}, []string{"f 20000 0:0 device 0:0"}},
		{"through a link", []entry{dir("d/"), symlink("l", "d"), hides("l/.wh.f")}, []string{"d 40755 0:0", "d/f 20000 0:0 device 0:0", "l 120777 0:0 -> d"}},
		{"AUFS's own", []entry{hides(".wh..wh.aufs"), dir(".wh..wh.plnk/"), hides(".wh..wh.plnk/1.2"), hides(".wh..wh.orph")}, []string{}},
		{"of nothing", []entry{hides(".wh.")}, nil},
		{"of the folder itself", []entry{hides("d/.wh..")}, nil},
		{"of the folder above", []entry{hides("d/.wh...")}, nil},
		{"as a folder", []entry{dir(".wh.d/"), file(".wh.d/f", "")}, nil},
		{"out of the layer", []entry{hides("../.wh.f")}, nil},
		{"out by a link", []entry{symlink("l", "/"), hides("l/.wh.etc")}, []string{"etc 20000 0:0 device 0:0", "l 120777 0:0 -> /"}},
		{"smuggled as a device", []entry{device(tar.TypeChar, "f", 0, 0)}, nil},
		{"as the target of a hard link", []entry{hides(".wh.f"), link("g", "f")}, nil},
		{"smuggled attributes", []entry{smuggled, smuggledDir}, []string{"d 40755 0:0", `f 100644 0:0 links 1 "x" at 1000000`}},
		{"with attributes", []entry{smuggledMark}, []string{"d 40755 0:0", "d/f 20000 0:0 device 0:0"}},
		{"opaque with attributes", []entry{smuggledOpaque}, []string{"d 40755 0:0 opaque=y"}},
		{"as a link", []entry{symlink(".wh.f", "/etc/passwd")}, []string{"f 20000 0:0 device 0:0"}},
		{"as a hard link", []entry{file("g", "x"), link(".wh.f", "g")}, []string{"f 20000 0:0 device 0:0", `g 100644 0:0 links 1 "x" at 1000000`}},
		{"as another device", []entry{device(tar.TypeChar, ".wh.f", 1, 3)}, []string{"f 20000 0:0 device 0:0"}},
		{"with content", []entry{file(".wh.f", "x")}, []string{"f 20000 0:0 device 0:0"}},
		{"as a block device, which is none", []entry{device(tar.TypeBlock, "f", 0, 0)}, []string{"f 60600 0:0 device 0:0"}},
		{"as a device with a number, which is none", []entry{device(tar.TypeChar, "f", 1, 3)}, []string{"f 20600 0:0 device 1:3"}},
		{"opaque at the top", []entry{hides(".wh..wh..opq"), file("f", "")}, []string{`f 100644 0:0 links 1 "" at 1000000`}},
		{"opaque through a link", []entry{dir("d/"), symlink("l", "d"), hides("l/.wh..wh..opq")}, []string{"d 40755 0:0 opaque=y", "l 120777 0:0 -> d"}},
		{"opaque out by a link", []entry{symlink("l", "../../.."), hides("l/.wh..wh..opq")}, []string{"l 120777 0:0 -> ../../.."}},
		{"opaque out of the layer", []entry{hides("../.wh..wh..opq")}, nil},
		{"opaque as a link", []entry{symlink("d/.wh..wh..opq", "/etc")}, []string{"d 40755 0:0 opaque=y"}},
		{"of a hidden file", []entry{hides(".wh..f")}, []string{".f 20000 0:0 device 0:0"}},
		{"at an absolute path", []entry{hides("/.wh.f")}, []string{"f 20000 0:0 device 0:0"}},
		{"by dots", []entry{dir("d/"), hides("d/../.wh.f")}, []string{"d 40755 0:0", "f 20000 0:0 device 0:0"}},
		{"out by dots", []entry{dir("d/"), hides("d/../../.wh.f")}, nil},
		{"below a file", []entry{file("f", ""), hides("f/.wh.x")}, nil},
		{"below a link to nothing", []entry{symlink("l", "nowhere"), hides("l/.wh.f")}, nil},
		{"below a link in a circle", []entry{symlink("l", "l"), hides("l/.wh.f")}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "l")
			_, err := unpackTo(t, root, archive(t, tt.entries...), DefaultLimits)
			if tt.want == nil {
				if !errdefs.IsInvalidArgument(err) {
					t.Fatalf("not refused: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := listing(t, root)[1:]; !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
				var names [1024]byte
				n, xerr := unix.Llistxattr(path, names[:])
				if list := string(names[:max(0, n)]); list != "" && list != opaqueXattr+"\x00" {
					t.Errorf("%s has attributes %q", path, list)
				}
				return errors.Join(err, xerr)
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// Rows: S36 (part)
func TestOddEntriesAreRefused(t *testing.T) {
	needRoot(t)
	owner := file("f", "")
	owner.Uid = 1<<32 - 1
	negative := file("f", "")
	negative.Gid = -1
	for name, entries := range map[string][]entry{
		"a name out":                   {file("../f", "")},
		"a name out, later":            {file("a/../../f", "")},
		"an owner that is none":        {owner},
		"a negative owner":             {negative},
		"a device out of range":        {device(tar.TypeChar, "f", 4096, 0)},
		"a minor out of range":         {device(tar.TypeBlock, "f", 1, 1<<20)},
		"a file as the root":           {file(".", "")},
		"a link as the root":           {symlink(".", "/")},
		"an empty link":                {symlink("l", "")},
		"a hard link out":              {link("h", "../../etc/passwd")},
		"a hard link to nothing":       {link("h", "/etc/passwd")},
		"a hard link to a folder":      {dir("d/"), link("h", "d")},
		"a hard link to the root":      {link("h", ".")},
		"a folder that is a file":      {file("f", ""), file("f/x", "")},
		"a folder that dangles":        {symlink("l", "nowhere"), file("l/x", "")},
		"links in a circle":            {symlink("a", "b"), symlink("b", "a"), file("a/x", "")},
		"a magic link":                 {symlink("l", "/proc/self/root"), file("l/x", "")},
		"an unknown type":              {{tar.Header{Name: "f", Typeflag: 'Z'}, ""}},
		"a component that is too long": {file(strings.Repeat("x", 256), "")},
		"a path that is too long":      {file(strings.Repeat("x/", 2100)+"f", "")},
	} {
		root := filepath.Join(t.TempDir(), "l")
		if _, err := unpackTo(t, root, archive(t, entries...), DefaultLimits); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImpliedFoldersAreThoseWithoutAnEntry(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name    string
		entries []entry
		want    string
	}{
		{"none has one", []entry{file("a/b/c/f", "")}, "a a/b a/b/c"},
		{"one comes before", []entry{dir("a/"), file("a/b/f", "")}, "a/b"},
		{"one comes after", []entry{file("a/b/c/f", ""), dir("a/b/")}, "a a/b/c"},
		{"by a link", []entry{dir("d/"), symlink("l", "d"), file("l/x/f", "")}, "d/x"},
		{"by a link that becomes a folder", []entry{dir("d/"), symlink("l", "d"), file("l/x/f", ""), dir("l/"), dir("l/x/")}, "d/x"},
		{"it becomes a file", []entry{file("a/b/f", ""), file("a", "")}, ""},
		{"it becomes a link to another", []entry{file("a/b/f", ""), dir("d/"), dir("d/b/"), symlink("a", "d")}, ""},
		{"it becomes a file, and a folder with an entry", []entry{file("a/b/f", ""), file("a", ""), dir("a/"), dir("a/b/")}, ""},
		{"and again without", []entry{file("a/b/f", ""), file("a", ""), dir("a/"), file("a/b/f", "")}, "a/b"},
		{"it takes the place of a whiteout", []entry{hides(".wh.a"), file("a/b/f", "")}, "a/b"},
		{"a whiteout comes after", []entry{file("a/b/f", ""), hides(".wh.a")}, "a/b"},
		{"it hides what is below", []entry{hides("a/.wh..wh..opq")}, "a"},
		{"it hides what is below, later", []entry{file("a/b/f", ""), hides("a/.wh..wh..opq")}, "a a/b"},
	} {
		got, err := unpackTo(t, filepath.Join(t.TempDir(), "l"), archive(t, tt.entries...), DefaultLimits)
		if err != nil || strings.Join(got.Implied, " ") != tt.want {
			t.Errorf("%s: %v, want %s (%v)", tt.name, got.Implied, tt.want, err)
		}
	}
}

// The list is kept in memory.
//
// Rows: S37 (part)
func TestTheListOfImpliedFoldersIsBounded(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("n", 250)
	entries := make([]entry, 2000)
	for i := range entries {
		entries[i] = file(fmt.Sprintf("%s%04d/f", long, i), "")
	}
	got, err := unpackTo(t, filepath.Join(t.TempDir(), "l"), archive(t, entries...), DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	if bytes := len(strings.Join(got.Implied, "")); bytes > maxImpliedBytes || bytes < maxImpliedBytes/2 {
		t.Errorf("%d names of %d bytes", len(got.Implied), bytes)
	}
}
