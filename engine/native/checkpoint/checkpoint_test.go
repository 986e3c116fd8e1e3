package checkpoint

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/internal/powercut"
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
	for _, d := range []string{filepath.Join(work, ImagesDir), filepath.Join(upper, "etc"), filepath.Join(upper, "all")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(dir, "secret")
	for path, content := range map[string]string{
		filepath.Join(work, ImagesDir, "core-1.img"): "image", filepath.Join(work, "dump.log"): "log", secret: "secret", filepath.Join(upper, "etc/new"): "new",
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
	config := &Config{ID: "4567", Name: "c", RootfsImageRef: "sha256:ab", CreatedTime: time.Now()}
	oci := &specs.Spec{Version: specs.Version, Process: &specs.Process{Args: []string{"sleep"}, Cwd: "/", Env: []string{"A=1", "HOSTNAME=x"}}}
	if err := SaveFiles(t.Context(), work, upper); err != nil {
		t.Fatal(err)
	}
	if err := Pack(t.Context(), work, config, oci, location); err != nil {
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
	if got, err := ReadConfig(t.Context(), File(location)); err != nil || got.ID != "4567" || got.RootfsImageRef != "sha256:ab" {
		t.Errorf("%+v, %v", got, err)
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
	restoresFrom(t, File(location), opaque)
	layer := filepath.Join(dir, "layer")
	if err := os.Mkdir(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "tar", "-x", "-C", layer, "-f", location)
	restoresFrom(t, Tree(layer), opaque)
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
	if err := Pack(t.Context(), work, config, oci, location); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(secret); err != nil || string(data) != "secret" {
		t.Errorf("the link at the location was followed: %q, %v", data, err)
	}
}

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

// restoresFrom unpacks what TestACheckpointsArchive has packed.
func restoresFrom(t *testing.T, source Source, opaque bool) {
	t.Helper()
	dir, upper := filepath.Join(t.TempDir(), "restored"), t.TempDir()
	if err := Extract(t.Context(), source, dir); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, ImagesDir, "core-1.img")); err != nil || string(data) != "image" {
		t.Errorf("CRIU's image is %q, %v", data, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "dump.log")); err == nil {
		t.Error("more than the checkpoint was unpacked")
	}
	into, err := os.Open(upper)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = into.Close() }()
	if err := RestoreFiles(t.Context(), dir, into, nil); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(upper, "etc/new")); err != nil || string(data) != "new" {
		t.Errorf("etc/new is %q, %v", data, err)
	}
	if info, err := os.Lstat(filepath.Join(upper, "etc/gone")); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("what was removed is %v, %v", info, err)
	}
	value := make([]byte, 8)
	if n, err := unix.Getxattr(filepath.Join(upper, "all"), "trusted.overlay.opaque", value); opaque && (err != nil || string(value[:n]) != "y") {
		t.Errorf("the folder is opaque: %q, %v", value[:max(n, 0)], err)
	}
	same := &specs.Spec{Process: &specs.Process{Args: []string{"sleep"}, Cwd: "/", Env: []string{"HOSTNAME=y", "A=1"}}}
	if err := CheckProcess(dir, same); err != nil {
		t.Errorf("the same process: %v", err)
	}
	other := &specs.Spec{Process: &specs.Process{Args: []string{"sleep"}, Cwd: "/", Env: []string{"A=2"}}}
	if err := CheckProcess(dir, other); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "environment") {
		t.Errorf("another environment: %v", err)
	}
}

