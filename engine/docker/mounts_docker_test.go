package docker

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// tmpfs is a mount at dir until the test ends.
func tmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// sharedVolume is a folder that is a shared mount, with another mount "inside".
func sharedVolume(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volume")
	tmpfs(t, dir)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	tmpfs(t, filepath.Join(dir, "inside"))
	return dir
}

// mountsBelow are the mount points below dir.
func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	return found
}

func recursiveReadonly(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	volume := sharedVolume(t)
	spec := b.containerSpec(pod, "/bin/sleep", "1000")
	spec.Mounts = []engine.Mount{
		{ContainerPath: "/rro", HostPath: volume, Readonly: true, RecursiveReadonly: true, Propagation: engine.PropagationPrivate},
		{ContainerPath: "/ro", HostPath: volume, Readonly: true, Propagation: engine.PropagationPrivate},
	}
	made := b.created(t, spec)
	if below := mountsBelow(t, b.e.mounts.dir); len(below) < 2 && !b.e.current.Load().facts.recursiveReadonly[""] {
		t.Errorf("prepared: %v", below)
	}
	if _, err := b.e.StartContainer(t.Context(), made.ID, spec); err != nil {
		t.Fatal(err)
	}
	if below := mountsBelow(t, b.e.mounts.dir); len(below) > 0 {
		t.Errorf("still on the host after the start: %v", below)
	}
	check := func() {
		t.Helper()
		b.sh(t, made.ID, "! echo x > /rro/x && ! echo x > /rro/inside/x && ! echo x > /ro/x && echo x > /ro/inside/x && cat /rro/inside/x")
	}
	check()
	b.kill()
	b.start()
	eventually(t, 20*time.Second, "the engine is back", func() bool {
		_, err := b.e.ContainerStatus(t.Context(), made.ID)
		return err == nil && b.sink.last().Ready
	})
	check()
	status, err := b.e.ContainerStatus(t.Context(), made.ID)
	if err != nil || status.State != engine.ContainerRunning {
		t.Errorf("%+v, %v", status, err)
	}
}

