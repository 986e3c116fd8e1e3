package docker

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// preparing makes an empty hostMounts with one open key; nothing of it may be mounted at the end.
func preparing(t *testing.T) (*hostMounts, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	h := &hostMounts{dir: t.TempDir()}
	t.Cleanup(func() {
		for _, target := range mountsBelow(t, h.dir) {
			t.Errorf("left mounted: %s", target)
			_ = unix.Unmount(target, unix.MNT_DETACH)
		}
	})
	key := h.reserve()
	if err := h.open(key); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := h.unmount(key); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Lstat(h.path(key)); !os.IsNotExist(err) {
			t.Errorf("the place is still there: %v", err)
		}
	})
	return h, key
}

// layer makes the folder of an image's layer: a name that ends in "/" is a folder, "-" removes the file of a lower layer.
func layer(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		switch {
		case err != nil:
		case content == "-":
			err = unix.Mknod(path, unix.S_IFCHR, 0)
		case strings.HasPrefix(content, "->"):
			err = os.Symlink(content[2:], path)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (h *hostMounts) mountLayers(key string, n int, layers []string, sub string) error {
	tree, err := h.overlay(key, layers, sub)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	return h.attach(key, n, tree)
}

func TestLayersMakeAnImage(t *testing.T) {
	h, key := preparing(t)
	layers := []string{layer(t, map[string]string{"d/changed": "new", "d/removed": "-"}), layer(t, map[string]string{"d/changed": "old", "d/removed": "x", "d/kept": "y"})}
	if err := h.mountLayers(key, 0, layers, ""); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(h.path(key), "0")
	for name, want := range map[string]string{"d/changed": "new", "d/kept": "y"} {
		if got, err := os.ReadFile(filepath.Join(root, name)); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "d/removed")); !os.IsNotExist(err) {
		t.Errorf("a removed file: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err == nil {
		if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("write after a remount: %v", err)
		}
	}
	if err := h.mountLayers(key, 1, layers[1:], "d"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(h.path(key), "1", "removed")); string(got) != "x" {
		t.Errorf("an image of one layer: %q, %v", got, err)
	}
	// What is left is what was asked for.
	if below := mountsBelow(t, h.path(key)); len(below) != 2 {
		t.Errorf("mounted: %v", below)
	}
}

func TestImageMayHaveAsManyLayersAsDockerTakes(t *testing.T) {
	h, key := preparing(t)
	var layers []string
	for i := range 125 {
		layers = append(layers, layer(t, map[string]string{fmt.Sprintf("file%d", i): "x", "top": fmt.Sprint(i)}))
	}
	if err := h.mountLayers(key, 0, layers, ""); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(h.path(key), "0"))
	if err != nil || len(entries) != 126 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if top, _ := os.ReadFile(filepath.Join(h.path(key), "0", "top")); string(top) != "0" {
		t.Errorf("the topmost layer is %s", top)
	}
}