// What is no checkpoint, or means harm, is refused with its class and leaves nothing outside.
//
// Rows: S68 (part)
func TestHostileArchivesAreRefused(t *testing.T) {
	image := tar.Header{Typeflag: tar.TypeReg, Name: "checkpoint/a.img", Mode: 0o600}
	for name, tt := range map[string]struct {
		entries []tar.Header
		is      func(error) bool
	}{
		"nothing":              {nil, errdefs.IsInvalidArgument},
		"only links":           {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "checkpoint", Linkname: "/etc"}}, errdefs.IsInvalidArgument},
		"names that lead away": {[]tar.Header{{Typeflag: tar.TypeReg, Name: "../checkpoint/x"}, {Typeflag: tar.TypeReg, Name: "/checkpoint/x"}, {Typeflag: tar.TypeReg, Name: "checkpoint/../../x"}, {Typeflag: tar.TypeReg, Name: "checkpoint/sub/x"}}, errdefs.IsInvalidArgument},
		"a name twice":         {[]tar.Header{image, image}, os.IsExist},
		"fine":                 {[]tar.Header{image}, func(err error) bool { return err == nil }},
	} {
		t.Run(name, func(t *testing.T) {
			var data bytes.Buffer
			w := tar.NewWriter(&data)
			for _, header := range tt.entries {
				if err := w.WriteHeader(&header); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			parent := t.TempDir()
			location := filepath.Join(parent, "c.tar")
			if err := os.WriteFile(location, data.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			err := Extract(t.Context(), File(location), filepath.Join(parent, "to"))
			if cause := errors.Unwrap(err); !tt.is(err) && !tt.is(cause) {
				t.Errorf("%v", err)
			}
			if left, err := os.ReadDir(parent); err != nil || len(left) != 2 {
				t.Errorf("outside are %v, %v", left, err)
			}
		})
	}
	for _, path := range []string{"/dev/zero", t.TempDir(), "/nonexistent"} {
		if _, err := ReadConfig(t.Context(), File(path)); err == nil {
			t.Errorf("%s was read", path)
		}
	}
}

// ofCRIO are the sources of a checkpoint as CRI-O makes it: what its difference has, and what its list of removed files is.
func ofCRIO(t *testing.T, diff []tar.Header, deleted string) map[string]Source {
	t.Helper()
	dir := t.TempDir()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for _, header := range diff {
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, ImagesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{ImagesDir + "/a.img": "image", rootDiff: data.String(), deletedFiles: deleted} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "tar", "-c", "-C", tree, "-f", filepath.Join(dir, "c.tar"), ".")
	return map[string]Source{"file": File(filepath.Join(dir, "c.tar")), "tree": Tree(tree)}
}

// restored is the writable layer of a source's container, whose image has layers.
func restored(t *testing.T, source Source, layers []string) (upper string, err error) {
	t.Helper()
	base := t.TempDir()
	dir, upper := filepath.Join(base, "restored"), filepath.Join(base, "upper")
	if err := Extract(t.Context(), source, dir); err != nil {
		return upper, err
	}
	if err := os.Mkdir(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	into, err := os.Open(upper)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = into.Close() }()
	return upper, RestoreFiles(t.Context(), dir, into, layers)
}

// needWhiteouts skips where nobody can make one.
func needWhiteouts(t *testing.T) {
	t.Helper()
	if err := unix.Mknod(filepath.Join(t.TempDir(), "w"), unix.S_IFCHR, 0); err != nil {
		t.Skipf("no whiteouts here: %v", err)
	}
}

// What a container of CRI-O had removed is hidden, and the folders that lead there are as the image has them.
//
// Rows: S68 (part)
func TestWhatCRIOTellsAsRemovedIsRemoved(t *testing.T) {
	needWhiteouts(t)
	base := t.TempDir()
	layers := []string{filepath.Join(base, "low"), filepath.Join(base, "high")}
	for _, folder := range []struct {
		name string
		mode uint32
		uid  int
	}{{"low/home/u", 0o755, 5}, {"high/home/u", 0o700, 7}, {"low/tmp", 0o1777, 0}, {"low/opt/a/b", 0o755, 0}} {
		folder.name = filepath.Join(base, folder.name)
		if err := errors.Join(os.MkdirAll(folder.name, 0o755), os.Chown(folder.name, folder.uid, folder.uid), unix.Chmod(folder.name, folder.mode)); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(base, "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	diff := []tar.Header{
		{Typeflag: tar.TypeReg, Name: "home/u/new"}, {Typeflag: tar.TypeReg, Name: "tmp/new"}, {Typeflag: tar.TypeReg, Name: "etc/both"},
		{Typeflag: tar.TypeReg, Name: "opt/x/y/z"}, {Typeflag: tar.TypeSymlink, Name: "link", Linkname: outside}, {Typeflag: tar.TypeReg, Name: "file"},
	}
	// A folder is named for all in it; what is also in the difference is removed after it.
	removed := `["/home/u/.profile", "/opt/a", "/opt/a/b", "etc/both", "/no/such/file", "/opt/x", "/link", "/file/in", "/home/u/.profile"]`
	for name, source := range ofCRIO(t, diff, removed) {
		t.Run(name, func(t *testing.T) {
			upper, err := restored(t, source, layers)
			if err != nil {
				t.Fatal(err)
			}
			const whiteout, folder = unix.S_IFCHR, unix.S_IFDIR
			for _, want := range []struct {
				name string
				mode uint32
				uid  uint32
			}{
				{"home/u/.profile", whiteout, 0}, {"opt/a", whiteout, 0}, {"etc/both", whiteout, 0}, {"no/such/file", whiteout, 0}, {"opt/x", whiteout, 0},
				{"link", whiteout, 0}, {"file", unix.S_IFREG, 0}, {"home/u/new", unix.S_IFREG, 0}, {"home/u", folder | 0o700, 7}, {"tmp", folder | 0o1777, 0},
				{"no/such", folder | 0o755, 0}, // the image has none
			} {
				var stat unix.Stat_t
				if err := unix.Lstat(filepath.Join(upper, want.name), &stat); err != nil || stat.Mode != want.mode || stat.Uid != want.uid || stat.Rdev != 0 {
					t.Errorf("%s: mode %o, owner %d, device %d, %v", want.name, stat.Mode, stat.Uid, stat.Rdev, err)
				}
			}
			if _, err := os.Lstat(outside); err != nil {
				t.Errorf("a link was followed: %v", err)
			}
		})
	}
}

// Rows: S68 (part)
func TestHostileListsOfRemovedFilesAreRefused(t *testing.T) {
	needWhiteouts(t)
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	diff := []tar.Header{
		{Typeflag: tar.TypeSymlink, Name: "out", Linkname: outside}, {Typeflag: tar.TypeSymlink, Name: "up", Linkname: "../../../../../.." + outside},
		{Typeflag: tar.TypeSymlink, Name: "loop", Linkname: "loop"},
	}
	for name, tt := range map[string]struct {
		deleted string
		is      func(error) bool
	}{
		"away":             {`["../secret"]`, errdefs.IsInvalidArgument},
		"away in between":  {`["a/../../secret"]`, errdefs.IsInvalidArgument},
		"the root":         {`["/"]`, errdefs.IsInvalidArgument},
		"no name":          {`[""]`, errdefs.IsInvalidArgument},
		"a NUL":            {`["a\u0000b"]`, errdefs.IsInvalidArgument},
		"a long name":      {`["` + strings.Repeat("a", 256) + `"]`, errdefs.IsInvalidArgument},
		"a long path":      {`["` + strings.Repeat("a/", 3000) + `"]`, errdefs.IsInvalidArgument},
		"by a link":        {`["out/secret"]`, errdefs.IsInvalidArgument},
		"by a link upward": {`["up/secret"]`, errdefs.IsInvalidArgument},
		"by a loop":        {`["loop/secret"]`, errdefs.IsInvalidArgument},
		"no list":          {`{"/a": 1}`, errdefs.IsInvalidArgument},
		"no names":         {`[1]`, errdefs.IsInvalidArgument},
		"nothing":          {``, errdefs.IsInvalidArgument},
		"many":             {`["a"` + strings.Repeat(`,"a"`, maxEntries) + `]`, errdefs.IsResourceExhausted},
		"large":            {`[` + strings.Repeat(" ", maxDump) + `]`, errdefs.IsResourceExhausted},
		"an empty list":    {`[]`, func(err error) bool { return err == nil }},
	} {
		for kind, source := range ofCRIO(t, diff, tt.deleted) {
			if _, err := restored(t, source, nil); !tt.is(err) {
				t.Errorf("%s, from a %s: %v", name, kind, err)
			}
		}
		if _, err := os.Lstat(secret); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 1 || left[0].Type() != 0 {
		t.Errorf("outside are %v, %v", left, err)
	}
}

// A checkpoint that is larger than the disk ends while the rest of the node can still write to it.
func TestACheckpointDoesNotFillTheDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a disk of its own needs root")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=20m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }()
	tree := t.TempDir()
	images := filepath.Join(tree, ImagesDir)
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pages-1.img", "pages-2.img", "pages-3.img"} {
		if err := os.WriteFile(filepath.Join(images, name), make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Extract(t.Context(), Tree(tree), filepath.Join(disk, "to")); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(disk, &fs); err != nil || fs.Bavail*60 < fs.Blocks { // about a fiftieth
		t.Errorf("%d of %d blocks are left, %v", fs.Bavail, fs.Blocks, err)
	}
}

// appears is appear of a content.
func appears(t *testing.T, location, content string) {
	t.Helper()
	if err := appear(location, func(f *os.File) error { _, err := f.WriteString(content); return err }); err != nil {
		t.Error(err)
	}
}

// Two archives at once for one location leave one of them, whole, and nothing else; a file beside it is nobody's to take.
func TestArchivesMeetAtOneLocation(t *testing.T) {
	dir := t.TempDir()
	location := filepath.Join(dir, "c.tar")
	appears(t, location+".tmp", "somebody's")
	for _, old := range []bool{false, true} {
		err := appear(location, func(f *os.File) error {
			appears(t, location, "meanwhile")
			_, err := f.WriteString("last")
			return err
		})
		if data, read := os.ReadFile(location); err != nil || read != nil || string(data) != "last" {
			t.Errorf("where there was an older one (%v): %v, %q, %v", old, err, data, read)
		}
	}
	if data, err := os.ReadFile(location + ".tmp"); err != nil || string(data) != "somebody's" {
		t.Errorf("the file beside it: %q, %v", data, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v is left, %v", left, err)
	}
	failed := errors.New("no")
	if err := appear(location, func(*os.File) error { return failed }); !errors.Is(err, failed) {
		t.Error(err)
	}
	if err := appear("/proc/c.tar", func(*os.File) error { return nil }); err == nil { // neither nameless nor with a name
		t.Error("it is there")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// Wherever the power is cut, an archive is there whole or not at all, and it is there once that was said.
func TestAPowerCutLeavesAWholeArchiveOrNothing(t *testing.T) {
	disk := powercut.New(t, 16<<20)
	content := strings.Repeat("archive", 9000)
	appears(t, filepath.Join(disk.Dir, "c.tar"), content)
	said := disk.Now()
	for _, at := range append(disk.Moments(5), said) {
		for _, lossy := range []bool{false, true} {
			disk.Cut(at, lossy, func(dir string) {
				data, err := os.ReadFile(filepath.Join(dir, "c.tar"))
				if gone := errors.Is(err, fs.ErrNotExist); gone && at == said || !gone && (err != nil || string(data) != content) {
					t.Errorf("cut after write %d of %d (lossy: %v): %d bytes, %v", at, said, lossy, len(data), err)
				}
				if left, err := os.ReadDir(dir); err != nil || slices.ContainsFunc(left, func(e fs.DirEntry) bool { return e.Name() != "c.tar" && e.Name() != "lost+found" }) {
					t.Errorf("cut after write %d of %d (lossy: %v): %v is left, %v", at, said, lossy, left, err)
				}
			})
		}
	}
}

// Names are bytes to the kernel; those of older programs are often Latin-1.
func TestFoldersWhoseNamesAreNoUTF8AreKept(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("unpacking needs root")
	}
	dir := t.TempDir()
	work, upper, restored := filepath.Join(dir, "work"), filepath.Join(dir, "upper"), filepath.Join(dir, "restored")
	folder := "stra\xdfe"
	if err := errors.Join(os.Mkdir(work, 0o700), os.Mkdir(restored, 0o700), os.MkdirAll(filepath.Join(upper, folder, "sub"), 0o755), os.WriteFile(filepath.Join(upper, folder, "sub", "\xfcber"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := SaveFiles(t.Context(), work, upper); err != nil {
		t.Fatal(err)
	}
	to, err := os.Open(restored)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	if err := RestoreFiles(t.Context(), work, to, nil); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(restored, folder, "sub", "\xfcber")); err != nil || string(content) != "x" {
		t.Errorf("%q, %v", content, err)
	}
}

func TestAttributesOfFilesAreKept(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("file capabilities need root")
	}
	dir := t.TempDir()
	work, upper, restored := filepath.Join(dir, "work"), filepath.Join(dir, "upper"), filepath.Join(dir, "restored")
	if err := errors.Join(os.Mkdir(work, 0o700), os.MkdirAll(filepath.Join(upper, "sub"), 0o755), os.Mkdir(restored, 0o755), os.WriteFile(filepath.Join(upper, "sub", "ping"), []byte("x"), 0o755)); err != nil {
		t.Fatal(err)
	}
	// cap_net_raw=ep, as setcap writes it.
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	access := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	want := []struct{ path, name, value string }{
		{"sub/ping", "security.capability", capability}, {"sub/ping", "user.note", "n"}, {"sub", "system.posix_acl_default", access},
	}
	for _, w := range want {
		if err := unix.Lsetxattr(filepath.Join(upper, w.path), w.name, []byte(w.value), 0); err != nil {
			t.Skipf("no %s here: %v", w.name, err)
		}
	}
	_ = unix.Lsetxattr(filepath.Join(upper, "sub"), "trusted.overlay.origin", []byte("y"), 0) // is of this host's overlay
	_ = unix.Lsetxattr(filepath.Join(upper, "sub/ping"), "user.a=b", []byte("n"), 0)          // has no place in an archive
	if err := SaveFiles(t.Context(), work, upper); err != nil {
		t.Fatal(err)
	}
	to, err := os.Open(restored)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	if err := RestoreFiles(t.Context(), work, to, nil); err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		value := make([]byte, 100)
		if n, err := unix.Lgetxattr(filepath.Join(restored, w.path), w.name, value); err != nil || string(value[:n]) != w.value {
			t.Errorf("%s of %s is %q, %v", w.name, w.path, value[:max(n, 0)], err)
		}
	}
	data, err := os.ReadFile(filepath.Join(work, rootDiff))
	if err != nil || bytes.Contains(data, []byte("trusted.overlay.origin")) {
		t.Errorf("the archive has an attribute of this host's overlay, %v", err)
	}
}

// Whoever made the archive decides how long its parts are.
func TestASpecificationThatIsTooLongIsRefused(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, specDump))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(`{"process":{"args":["a"],"cwd":"/"}}`); err != nil {
		t.Fatal(err)
	}
	if _, err := Process(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(" "), maxDump); err != nil {
		t.Fatal(err)
	}
	if _, err := Process(dir); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v", err)
	}
}

// A file of a container's may say any size: what a checkpoint takes leaves the disk what is kept free, like all else that containers
// make us write, and what cannot fit is not begun.
func TestACheckpointLeavesTheDiskWhatIsKeptFree(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a disk of its own needs root")
	}
	dir := t.TempDir()
	work, upper := filepath.Join(dir, "work"), filepath.Join(dir, "upper")
	if err := errors.Join(os.Mkdir(work, 0o700), os.Mkdir(upper, 0o755), os.WriteFile(filepath.Join(upper, "sparse"), nil, 0o600), os.Truncate(filepath.Join(upper, "sparse"), 1<<40)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", work, "tmpfs", 0, "size=20m"); err != nil {
		t.Skipf("no disk of its own here: %v", err)
	}
	defer func() { _ = unix.Unmount(work, unix.MNT_DETACH) }()
	left := func() int64 {
		t.Helper()
		var fs unix.Statfs_t
		if err := unix.Statfs(work, &fs); err != nil {
			t.Fatal(err)
		}
		return int64(fs.Bavail) * fs.Bsize
	}
	before := left()
	if err := SaveFiles(t.Context(), work, upper); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v", err)
	}
	if after := left(); after < before-1<<20 {
		t.Errorf("%d bytes were written of what cannot fit", before-after)
	}
	if err := os.Remove(filepath.Join(work, rootDiff)); err != nil {
		t.Fatal(err)
	}
	images := filepath.Join(work, ImagesDir)
	if err := errors.Join(os.Mkdir(images, 0o700), os.WriteFile(filepath.Join(images, "pages-1.img"), make([]byte, 15<<20), 0o600), os.WriteFile(filepath.Join(work, rootDiff), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := Pack(t.Context(), work, &Config{}, &specs.Spec{}, filepath.Join(work, "c.tar")); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v", err)
	}
}
