package native

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"crishim/engine"
	"crishim/engine/enginetest"
	"crishim/engine/native/helper"
)

// bench is an engine on folders of the test's own, with an image of busybox.
type bench struct {
	*Engine
	dir      string
	opts     Options
	registry string
	image    string
	// program opens a helper in the place of the embedded one, nil for that.
	program func(testing.TB) *os.File
	sink    *sink
	unwatch func()
}

func newBench(t testing.TB, change ...func(*Options)) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	if !helper.Built() {
		t.Skip("the helper is not built: run make")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("the test's image needs /bin/busybox (apt-get install busybox-static)")
	}
	dir, err := os.MkdirTemp("/var/tmp", "crishim-native-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	// A file system of its own: overlayfs takes it as its upper layer, whatever this machine's folders are on.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0711"); err != nil {
		t.Fatal(err)
	}
	b := &bench{dir: dir, opts: Options{
		Version: "test", RootDir: filepath.Join(dir, "root"), RunDir: filepath.Join(dir, "run"), CgroupDriver: testDriver,
	}}
	for _, c := range change {
		c(&b.opts)
	}
	t.Cleanup(func() { b.remove(t) })
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	b.registry = strings.TrimPrefix(server.URL, "http://")
	b.image = b.push(t, "busybox:1", busyboxLayer(t))
	b.open(t)
	if _, err := b.PullImage(t.Context(), &engine.PullSpec{Ref: b.image, NoProgress: time.Minute}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) open(t testing.TB) {
	t.Helper()
	var err error
	if b.Engine, err = New(b.opts); err != nil {
		t.Fatal(err)
	}
	if b.program != nil {
		_ = b.helper.Close()
		b.helper = b.program(t)
		b.filters.helper = b.helper
	}
}

// remove checks that nothing is left, and takes the folders away.
func (b *bench) remove(t testing.TB) {
	if t.Failed() && b.Engine != nil {
		b.Engine.ready.Store(true)
		for _, p := range b.allPods() {
			b.removePod(t, p.ID)
		}
	}
	b.die(t)
	for _, sub := range []string{
		"run/monitors", "run/bundles", "run/runc", "run/runc-oci", "run/ns", "run/roots/containers", "run/roots/pods", "run/records/pods", "run/records/containers",
		"root/pods", "root/records", "root/exits", "root/roots/containers",
	} {
		entries, _ := os.ReadDir(filepath.Join(b.dir, sub))
		for _, entry := range entries {
			t.Errorf("left behind: %s/%s", sub, entry.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	var points []string
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], b.dir) {
			points = append(points, fields[4])
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		_ = unix.Unmount(points[i], unix.MNT_DETACH)
	}
	if err := os.Remove(b.dir); err != nil {
		t.Error(err)
	}
	removeTestCgroup()
}

// push makes an image of layers.
func (b *bench) push(t testing.TB, tag string, layers ...[]byte) string {
	t.Helper()
	return b.pushWith(t, tag, v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}, layers...)
}

func (b *bench) pushWith(t testing.TB, tag string, config v1.Config, layers ...[]byte) string {
	t.Helper()
	image := empty.Image
	for _, layer := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if image, err = mutate.Append(image, mutate.Addendum{Layer: l}); err != nil {
			t.Fatal(err)
		}
	}
	image, err := mutate.Config(image, config)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(b.registry + "/" + tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func busyboxLayer(t testing.TB, more ...tar.Header) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"))
	for _, h := range more {
		var content []byte
		if h.Typeflag == tar.TypeReg {
			content = []byte("content of " + h.Name)
		}
		add(h, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return layer.Bytes()
}

// cgroupValue reads a limit of a container.
func cgroupValue(t *testing.T, path, controller, v1File string) int64 {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, path, v1File))
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	if _, err := fmt.Sscan(string(data), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNativeContract(t *testing.T) {
	b := newBench(t)
	pullable := b.push(t, "pullable:1", busyboxLayer(t)[:0:0])
	enginetest.Run(t, func(t *testing.T) enginetest.Fixture {
		return enginetest.Fixture{
			Engine: b.Engine, Image: b.image, Commands: enginetest.ShellCommands(), CgroupParent: testCgroup, RealProcesses: true,
			Pullable: pullable,
			Resources: func(t *testing.T, id engine.ContainerID) engine.Resources {
				st, err := b.ContainerStatus(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				return limitsInEffect(t, b.host.CgroupV2, st.CgroupPath)
			},
		}
	})
}