func TestFolderOfAnImageIsInTheImage(t *testing.T) {
	h, key := preparing(t)
	layers := []string{layer(t, map[string]string{
		"data/file": "inside", "etc/passwd": "inside", "root": "->/", "up": "->../../../../etc", "abs": "->/data", "host": "->/proc/self/root", "loop": "->loop",
	})}
	for i, test := range []struct{ sub, file string }{{"data", "file"}, {"abs", "file"}, {"root", "data/file"}, {"up", "passwd"}, {"root/root/up", "passwd"}} {
		if err := h.mountLayers(key, i, layers, test.sub); err != nil {
			t.Errorf("%s: %v", test.sub, err)
			continue
		}
		if got, err := os.ReadFile(filepath.Join(h.path(key), fmt.Sprint(i), test.file)); string(got) != "inside" {
			t.Errorf("%s: %q, %v", test.sub, got, err)
		}
	}
	for _, sub := range []string{"absent", "data/file", "host", "loop", "data/../../../absent"} {
		if err := h.mountLayers(key, 99, layers, sub); err == nil {
			t.Errorf("%s is mounted", sub)
		}
		if err := unix.Unmount(filepath.Join(h.path(key), "image"), unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLayersOutsideTheStoreAreRefused(t *testing.T) {
	const store = "/var/lib/docker/overlay2/"
	inspect := func(upper, lower string) *image.InspectResponse {
		in := &image.InspectResponse{}
		in.GraphDriver.Data = map[string]string{"UpperDir": upper, "LowerDir": lower}
		return in
	}
	layers, err := imageLayers(inspect(store+"a/diff", store+"b/diff:"+store+"c/diff"), "/var/lib/docker")
	if err != nil || strings.Join(layers, " ") != store+"a/diff "+store+"b/diff "+store+"c/diff" {
		t.Errorf("%v, %v", layers, err)
	}
	for _, bad := range [][2]string{{"", ""}, {"/etc", ""}, {store + "a/diff", "/"}, {store + "../x/diff", ""}, {store + "a/merged", ""}, {"diff", ""}} {
		if layers, err := imageLayers(inspect(bad[0], bad[1]), "/var/lib/docker"); err == nil {
			t.Errorf("%v: %v", bad, layers)
		}
	}
}

func TestHostPathIsResolvedOnce(t *testing.T) {
	h, key := preparing(t)
	before, after, link := layer(t, map[string]string{"file": "before"}), layer(t, map[string]string{"file": "after"}), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(before, link); err != nil {
		t.Fatal(err)
	}
	if err := h.bind(key, 0, &engine.Mount{HostPath: link, Readonly: true, RecursiveReadonly: true}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(link), os.Symlink(after, link)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(h.path(key), "0", "file")); string(got) != "before" {
		t.Errorf("%q, %v", got, err)
	}
	for name, path := range map[string]string{"a file": filepath.Join(before, "file"), "a device": "/dev/null"} {
		if err := h.bind(key, len(name), &engine.Mount{HostPath: path, Options: []string{"nosuid"}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.bind(key, 50, &engine.Mount{HostPath: filepath.Join(before, "absent")}); err == nil {
		t.Error("an absent path is mounted")
	}
}

func TestUnmountTouchesNothingElse(t *testing.T) {
	h, key := preparing(t)
	volume := sharedVolume(t)
	if err := os.WriteFile(filepath.Join(volume, "inside", "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for i, propagation := range []engine.Propagation{engine.PropagationBidirectional, engine.PropagationHostToContainer, engine.PropagationPrivate} {
		if err := h.bind(key, i, &engine.Mount{HostPath: volume, Propagation: propagation}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.unmount(key); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(volume, "inside", "file")); err != nil || len(mountsBelow(t, volume)) != 1 {
		t.Errorf("the volume: %v, %v", mountsBelow(t, volume), err)
	}
	// A folder with something in it is not ours to remove, and no other name is.
	full := rand.Text()
	kept := filepath.Join(h.path(full), "file")
	if err := errors.Join(os.Mkdir(h.path(full), 0o700), os.WriteFile(kept, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := h.unmount(full); err == nil {
		t.Error("a folder that is no place of mounts is removed")
	}
	for _, name := range []string{"", ".", "..", "../" + full, full + "/", strings.ToLower(full), full[1:]} {
		if err := h.unmount(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

func TestSweepKeepsWhatIsUsed(t *testing.T) {
	h, making := preparing(t)
	used, lost := rand.Text(), rand.Text()
	for _, key := range []string{used, lost} {
		if err := h.open(key); err != nil {
			t.Fatal(err)
		}
	}
	h.known(map[engine.ContainerID]preparedMounts{testContainer: {key: used}})
	if err := h.sweep(); err != nil {
		t.Fatal(err)
	}
	if below := mountsBelow(t, h.dir); len(below) != 2 {
		t.Errorf("mounted: %v, want %s and %s", below, making, used)
	}
	// A reconnect while a container is made: the list may have missed it.
	h.belong(testPod, preparedMounts{key: making})
	h.known(map[engine.ContainerID]preparedMounts{})
	if h.keyOf(testPod) != making || h.keyOf(testContainer) != "" {
		t.Errorf("known: %v", h.keys)
	}
	h.unreserve(making)
	h.known(map[engine.ContainerID]preparedMounts{})
	if err := h.sweep(); err != nil {
		t.Fatal(err)
	}
	if below := mountsBelow(t, h.dir); len(below) > 0 {
		t.Errorf("mounted: %v", below)
	}
}

// TestListenElsewhere is the process of TestEngineInAnotherMountNamespace.
func TestListenElsewhere(t *testing.T) {
	socket := os.Getenv("CRISHIM_TEST_LISTEN")
	if socket == "" {
		t.Skip("started by TestEngineInAnotherMountNamespace")
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn // open until the process is killed
	for {
		conn, err := listener.Accept()
		if err != nil {
			t.Fatalf("after %d connections: %v", len(held), err)
		}
		held = append(held, conn)
	}
}

func TestEngineInAnotherMountNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	dir := t.TempDir()
	here := filepath.Join(dir, "here.sock")
	listener, err := net.Listen("unix", here)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if err := canPrepareMounts(t.Context(), here, dir); err != nil {
		t.Errorf("in our namespace: %v", err)
	}
	there := filepath.Join(dir, "there.sock")
	other := exec.Command(os.Args[0], "-test.run=^TestListenElsewhere$")
	other.Env = append(os.Environ(), "CRISHIM_TEST_LISTEN="+there)
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	eventually(t, 10*time.Second, "it listens", func() bool { _, err := os.Stat(there); return err == nil })
	if err := canPrepareMounts(t.Context(), there, dir); err == nil || !strings.Contains(err.Error(), "another mount namespace") {
		t.Errorf("in another one: %v", err)
	}
}

func TestKeysOfContainersThatWereThereAreKeptWhenOthersAreMade(t *testing.T) {
	var h hostMounts
	h.known(map[engine.ContainerID]preparedMounts{"old": {key: "OLD"}}) // as a daemon that starts again finds it
	key := h.reserve()
	if h.keyOf("old") != "OLD" || h.unused("OLD") || h.unused(key) {
		t.Errorf("the key of the old container is %q, unused: %v", h.keyOf("old"), h.unused("OLD"))
	}
	h.belong("new", preparedMounts{key: key})
	h.unreserve(key)
	if h.keyOf("old") != "OLD" || h.keyOf("new") != key || h.unused(key) {
		t.Errorf("keys are %v", h.keys)
	}
	h.forget("old")
	if !h.unused("OLD") || h.unused(key) {
		t.Errorf("keys are %v", h.keys)
	}
}

// A container that was made and never started, as its pod was deleted in between, keeps no volume busy until it is collected.
func TestAPodThatIsStoppedKeepsNoVolumeBusy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	f := newFake(t)
	f.fail["/containers/"+testPod+"/wait"] = func(w http.ResponseWriter) { _ = json.NewEncoder(w).Encode(container.WaitResponse{}) }
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	h := &e.mounts
	t.Cleanup(func() {
		for _, target := range mountsBelow(t, h.dir) {
			_ = unix.Unmount(target, unix.MNT_DETACH)
		}
	})
	for id, pod := range map[engine.ContainerID]engine.PodID{testContainer: testPod, otherContainer: otherContainer} {
		key := h.reserve()
		if err := h.open(key); err != nil {
			t.Fatal(err)
		}
		h.belong(id, preparedMounts{key, pod})
	}
	if err := e.StopPod(t.Context(), testPod); err != nil {
		t.Fatal(err)
	}
	if below := mountsBelow(t, h.dir); len(below) != 1 || below[0] != h.path(h.keyOf(otherContainer)) {
		t.Errorf("mounted are %v, want those of another pod only", below)
	}
}

// What is prepared may be the last mount of a volume, whose server is asked when it is unmounted and may answer no more: that holds up
// nobody else's creation or end.
func TestAnUnmountThatHangsHoldsUpNobodyElse(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	answers := sync.OnceFunc(func() { _ = unix.Close(server) }) // whatever hangs fails
	h := &hostMounts{dir: t.TempDir()}
	key := rand.Text()
	if err := os.Mkdir(h.path(key), 0o700); err != nil {
		t.Fatal(err)
	}
	// A file system whose server answers that it is there, and then no more.
	if err := unix.Mount("hung", h.path(key), "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)); err != nil {
		answers()
		t.Skip(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		answers()
		all.Wait()
		_ = unix.Unmount(h.path(key), unix.MNT_DETACH)
	})
	first := make(chan error, 1)
	all.Go(func() { first <- h.unmount(key) })
	request := make([]byte, 64<<10)
	if _, err := unix.Read(server, request); err != nil { // FUSE_INIT
		t.Fatal(err)
	}
	answer := make([]byte, 16+64)
	binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
	copy(answer[8:], request[8:16])               // which request it answers
	binary.NativeEndian.PutUint32(answer[16:], 7) // the protocol's version
	binary.NativeEndian.PutUint32(answer[20:], 31)
	binary.NativeEndian.PutUint32(answer[36:], 4096) // the largest write
	if _, err := unix.Write(server, answer); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(server, request); err != nil { // what the unmount asks for
		t.Fatal(err)
	}
	done := make(chan struct{})
	all.Go(func() {
		h.unreserve(h.reserve())
		_ = h.keyOf(testContainer)
		if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the unmount that hangs: %v", err)
		}
		// Each look at its container comes here: a hundred would take minutes if they waited.
		for range 100 {
			if err := h.unmount(key); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("an unmount after it: %v", err)
			}
		}
		// As the removal of any pod pays for what a creation could not take back.
		if err := h.sweep(); err != nil {
			t.Errorf("what hangs is the sweep's fault: %v", err)
		}
		close(done)
	})
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it does")
	}
	answers()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(h.path(key)); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if entries, err := os.ReadDir(h.dir); err != nil || len(entries) > 0 {
		t.Errorf("left when it hangs no more: %v, %v", entries, err)
	}
}
