package native

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/rowsize"
)

// canary is a folder of the host that nothing of a container may reach.
type canary struct{ dir, before string }

func newCanary(t *testing.T) *canary {
	t.Helper()
	c := &canary{dir: t.TempDir()}
	for _, name := range []string{"null", "console", "ptmx", "file"} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte("canary"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	c.before = c.state(t)
	return c
}

// state is all that could change of it, and the host's settings that an attack of this kind aims at.
func (c *canary) state(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(c.dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %d:%d %v\n", path, info.Mode(), st.Uid, st.Gid, info.ModTime())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			fmt.Fprintf(&b, "%s %v\n", data, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname"} {
		data, err := os.ReadFile(file)
		fmt.Fprintf(&b, "%s %q %v\n", file, data, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, c.dir) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (c *canary) unchanged(t *testing.T) {
	t.Helper()
	if now := c.state(t); now != c.before {
		t.Errorf("the host was\n%s\nand is\n%s", c.before, now)
	}
}

// shapes are what an image has in the place of a folder or device.
func shapes(target string) []tar.Header {
	link := func(to string) tar.Header { return tar.Header{Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777} }
	return []tar.Header{
		link(target),
		link("../../../../../../.." + target),
		link("/proc/1/root" + target),
		link("/proc/self/fd/7" + target),
		link("/no/such/place"),
		{Typeflag: tar.TypeFifo, Mode: 0o666},
		{Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5, Mode: 0o666}, // endless
		{Typeflag: tar.TypeReg, Mode: 0o644},
	}
}

// hostileImage is the bench's with the entries over it.
func (b *bench) hostileImage(t *testing.T, tag string, entries map[string]tar.Header) engine.ImageRef {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for name, entry := range entries {
		entry.Name = name
		if err := w.WriteHeader(&entry); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ref := b.push(t, tag, busyboxLayer(t), layer.Bytes())
	image, err := b.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return engine.ImageRef{Ref: ref, ID: image.ID}
}

// systemPaths says what the paths are that a runtime makes, and that what is masked and read-only is that of the real /proc.
const systemPaths = `stat -c '%F %t:%T' /dev/null /dev/zero /dev/tty; stat -f -c %T /dev /dev/pts /dev/shm /proc /sys
readlink /dev/ptmx; readlink /dev/fd; readlink /dev/stdout; cat /proc/1/comm; wc -c < /proc/meminfo; ls /sys/firmware | wc -l; exec 2>&1
(echo x > /proc/sys/kernel/core_pattern); mkdir /sys/fs/cgroup/memory/x || mkdir /sys/fs/cgroup/x; true`

// An image whose /dev, /proc and /sys, or what is in them, are something else gets the real ones, with their masks.
//
// Rows: S03, S04, S62 (part)
func TestAnImagesOwnSystemFolders(t *testing.T) {
	b := serving(t)
	host := newCanary(t)
	pod, spec := b.runPod(t)
	confined := func(name string, image engine.ImageRef) *engine.ContainerSpec {
		s := b.containerSpec(t, pod, spec, name, "sleep 1000")
		if image.ID != "" {
			s.Image = image
		}
		s.Security.MaskedPaths, s.Security.ReadonlyPaths = []string{"/proc/meminfo", "/sys/firmware"}, []string{"/proc/sys"}
		return s
	}
	start := func(s *engine.ContainerSpec) (engine.ContainerID, error) {
		st, err := b.CreateContainer(t.Context(), s)
		if err != nil {
			return "", err
		}
		_, err = b.StartContainer(t.Context(), st.ID, s)
		return st.ID, err
	}
	plain, err := start(confined("plain", engine.ImageRef{}))
	if err != nil {
		t.Fatal(err)
	}
	want := b.sh(t, plain, systemPaths)
	for _, part := range []string{"character special file 1:3\n", "devpts\n", "proc\n", "sysfs\n", "sleep\n0\n0\n", "core_pattern: Read-only file system", "/x': Read-only file system"} {
		if !strings.Contains(want, part) {
			t.Fatalf("a plain container has %q, and no %q", want, part)
		}
	}
	inside := []string{"dev/null", "dev/console", "dev/ptmx", "dev/pts", "dev/shm", "proc/self", "proc/sys", "proc/meminfo", "sys/fs", "sys/firmware"}
	all := shapes(host.dir)
	for i, shape := range all {
		entries := map[string]tar.Header{"dev": shape, "proc": shape, "sys": shape}
		if i%4 == 3 { // in two of them what is in the folders, each of a shape of its own
			clear(entries)
			for j, name := range inside {
				entries[name] = all[(i+j)%len(all)]
			}
		}
		id, err := start(confined(fmt.Sprintf("c%d", i), b.hostileImage(t, fmt.Sprintf("hostile:%d", i), entries)))
		if err != nil {
			t.Errorf("%+v: %v", entries, err)
			continue
		}
		if got := b.sh(t, id, systemPaths); got != want {
			t.Errorf("%+v: %q, want %q", entries, got, want)
		}
	}
	// A volume in the place of /proc would take the masks.
	for i, path := range []string{"/proc", "/proc/self", "/proc/sys"} {
		s := confined(fmt.Sprintf("volume%d", i), engine.ImageRef{})
		s.Mounts = []engine.Mount{{ContainerPath: path, HostPath: host.dir}}
		if _, err := start(s); err == nil {
			t.Errorf("a volume over %s is mounted", path)
		}
	}
	b.removePod(t, pod)
	host.unchanged(t)
}

// raceRounds is how often a race is run; `make counts` runs it more often.
func raceRounds() int { return rowsize.Of(15, 2000) }

// A container's /dev is a volume that another container swaps links in while it is masked and given its terminal: it starts
// or it does not, but nothing is written or mounted through the links.
//
// Rows: S07
func TestDevicesThatAreRaced(t *testing.T) {
	b := serving(t)
	host := newCanary(t)
	dev, pts := t.TempDir(), t.TempDir()
	// A volume at /dev hides the container's own terminals: it has to bring some, as the host's /dev does.
	terminals := filepath.Join(dev, "pts")
	if err := os.Mkdir(terminals, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("devpts", terminals, "devpts", 0, "newinstance,ptmxmode=0666"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(terminals, unix.MNT_DETACH) })
	pod, spec := b.runPod(t)
	try := func(name, path, volume string, tty bool) error {
		s := b.containerSpec(t, pod, spec, name, "sleep 1000")
		s.TTY = tty
		s.Security.MaskedPaths, s.Security.ReadonlyPaths = []string{"/proc/meminfo", "/proc/keys", "/proc/timer_list", "/sys/firmware"}, []string{"/proc/sys", "/proc/sysrq-trigger"}
		s.Mounts = []engine.Mount{{ContainerPath: path, HostPath: volume}}
		st, err := b.CreateContainer(t.Context(), s)
		if err == nil {
			_, err = b.StartContainer(t.Context(), st.ID, s)
		}
		if st.ID != "" {
			if err := b.RemoveContainer(t.Context(), st.ID); err != nil {
				t.Error(err)
			}
		}
		return err
	}
	// What a container starts with: it is there between two swaps.
	good := map[string]func(path string) error{
		"null":    func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
		"ptmx":    func(path string) error { return os.Symlink("pts/ptmx", path) },
		"console": func(path string) error { return os.WriteFile(path, nil, 0o666) },
	}
	for name, put := range good {
		if err := put(filepath.Join(dev, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tty := range []bool{false, true} {
		if err := try(fmt.Sprintf("undisturbed-%v", tty), "/dev", dev, tty); err != nil {
			t.Fatalf("undisturbed, with a terminal %v: %v", tty, err)
		}
	}
	stop := make(chan struct{})
	var racers sync.WaitGroup
	for name, put := range good {
		for _, dir := range []string{dev, pts} {
			path, aside := filepath.Join(dir, name), filepath.Join(dir, name+".aside")
			targets := []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/root" + filepath.Join(host.dir, name), "/proc/self/attr/exec"}
			racers.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Microsecond):
					}
					// The runtime may have taken away what was there; every second swap puts back what the one before took.
					if i%2 == 0 {
						_ = os.Remove(aside)
						_ = os.Symlink(targets[i/2%len(targets)], aside)
					}
					if unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE) != nil {
						_ = put(path)
					}
				}
			})
		}
	}
	rounds, started := 0, map[string]int{}
	// On until some got past the swaps: where all are refused nothing was raced.
	for ; rounds < raceRounds() || rounds < 20*raceRounds() && started["/dev"] == 0; rounds++ {
		path, volume := "/dev", dev
		if rounds%3 == 0 {
			path, volume = "/dev/pts", pts
		}
		if try(fmt.Sprintf("c%d", rounds), path, volume, rounds%2 == 0) != nil {
			continue
		}
		started[path]++
		if out, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || !strings.Contains(host.before, fmt.Sprintf("%q", out)) {
			t.Fatalf("round %d: core_pattern is %q, %v", rounds, out, err)
		}
	}
	close(stop)
	racers.Wait()
	t.Logf("%d rounds, started: %v", rounds, started)
	if started["/dev"] == 0 || started["/dev/pts"] == 0 {
		t.Error("too few started")
	}
	b.removePod(t, pod)
	host.unchanged(t)
}

// What is passed to a container's first process in messages of limited size is passed whole, or its making fails by name.
//
// Rows: S58
func TestASpecTooLargeForItsParts(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("it is there"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Four lists of more than 64 KiB each.
	s := b.containerSpec(t, pod, spec, "large", "sleep 1000")
	long := strings.Repeat("x", 200)
	for i := range 350 {
		s.Mounts = append(s.Mounts, engine.Mount{ContainerPath: fmt.Sprintf("/tmp/%s%d", long, i), HostPath: source, Readonly: true})
		s.Security.MaskedPaths = append(s.Security.MaskedPaths, fmt.Sprintf("/proc/%s%d", long, i))
		s.Env = append(s.Env, engine.EnvVar{Name: fmt.Sprintf("E%d", i), Value: []byte(long)})
		s.Security.SupplementalGroups = append(s.Security.SupplementalGroups, int64(100000+i))
	}
	s.Security.MaskedPaths = append(s.Security.MaskedPaths, "/proc/meminfo")
	st, err := b.CreateContainer(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.StartContainer(t.Context(), st.ID, s); err != nil {
		t.Fatal(err)
	}
	got := b.sh(t, st.ID, `cat /tmp/*/file | grep -o there | wc -l; wc -c < /proc/meminfo; env | grep -c "^E[0-9]*=x"; id -G | wc -w`)
	if fields := strings.Fields(got); !slices.Equal(fields, []string{"350", "0", "350", "351"}) {
		t.Errorf("mounts, bytes of meminfo, variables and groups: %v", fields)
	}
	// The one message that has a limit: the identities of a user namespace.
	var mappings []engine.IDMapping
	for i := range uint32(5000) {
		mappings = append(mappings, engine.IDMapping{HostID: 100000 + 2*i, ContainerID: i, Length: 1})
	}
	user := b.podSpec(t, func(p *engine.PodSpec) {
		p.Namespaces.User = &engine.UserNamespace{UIDs: mappings, GIDs: mappings}
	})
	if id, err := b.CreatePod(t.Context(), user); err == nil {
		if _, err = b.StartPod(t.Context(), id, user); err == nil {
			t.Error("a user namespace of 5000 ranges was made")
		}
		b.removePod(t, id)
	}
	if got := b.sh(t, st.ID, "echo alive"); got != "alive\n" {
		t.Errorf("the other pod: %q", got)
	}
	b.removePod(t, pod)
}

// What watches a container is outside of its limits and those of its pod: it lives to tell of each end by them.
//
// Rows: S62
func TestALimitDoesNotHitTheMonitor(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	watch := b.monitorPID(t, pod)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", watch))
	if err != nil || strings.Contains(string(groups), testCgroup) || !strings.Contains(string(groups), b.Engine.cgroups.Monitors()) {
		t.Errorf("the monitor is in %s, %v", groups, err)
	}
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", watch))
	if want := fmt.Sprint(max(-999, b.host.OOMScoreAdjMin)); err != nil || strings.TrimSpace(string(score)) != want {
		t.Errorf("its oom_score_adj is %s, want %s, %v", score, want, err)
	}
	for i := range rowsize.Of(3, 500) {
		s := b.containerSpec(t, pod, spec, fmt.Sprintf("c%d", i), "")
		s.Command = []string{"sh", "-c", "exec tail /dev/zero"}
		s.Resources = engine.Resources{MemoryLimit: 16 << 20, MemorySwap: 16 << 20}
		st, err := b.CreateContainer(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.StartContainer(t.Context(), st.ID, s); err != nil {
			t.Fatal(err)
		}
		if st := b.exited(t, st.ID); st.Reason != engine.ReasonOOMKilled || st.ExitCode != 137 {
			t.Errorf("%+v", st)
		}
	}
	if !runs(watch) || b.monitorPID(t, pod) != watch {
		t.Error("the monitor died")
	}
	b.removePod(t, pod)
}