func mountOptions(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	volume := sharedVolume(t)
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(volume, "echo"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(volume, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(volume, "echo")
	spec := b.containerSpec(pod, "/bin/sleep", "1000")
	spec.Mounts = []engine.Mount{
		{ContainerPath: "/free", HostPath: volume, Propagation: engine.PropagationPrivate},
		{ContainerPath: "/noexec", HostPath: volume, Options: []string{"noexec"}, Propagation: engine.PropagationPrivate},
		{ContainerPath: "/nodev", HostPath: volume, Options: []string{"nodev"}, Propagation: engine.PropagationHostToContainer},
		{ContainerPath: "/all", HostPath: volume, Options: []string{"nodev", "noexec", "nosuid"}, Propagation: engine.PropagationBidirectional},
		{ContainerPath: "/ro", HostPath: volume, Readonly: true, Options: []string{"nosuid"}, Propagation: engine.PropagationPrivate},
		{ContainerPath: "/rro", HostPath: volume, Readonly: true, RecursiveReadonly: true, Options: []string{"noexec"}, Propagation: engine.PropagationPrivate},
		{ContainerPath: "/file", HostPath: file, Options: []string{"noexec"}, Propagation: engine.PropagationPrivate},
	}
	spec.Security.Privileged = true
	c := b.container(t, spec)
	for _, script := range []string{
		"/free/echo ok && echo x > /free/null",
		"! /noexec/echo ok && echo x > /noexec/null && echo x > /noexec/x",
		"/nodev/echo ok && ! echo x > /nodev/null",
		"! /all/echo ok && ! echo x > /all/null && echo x > /all/x",
		"/ro/echo ok && ! echo x > /ro/x && echo x > /ro/inside/x",
		"! /rro/echo ok && ! echo x > /rro/x && ! echo x > /rro/inside/x",
		"! /file ok",
	} {
		b.sh(t, c.ID, script)
	}
	flags := map[string]string{}
	for line := range strings.Lines(b.sh(t, c.ID, "cat /proc/self/mountinfo")) {
		fields := strings.Fields(line)
		flags[fields[4]] = fields[5]
	}
	for target, want := range map[string]string{"/all": "nosuid,nodev,noexec", "/ro": "nosuid", "/rro": "noexec"} {
		if !strings.Contains(flags[target], want) {
			t.Errorf("%s has %s, not %s", target, flags[target], want)
		}
	}
	// What is mounted later arrives where, and only where, that was asked for.
	tmpfs(t, filepath.Join(volume, "late"))
	if err := os.WriteFile(filepath.Join(volume, "late", "sign"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.sh(t, c.ID, "cat /nodev/late/sign && cat /all/late/sign && ! cat /noexec/late/sign && ! cat /rro/late/sign")
	// None of it is unmounted with the container.
	if err := b.e.RemoveContainer(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if below := mountsBelow(t, volume); len(below) != 2 {
		t.Errorf("the volume has %v", below)
	}
	// Docker's own check sees the host path's propagation.
	unshared := filepath.Join(t.TempDir(), "unshared")
	tmpfs(t, unshared)
	if err := unix.Mount("", unshared, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, propagation := range []engine.Propagation{engine.PropagationHostToContainer, engine.PropagationBidirectional} {
		spec := b.containerSpec(pod, "/bin/sleep", "1000")
		spec.Mounts = []engine.Mount{{ContainerPath: "/m", HostPath: unshared, Options: []string{"noexec"}, Propagation: propagation}}
		made := b.created(t, spec)
		if _, err := b.e.StartContainer(t.Context(), made.ID, spec); err == nil {
			t.Errorf("%s of a private mount is not refused", propagation)
		}
	}
}

func volumeIsFree(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	volume := filepath.Join(t.TempDir(), "volume")
	tmpfs(t, volume)
	for what, command := range map[string]string{"ended": "/bin/true", "could not start": "/absent"} {
		spec := b.containerSpec(pod, command)
		spec.Mounts = []engine.Mount{{ContainerPath: "/m", HostPath: volume, Readonly: true, RecursiveReadonly: true, Propagation: engine.PropagationPrivate}}
		made := b.created(t, spec)
		_, err := b.e.StartContainer(t.Context(), made.ID, spec)
		if (err != nil) != (command == "/absent") {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, "the process ends", func() bool { return command == "/absent" || b.sink.container(made.ID).State == engine.ContainerExited })
		if below := mountsBelow(t, b.e.mounts.dir); len(below) > 0 {
			t.Errorf("a container that %s keeps %v", what, below)
		}
	}
	never := b.containerSpec(pod, "/bin/true")
	never.Mounts = []engine.Mount{{ContainerPath: "/m", HostPath: volume, Readonly: true, Options: []string{"noexec"}, Propagation: engine.PropagationPrivate}}
	b.created(t, never)
	if below := mountsBelow(t, b.e.mounts.dir); len(below) == 0 {
		t.Error("nothing is prepared for a container that is about to be started")
	}
	if err := b.e.StopPod(t.Context(), pod.ID); err != nil {
		t.Fatal(err)
	}
	if below := mountsBelow(t, b.e.mounts.dir); len(below) > 0 {
		t.Errorf("a container that was never started keeps %v in a pod that has stopped", below)
	}
}

// needsPrepared skips where Docker mounts images itself.
func (b *bench) needsPrepared(t *testing.T) {
	t.Helper()
	if f := b.e.current.Load().facts; !f.preparesImages() {
		t.Skipf("with the storage %s image volumes are Docker's own", f.storageDriver)
	}
}

// dataImage has what is mounted by others.
func (b *bench) dataImage() engine.ImageID {
	return b.load(testImageOf{
		ref: "crishim.test/data:1",
		files: map[string]string{
			"data/one/file": "1", "data/two/file": "2", "etc/passwd": "of the image",
		},
		links: map[string]string{"data/abs": "/data/one", "data/rel": "../data/two", "data/top": "/", "data/up": "../../../../..", "data/loop": "loop", "data/proc": "/proc/self/root"},
	})
}

func imageVolume(id engine.ImageID, containerPath, sub string) engine.Mount {
	return engine.Mount{ContainerPath: containerPath, Readonly: true, Image: &engine.ImageRef{ID: id}, ImageSubPath: sub, Propagation: engine.PropagationPrivate}
}

func imageVolumes(t *testing.T, b *bench) {
	b.needsPrepared(t)
	pod, _ := b.pod(t, nil)
	image := b.dataImage()
	spec := b.containerSpec(pod, "/bin/sleep", "1000")
	spec.Mounts = []engine.Mount{imageVolume(image, "/all", ""), imageVolume(image, "/one", "data/one"), imageVolume(image, "/two", "data/two"), imageVolume(image, "/noexec", "bin")}
	spec.Mounts[3].Options = []string{"noexec"}
	c := b.container(t, spec)
	if got := b.sh(t, c.ID, "cat /one/file /two/file /all/data/one/file"); got != "121" {
		t.Errorf("read %q", got)
	}
	b.sh(t, c.ID, "! echo x > /one/x && ! echo x > /all/x && ! mkdir /all/data/d && /all/bin/busybox true && ! /noexec/busybox true")
	if below := mountsBelow(t, b.e.mounts.dir); len(below) > 0 {
		t.Errorf("still on the host after the start: %v", below)
	}
	status, err := b.e.ContainerStatus(t.Context(), c.ID)
	if err != nil || status.Spec.Labels[labelMounts] != "" || status.Spec.Labels[labelHolder] != "" {
		t.Errorf("%+v, %v", status.Spec, err)
	}
	if err := b.e.RemoveImage(t.Context(), image); !errdefs.IsFailedPrecondition(err) && !errdefs.IsConflict(err) {
		t.Errorf("removal of an image that is mounted: %v", err)
	}
	b.docker("rmi", "-f", string(image))
	if got := b.sh(t, c.ID, "cat /one/file /two/file /all/etc/passwd"); got != "12of the image" {
		t.Errorf("after a forced removal of the image: %q", got)
	}
	if err := b.e.StopContainer(t.Context(), c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if left := b.docker("ps", "-aq", "--filter", "label="+labelHolder); left == "" {
		t.Error("the image is not held by a stopped container")
	}
	if err := b.e.RemoveContainer(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if left := b.docker("ps", "-aq", "--filter", "label="+labelHolder); left != "" {
		t.Errorf("holders left behind: %s", left)
	}
}

func imageVolumeEscapes(t *testing.T, b *bench) {
	b.needsPrepared(t)
	pod, _ := b.pod(t, nil)
	image := b.dataImage()
	spec := b.containerSpec(pod, "/bin/sleep", "1000")
	spec.Mounts = []engine.Mount{
		imageVolume(image, "/abs", "data/abs"), imageVolume(image, "/rel", "data/rel"),
		imageVolume(image, "/top", "data/top"), imageVolume(image, "/up", "data/up"),
	}
	c := b.container(t, spec)
	if got := b.sh(t, c.ID, "cat /abs/file /rel/file /top/etc/passwd /up/etc/passwd"); got != "12of the imageof the image" {
		t.Errorf("read %q", got)
	}
	for _, sub := range []string{"absent", "data/one/file", "data/loop", "data/proc", "data/one/../../../../absent"} {
		spec := b.containerSpec(pod, "/bin/sleep", "1000")
		spec.Mounts = []engine.Mount{imageVolume(image, "/m", sub)}
		if _, err := b.e.CreateContainer(t.Context(), spec); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", sub, err)
		}
	}
}

func failingCreate(t *testing.T, b *bench) {
	pod, _ := b.pod(t, nil)
	image, volume := b.dataImage(), t.TempDir()
	for what, change := range map[string]func(*engine.ContainerSpec){
		"a missing folder": func(s *engine.ContainerSpec) { s.Mounts[1].ImageSubPath = "absent" },
		"a missing image":  func(s *engine.ContainerSpec) { s.Mounts[1].Image.ID = "sha256:" + testContainer },
		"Docker refuses it": func(s *engine.ContainerSpec) {
			s.Devices, s.Handler = nil, "absent"
		},
	} {
		spec := b.containerSpec(pod, "/bin/sleep", "1000")
		spec.Mounts = []engine.Mount{{ContainerPath: "/m", HostPath: volume, Options: []string{"nosuid"}, Propagation: engine.PropagationPrivate}, imageVolume(image, "/i", "data")}
		change(spec)
		if _, err := b.e.CreateContainer(t.Context(), spec); err == nil {
			t.Errorf("%s: no error", what)
		}
		if below := mountsBelow(t, b.e.mounts.dir); len(below) > 0 {
			t.Errorf("%s leaves %v", what, below)
		}
		if left := b.docker("ps", "-aq", "--filter", "label="+labelHolder); left != "" {
			t.Errorf("%s leaves the holder %s", what, left)
		}
	}
}

func sweptMounts(t *testing.T, b *bench) {
	b.needsPrepared(t)
	pod, _ := b.pod(t, nil)
	image, volume := b.dataImage(), sharedVolume(t)
	mounts := []engine.Mount{
		{ContainerPath: "/rro", HostPath: volume, Readonly: true, RecursiveReadonly: true, Options: []string{"nosuid"}, Propagation: engine.PropagationPrivate},
		imageVolume(image, "/i", "data/one"),
	}
	spec := b.containerSpec(pod, "/bin/sleep", "1000")
	spec.Mounts = mounts
	kept := b.created(t, spec)
	lost := b.containerSpec(pod, "/bin/sleep", "1000")
	lost.Mounts = mounts
	forgotten := b.created(t, lost)
	// What a crash between the mounts and the create leaves, and one between two steps of a clean-up.
	crashed, plain := rand.Text(), rand.Text()
	if err := b.e.mounts.open(crashed); err != nil {
		t.Fatal(err)
	}
	if err := b.e.mounts.bind(crashed, 0, &engine.Mount{HostPath: volume, Propagation: engine.PropagationBidirectional}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.e.mounts.path(plain), 0o700); err != nil {
		t.Fatal(err)
	}
	b.docker("create", "--name", holderPrefix+crashed+"-0", "--label", labelHolder+"="+b.e.opts.RootDir, string(image), "/")
	stranger := b.docker("create", "--name", "stranger", "--label", labelHolder+"="+b.e.opts.RootDir, string(image), "/")
	defer b.docker("rm", "-f", stranger)

	b.kill()
	b.start()
	eventually(t, 20*time.Second, "the engine is back", func() bool { _, err := b.e.ContainerStatus(t.Context(), kept.ID); return err == nil })
	eventually(t, 30*time.Second, "the rest of the crash is swept", func() bool {
		entries, _ := os.ReadDir(b.e.mounts.dir)
		return len(entries) == 2
	})
	if left := strings.Fields(b.docker("ps", "-aq", "--filter", "label="+labelHolder)); len(left) != 3 {
		t.Errorf("holders and the stranger: %v", left)
	}
	if below := mountsBelow(t, volume); len(below) != 1 {
		t.Errorf("the volume has %v", below)
	}
	status, err := b.e.StartContainer(t.Context(), kept.ID, spec)
	if err != nil {
		t.Fatal(err)
	}
	b.sh(t, status.ID, "! echo x > /rro/inside/x && cat /i/file")

	b.docker("rm", "-f", string(forgotten.ID))
	eventually(t, 30*time.Second, "what a removal behind our back leaves goes", func() bool {
		entries, _ := os.ReadDir(b.e.mounts.dir)
		return len(entries) == 0 && len(strings.Fields(b.docker("ps", "-aq", "--filter", "label="+labelHolder))) == 2
	})
	if err := b.e.RemoveContainer(t.Context(), forgotten.ID); err != nil {
		t.Errorf("removal of what Docker forgot: %v", err)
	}
}
