package rootfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/mounttree"
	"crishim/internal/pause"
	"crishim/internal/userns"
)

func store(t *testing.T) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	s, err := Open(filepath.Join(dir, "state"), filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mounttree.Unmount(s.run); err != nil {
			t.Error(err)
		}
	})
	return s
}

// layer makes a folder of files by name and content; "link:TARGET" makes a link, a name that ends in "/" a folder.
func layer(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		parent := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			parent = path
		}
		if err := os.MkdirAll(parent, 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		target, link := strings.CutPrefix(text, "link:")
		switch {
		case link:
			err = os.Symlink(target, path)
		case parent != path:
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

func owner(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid, st.Gid
}

func idmap(t *testing.T) *Idmap {
	t.Helper()
	m := []userns.Mapping{{Outside: 100000, Length: 65536}}
	p, err := userns.Start(m, m, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	pin := filepath.Join(t.TempDir(), "user")
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(p.Path("user"), pin, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(pin, unix.MNT_DETACH) })
	ids := []engine.IDMapping{{HostID: 100000, Length: 65536}}
	return &Idmap{Namespace: &engine.UserNamespace{UIDs: ids, GIDs: ids}, Path: pin}
}

func mountsIn(t *testing.T, dir string) int {
	t.Helper()
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Rows: S59 (part), S61 (part)
func TestARootIsTheLayersWithAWritableOneOnTop(t *testing.T) {
	s := store(t)
	low := layer(t, map[string]string{"a": "low", "b": "low", "dir/x": "low"})
	high := layer(t, map[string]string{"a": "high"})
	for name, m := range map[string]*Idmap{"host's users": nil, "own users": idmap(t)} {
		t.Run(name, func(t *testing.T) {
			root, err := s.Mount(t.Context(), "c", &Layers{Dirs: []string{low, high}, Idmap: m})
			if err != nil {
				t.Fatal(err)
			}
			if a, b := read(t, filepath.Join(root.Path, "a")), read(t, filepath.Join(root.Path, "b")); a != "high" || b != "low" {
				t.Errorf("a is %q, b is %q", a, b)
			}
			want := uint32(0)
			if m != nil {
				want = 100000
			}
			for _, path := range []string{".", "b", "dir/x", "etc/hosts", "dev"} {
				if uid, gid := owner(t, filepath.Join(root.Path, path)); uid != want || gid != want {
					t.Errorf("%s is %d:%d's", path, uid, gid)
				}
			}
			if err := os.WriteFile(filepath.Join(root.Path, "b"), []byte("written"), 0o644); err != nil {
				t.Fatal(err)
			}
			if up, below := read(t, filepath.Join(root.Upper, "b")), read(t, filepath.Join(low, "b")); up != "written" || below != "low" {
				t.Errorf("the writable layer has %q, the image %q", up, below)
			}
			if uid, _ := owner(t, filepath.Join(root.Upper, "b")); uid != want {
				t.Errorf("what was copied up is %d's", uid)
			}
			if again, err := s.Mount(t.Context(), "c", &Layers{Dirs: []string{low, high}, Idmap: m}); err != nil || again != root {
				t.Errorf("again: %v, %v", again, err)
			}
			if got, err := s.Get("c"); err != nil || got != root {
				t.Errorf("%v, %v", got, err)
			}
			if st, err := os.Stat(filepath.Dir(root.Path)); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("others can pass the folder above the root: %v, %v", st, err)
			}
			// The writable layer survives an unmount, as it does a reboot.
			if err := s.Unmount(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get("c"); !errdefs.IsNotFound(err) {
				t.Errorf("%v", err)
			}
			if root, err = s.Mount(t.Context(), "c", &Layers{Dirs: []string{low, high}, Idmap: m}); err != nil {
				t.Fatal(err)
			}
			if b := read(t, filepath.Join(root.Path, "b")); b != "written" {
				t.Errorf("b is %q", b)
			}
			for range 2 {
				if err := s.Remove(t.Context(), "c"); err != nil {
					t.Fatal(err)
				}
			}
			if n := mountsIn(t, s.run); n != 1 {
				t.Errorf("%d mounts are left", n-1)
			}
			if c, p, err := s.Names(); err != nil || len(c)+len(p) != 0 {
				t.Errorf("left %v, %v, %v", c, p, err)
			}
		})
	}
}

func TestAnImagesEtcKeepsItsModeAndOwner(t *testing.T) {
	s := store(t)
	low := layer(t, map[string]string{"etc/passwd": "x", "a": "low"})
	etc := filepath.Join(low, "etc")
	if err := os.Lchown(etc, 1000, 1001); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(etc, 0o770); err != nil {
		t.Fatal(err)
	}
	high := layer(t, map[string]string{"a": "high"})
	for name, m := range map[string]*Idmap{"host's users": nil, "own users": idmap(t)} {
		t.Run(name, func(t *testing.T) {
			root, err := s.Mount(t.Context(), "c", &Layers{Dirs: []string{low, high}, Idmap: m})
			if err != nil {
				t.Fatal(err)
			}
			base := uint32(0)
			if m != nil {
				base = 100000
			}
			if uid, gid := owner(t, filepath.Join(root.Path, "etc")); uid != base+1000 || gid != base+1001 {
				t.Errorf("/etc is %d:%d's, want %d:%d", uid, gid, base+1000, base+1001)
			}
			if info, err := os.Stat(filepath.Join(root.Path, "etc")); err != nil || info.Mode().Perm() != 0o770 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			if got := read(t, filepath.Join(root.Path, "etc/passwd")); got != "x" {
				t.Errorf("its file is %q", got)
			}
			if err := s.Remove(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAnOldKernelsMountDoesTheSame(t *testing.T) {
	s := store(t)
	dirs := []string{layer(t, map[string]string{"a": "low"}), layer(t, map[string]string{"b": "high"})}
	for name, m := range map[string]*Idmap{"host's users": nil, "own users": idmap(t)} {
		lowers, err := openLowers(dirs, m)
		if err != nil {
			t.Fatal(err)
		}
		base := t.TempDir()
		target, upper, work := filepath.Join(base, "t"), filepath.Join(base, "u"), filepath.Join(base, "w")
		for _, dir := range []string{target, upper, work} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		o := overlay{lowers: lowers, upper: upper, work: work, scratch: filepath.Join(s.run, "lower")}
		if err := o.mountOld(target); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		lowers.close()
		if a, b := read(t, filepath.Join(target, "a")), read(t, filepath.Join(target, "b")); a != "low" || b != "high" {
			t.Errorf("%s: a is %q, b is %q", name, a, b)
		}
		if uid, _ := owner(t, filepath.Join(target, "a")); (uid == 100000) != (m != nil) {
			t.Errorf("%s: a is %d's", name, uid)
		}
		if err := mounttree.Unmount(base); err != nil {
			t.Error(err)
		}
		if n := mountsIn(t, s.run); n != 1 {
			t.Errorf("%s: %d mounts of layers are left", name, n-1)
		}
	}
}

func TestAnImageOfManyLayersIsMounted(t *testing.T) {
	s := store(t)
	var dirs []string
	for i := range 300 {
		dirs = append(dirs, layer(t, map[string]string{strconv.Itoa(i): "x"}))
	}
	root, err := s.Mount(t.Context(), "c", &Layers{Dirs: dirs})
	if errdefs.IsFailedPrecondition(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 299} {
		if text := read(t, filepath.Join(root.Path, strconv.Itoa(i))); text != "x" {
			t.Errorf("layer %d: %q", i, text)
		}
	}
	if _, err := s.Mount(t.Context(), "d", &Layers{Dirs: []string{"/no/such/layer"}}); err == nil {
		t.Error("an absent layer was mounted")
	}
	for _, id := range []engine.ContainerID{"c", "d"} {
		if err := s.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// Rows: S02 (part), S03 (part), S04 (part)
func TestAnImageCannotReplaceWhatTheRuntimeMountsOn(t *testing.T) {
	s := store(t)
	canary := t.TempDir()
	hostile := layer(t, map[string]string{"dev": "link:" + canary, "proc": "link:/tmp", "sys": "link:../..", "etc": "link:" + canary})
	files := layer(t, map[string]string{"etc/hosts": "link:" + canary + "/hosts", "etc/resolv.conf": "link:/proc/1/root/x", "etc/hostname": "link:../../x", "etc/mtab": "x"})
	for name, dir := range map[string]string{"folders": hostile, "files": files} {
		root, err := s.Mount(t.Context(), engine.ContainerID(name), &Layers{Dirs: []string{dir}})
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"dev", "dev/pts", "dev/shm", "proc", "sys", "etc"} {
			if st, err := os.Lstat(filepath.Join(root.Path, path)); err != nil || !st.IsDir() {
				t.Errorf("%s: /%s is %v, %v", name, path, st, err)
			}
		}
		for _, path := range []string{"etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/console"} {
			if st, err := os.Lstat(filepath.Join(root.Path, path)); err != nil || !st.Mode().IsRegular() {
				t.Errorf("%s: /%s is %v, %v", name, path, st, err)
			}
		}
		if err := s.Remove(t.Context(), engine.ContainerID(name)); err != nil {
			t.Error(err)
		}
	}
}

// Rows: S01 (part), S59 (part)
func TestAnImageVolumeIsAFolderOfItsImageAndReadOnly(t *testing.T) {
	s := store(t)
	canary := t.TempDir()
	low := layer(t, map[string]string{"dir/x": "low", "file": "x", "abs": "link:/dir", "up": "link:../../../../dir", "out": "link:" + canary, "proc": "link:/proc/self/root"})
	for name, m := range map[string]*Idmap{"host's users": nil, "own users": idmap(t)} {
		t.Run(name, func(t *testing.T) {
			for n, sub := range []string{"", "dir", "abs", "up", "../../dir"} {
				path, err := s.MountImage(t.Context(), "c", n, &ImageVolume{Layers: Layers{Dirs: []string{low}, Idmap: m}, SubPath: sub, Options: []string{"noexec"}})
				if err != nil {
					t.Fatal(sub, err)
				}
				file := filepath.Join(path, "x")
				if sub == "" {
					file = filepath.Join(path, "dir", "x")
				}
				if text := read(t, file); text != "low" {
					t.Errorf("%s: %q", sub, text)
				}
				if uid, _ := owner(t, file); (uid == 100000) != (m != nil) {
					t.Errorf("%s: %d's", sub, uid)
				}
				if err := os.WriteFile(file, nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("%s can be written: %v", sub, err)
				}
				var fs unix.Statfs_t
				if err := unix.Statfs(path, &fs); err != nil || fs.Flags&unix.ST_NOEXEC == 0 {
					t.Errorf("%s is not noexec: %v", sub, err)
				}
			}
			for _, sub := range []string{"none", "file", "out", "dir/x/y"} {
				if path, err := s.MountImage(t.Context(), "c", 9, &ImageVolume{Layers: Layers{Dirs: []string{low}, Idmap: m}, SubPath: sub}); !errdefs.IsInvalidArgument(err) {
					t.Errorf("%s: %s, %v", sub, path, err)
				}
			}
			if err := s.Remove(t.Context(), "c"); err != nil {
				t.Error(err)
			}
			if n := mountsIn(t, s.run); n != 1 {
				t.Errorf("%d mounts are left", n-1)
			}
		})
	}
}

// Rows: S11
func TestUserFilesAreRegularFilesOfTheImage(t *testing.T) {
	dir := layer(t, map[string]string{"etc/passwd": "link:/real", "real": "root", "etc/group": "link:../../../../../group", "group": "g"})
	if p, g, err := UserFiles(dir); err != nil || string(p) != "root" || string(g) != "g" {
		t.Errorf("%q, %q, %v", p, g, err)
	}
	if p, g, err := UserFiles(layer(t, nil)); err != nil || len(p)+len(g) != 0 {
		t.Errorf("absent: %q, %q, %v", p, g, err)
	}
	if p, _, err := UserFiles(layer(t, map[string]string{"etc/passwd": "link:/etc/shadow-of-the-host"})); err != nil || len(p) != 0 {
		t.Errorf("dangling: %q, %v", p, err)
	}
	start := time.Now()
	for name, place := range map[string]func(path string) error{
		"a folder": func(path string) error { return os.Mkdir(path, 0o755) },
		"a FIFO":   func(path string) error { return unix.Mkfifo(path, 0o644) },
		"a socket": func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) },
		"itself":   func(path string) error { return os.Symlink("passwd", path) },
		"magic":    func(path string) error { return os.Symlink("/proc/self/exe", path) },
		"gigabytes": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, 4<<30))
		},
	} {
		dir := layer(t, map[string]string{"etc/": ""})
		if err := place(filepath.Join(dir, "etc", "passwd")); err != nil {
			t.Fatal(name, err)
		}
		p, _, err := UserFiles(dir)
		if name == "magic" {
			if err != nil || len(p) != 0 {
				t.Errorf("%s: %q, %v", name, p, err)
			}
		} else if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %q, %v", name, p, err)
		}
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

// Rows: S15 (part)
func TestAPodsFilesHaveExactlyTheirLines(t *testing.T) {
	s := store(t)
	ids := []engine.IDMapping{{HostID: 100000, Length: 65536}}
	spec := &engine.PodSpec{Hostname: "my-pod", DNS: &engine.DNS{Servers: []string{"10.0.0.1", "::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}},
		Namespaces: engine.Namespaces{User: &engine.UserNamespace{UIDs: ids, GIDs: ids}}}
	for range 2 {
		p, err := s.MakePod(t.Context(), "pod", spec, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, p.ResolvConf); got != "search a.b c\nnameserver 10.0.0.1\nnameserver ::1\noptions ndots:5\n" {
			t.Errorf("resolv.conf %q", got)
		}
		if got := read(t, p.Hostname); got != "my-pod\n" {
			t.Errorf("hostname %q", got)
		}
		if got := read(t, p.Hosts); !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n::1\tlocalhost ") {
			t.Errorf("hosts %q", got)
		}
		for _, path := range []string{p.Hosts, p.Shm, filepath.Dir(p.Shm)} {
			if uid, gid := owner(t, path); uid != 100000 || gid != 100000 {
				t.Errorf("%s is %d:%d's", path, uid, gid)
			}
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(p.Shm, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Blocks*uint64(fs.Bsize) != 64<<20 || fs.Flags&unix.ST_NOEXEC == 0 {
			t.Errorf("/dev/shm: %+v, %v", fs, err)
		}
		if err := unix.Statfs(p.Hosts, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Blocks*uint64(fs.Bsize) > 512<<10 {
			t.Errorf("/etc/hosts can fill the node: %+v, %v", fs, err)
		}
	}
	// One of a version whose files lay in the folder.
	shm := filepath.Join(s.pod("old"), "shm")
	if err := os.MkdirAll(shm, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("shm", shm, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]*engine.PodSpec{
		"hostname":   {Hostname: "a\nb"},
		"server":     {Hostname: "a", DNS: &engine.DNS{Servers: []string{"1.1.1.1\noptions x"}}},
		"search":     {Hostname: "a", DNS: &engine.DNS{Searches: []string{"a b"}}},
		"option":     {Hostname: "a", DNS: &engine.DNS{Options: []string{"a\u0085b"}}},
		"empty word": {Hostname: "a", DNS: &engine.DNS{Options: []string{""}}},
	} {
		if _, err := s.MakePod(t.Context(), "bad", bad, ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	node, err := s.MakePod(t.Context(), "node", &engine.PodSpec{Namespaces: engine.Namespaces{Network: engine.NamespaceNode, IPC: engine.NamespaceNode}}, "")
	if err != nil || node.Shm != "" || read(t, node.Hosts) != read(t, "/etc/hosts") {
		t.Errorf("%+v, %v", node, err)
	}
	for _, id := range []engine.PodID{"pod", "bad", "node", "old", "none"} {
		if err := s.RemovePod(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if n := mountsIn(t, s.run); n != 1 {
		t.Errorf("%d mounts are left", n-1)
	}
}

func TestThePauseRootHoldsTheProgramAlone(t *testing.T) {
	s := store(t)
	var root string
	for range 2 {
		var err error
		if root, err = s.PauseRoot(); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "dev pause proc sys" {
		t.Errorf("it holds %s", got)
	}
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("it can be written: %v", err)
	}
}

// After a boot many pods ask for it at once: it is made once, and who has it finds the program whole.
func TestThePauseRootIsMadeOnce(t *testing.T) {
	s := store(t)
	for round := range 50 {
		var group sync.WaitGroup
		begin := make(chan struct{})
		for range 8 {
			group.Go(func() {
				<-begin
				root, err := s.PauseRoot()
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
				program, err := os.ReadFile(filepath.Join(root, "pause"))
				if err != nil || !bytes.Equal(program, pause.Program()) {
					t.Errorf("round %d: the program has %d bytes, %v", round, len(program), err)
				}
			})
		}
		close(begin)
		group.Wait()
		if n := mountsIn(t, s.run); n != 2 {
			t.Errorf("round %d: there are %d mounts of it", round, n-1)
		}
		if t.Failed() {
			return
		}
		// As a boot leaves it, and a crash while it was made.
		target := filepath.Join(s.run, "pause")
		if err := errors.Join(mounttree.Unmount(target), os.Remove(target)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.state, "pause", "pause.part"), []byte("part"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Rows: S13 (part), S28 (part)
func TestRemovalGoesNoFurtherThanTheContainer(t *testing.T) {
	s := store(t)
	canary := layer(t, map[string]string{"kept": "x"})
	root, err := s.Mount(t.Context(), "c", &Layers{Dirs: []string{layer(t, nil)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(canary, filepath.Join(root.Path, "link")); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(root.Upper, "mnt")
	if err := errors.Join(os.Mkdir(inside, 0o755), unix.Mount(canary, inside, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	// A file that is in use keeps nothing from being unmounted.
	used, err := os.Create(filepath.Join(root.Path, "used"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = used.Close() }()
	// What somebody mounted on the root, below it and beside it goes too.
	beside := filepath.Join(filepath.Dir(root.Path), "beside")
	below := filepath.Join(root.Path, "below")
	if err := errors.Join(os.Mkdir(beside, 0o755), os.Mkdir(below, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{beside, below, root.Path, beside} {
		if err := unix.Mount(canary, target, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if n := mountsIn(t, filepath.Dir(root.Path)); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
	if text := read(t, filepath.Join(canary, "kept")); text != "x" {
		t.Errorf("the removal went out: %q", text)
	}
	for _, id := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("a", 129)} {
		if _, err := s.Mount(t.Context(), engine.ContainerID(id), &Layers{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", id, err)
		}
		if err := s.Remove(t.Context(), engine.ContainerID(id)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", id, err)
		}
		if err := s.RemovePod(t.Context(), engine.PodID(id)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// Rows: S59 (part)
func TestPropagationThatTheHostDoesNotHaveIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "made", "here")
	for _, c := range []struct {
		host         uintptr
		follow, both bool
	}{{unix.MS_PRIVATE, false, false}, {unix.MS_SHARED, true, true}, {unix.MS_SLAVE, true, false}} {
		if c.host == unix.MS_SLAVE {
			// A slave needs a peer to follow.
			peer := t.TempDir()
			if err := unix.Mount(dir, peer, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(peer, unix.MNT_DETACH) })
		}
		if err := unix.Mount("", dir, "", c.host, ""); err != nil {
			t.Fatal(err)
		}
		for propagation, ok := range map[engine.Propagation]bool{engine.PropagationPrivate: true, engine.PropagationHostToContainer: c.follow, engine.PropagationBidirectional: c.both} {
			err := PrepareSources([]engine.Mount{{HostPath: path, ContainerPath: "/x", Propagation: propagation}}, "")
			if ok && err != nil || !ok && !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s on a mount of %#x: %v", propagation, c.host, err)
			}
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// What an image has in a volume is copied only where that leaves enough of the disk, and not for a caller that is gone.
func TestAVolumeOfTheImageFillsNoDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Open(filepath.Join(dir, "state"), filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Remove(context.WithoutCancel(t.Context()), "c")
		_ = unix.Unmount(s.run, unix.MNT_DETACH)
	})
	l := &Layers{Dirs: []string{layer(t, map[string]string{"large/file": strings.Repeat("x", 5<<20), "small/file": "x"})}}
	if _, err := s.Mount(t.Context(), "c", l); err != nil {
		t.Fatal(err)
	}
	if _, err := s.MakeVolume(t.Context(), "c", 0, "/large", l); !errdefs.IsResourceExhausted(err) {
		t.Errorf("5 MiB on a disk of 4: %v", err)
	}
	volume, err := s.MakeVolume(t.Context(), "c", 1, "/small", l)
	if err != nil {
		t.Fatalf("after it: %v", err)
	}
	if got := read(t, filepath.Join(volume, "file")); got != "x" {
		t.Errorf("the small volume has %q", got)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.takeRoom(gone, volume, volume); !errors.Is(err, context.Canceled) {
		t.Errorf("for a caller that is gone: %v", err)
	}
}
