package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/client"
	"github.com/vishvananda/netlink"

	"crishim/engine"
)

// dockerd is a Docker Engine of the test's own, on private paths and a bridge of its own.
type dockerd struct {
	t      *testing.T
	dir    string
	socket string
	cmd    *exec.Cmd
	// containerd is of its own, as on a Debian host: containers and their shims live on when dockerd is killed.
	containerd *exec.Cmd
}

const (
	testBridge  = "crishimdk0"
	testBusybox = "crishim.test/busybox:1"
	testCgroup  = "/crishim-docker-test"
)

// startDockerd starts one, or skips where none is installed.
func startDockerd(t *testing.T) *dockerd {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a Docker Engine needs root")
	}
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Skip("dockerd is not installed (apt-get install docker.io)")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("the test's image needs /bin/busybox (apt-get install busybox-static)")
	}
	dir, err := os.MkdirTemp("/var/tmp", "crishim-dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	d := &dockerd{t: t, dir: dir, socket: filepath.Join(dir, "d.sock")}
	t.Cleanup(d.remove)
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "ociwrap"), "crishim/e2e/ociwrap").CombinedOutput(); err != nil {
		t.Fatalf("build ociwrap: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A bridge made before: with --bridge none dockerd deletes the host's docker0.
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: testBridge}}
	_ = netlink.LinkDel(link)
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	addr, err := netlink.ParseAddr("172.31.251.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	d.startContainerd()
	d.start()
	return d
}

func (d *dockerd) startContainerd() {
	d.t.Helper()
	dir := filepath.Join(d.dir, "containerd")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), filepath.Join(d.dir, "c.sock"))
	if err := os.WriteFile(filepath.Join(d.dir, "containerd.toml"), []byte(config), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.containerd = exec.Command("containerd", "--config", filepath.Join(d.dir, "containerd.toml"), "--log-level", "error")
	d.containerd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.containerd.Start(); err != nil {
		d.t.Fatal(err)
	}
	eventually(d.t, 30*time.Second, "containerd listens", func() bool { _, err := os.Stat(filepath.Join(d.dir, "c.sock")); return err == nil })
}

func (d *dockerd) start() {
	d.t.Helper()
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	d.cmd = exec.Command("dockerd", "--config-file", filepath.Join(d.dir, "daemon.json"),
		"--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "exec"),
		"--pidfile", filepath.Join(d.dir, "pid"), "-H", "unix://"+d.socket, "--containerd", filepath.Join(d.dir, "c.sock"),
		"--bridge", testBridge, "--iptables=false", "--ip6tables=false", "--live-restore",
		"--add-runtime", "wrap="+filepath.Join(d.dir, "ociwrap"), "--default-runtime", "wrap",
		"--exec-opt", "native.cgroupdriver=cgroupfs")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.wait()
}

// wait returns once it answers.
func (d *dockerd) wait() {
	d.t.Helper()
	cli := d.client()
	defer func() { _ = cli.Close() }()
	eventually(d.t, 60*time.Second, "dockerd answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := cli.Info(ctx)
		return err == nil
	})
}

func (d *dockerd) client() *client.Client {
	cli, err := client.NewClientWithOpts(client.WithHost("unix://"+d.socket), client.WithAPIVersionNegotiation())
	if err != nil {
		d.t.Fatal(err)
	}
	return cli
}

func (d *dockerd) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
}

// kill is a crash: containers live on with containerd.
func (d *dockerd) kill() {
	d.t.Helper()
	d.signal(syscall.SIGKILL)
	_ = d.cmd.Wait()
}

// remove ends everything that was started and removes its folder.
func (d *dockerd) remove() {
	if d.cmd != nil && d.cmd.Process != nil {
		cli := d.client()
		if left := strings.Fields(d.docker("ps", "-aq", "--no-trunc")); d.t.Failed() {
			for _, id := range left {
				d.docker("rm", "-f", "-v", id)
			}
		}
		_ = cli.Close()
		_ = d.cmd.Process.Signal(syscall.SIGCONT)
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = d.cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			_ = d.cmd.Process.Kill()
			<-done
		}
	}
	if d.containerd != nil && d.containerd.Process != nil {
		_ = d.containerd.Process.Signal(syscall.SIGTERM)
		_ = d.containerd.Wait()
	}
	if d.t.Failed() {
		if data, err := os.ReadFile(filepath.Join(d.dir, "log")); err == nil {
			d.t.Logf("end of dockerd's log:\n%s", data[max(0, len(data)-3000):])
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], d.dir) {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
	// Only after a dockerd that did not come back: its containers and their shims are still there.
	all, _ := processes()
	for _, p := range all {
		cgroups, _ := os.ReadFile(procPath(p.pid, "cgroup"))
		if p.pid != os.Getpid() && (strings.Contains(commandLine(p.pid), d.dir) || bytes.Contains(cgroups, []byte(testCgroup+"/"))) {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	// The cgroups above the containers' are the kubelet's to remove, here ours.
	for _, pattern := range []string{cgroupRoot + testCgroup, cgroupRoot + "/*" + testCgroup} {
		left, _ := filepath.Glob(pattern)
		for _, dir := range left {
			inner, _ := filepath.Glob(dir + "/*/")
			for _, child := range inner {
				_ = os.Remove(child)
			}
			_ = os.Remove(dir)
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Errorf("left behind: %v", err)
	}
}

func commandLine(pid int) string {
	data, _ := os.ReadFile(procPath(pid, "cmdline"))
	return string(data)
}

// docker runs the command line client; it does what an operator would behind our back.
func (d *dockerd) docker(args ...string) string {
	out, err := exec.Command("docker", append([]string{"-H", "unix://" + d.socket}, args...)...).CombinedOutput()
	if err != nil {
		d.t.Logf("docker %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// testImageOf describes an image made from the host's busybox.
type testImageOf struct {
	ref, user string
	files     map[string]string
	links     map[string]string
	cmd       []string
}

// load makes the image known to the engine.
func (d *dockerd) load(image testImageOf) engine.ImageID {
	d.t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		d.t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	dirs := []string{"bin", "etc", "tmp", "proc", "sys", "dev", "data"}
	for _, dir := range dirs {
		put(d.t, w, &tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	put(d.t, w, &tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(busybox))}, busybox)
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "id", "true", "false", "seq", "ls", "kill", "env", "setsid", "mkdir", "dd", "ps", "stty"} {
		put(d.t, w, &tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	for name, content := range image.files {
		put(d.t, w, &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, []byte(content))
	}
	for name, target := range image.links {
		put(d.t, w, &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, nil)
	}
	if err := w.Close(); err != nil {
		d.t.Fatal(err)
	}
	sum := sha256.Sum256(layer.Bytes())
	config, _ := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
		"config": map[string]any{"Cmd": image.cmd, "User": image.user, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	id := sha256.Sum256(config)
	name := hex.EncodeToString(id[:])
	manifest, _ := json.Marshal([]map[string]any{{"Config": name + ".json", "RepoTags": []string{image.ref}, "Layers": []string{"layer.tar"}}})
	var archive bytes.Buffer
	a := tar.NewWriter(&archive)
	for _, file := range []struct {
		name string
		data []byte
	}{{"layer.tar", layer.Bytes()}, {name + ".json", config}, {"manifest.json", manifest}} {
		put(d.t, a, &tar.Header{Name: file.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(file.data))}, file.data)
	}
	if err := a.Close(); err != nil {
		d.t.Fatal(err)
	}
	cli := d.client()
	defer func() { _ = cli.Close() }()
	loaded, err := cli.ImageLoad(d.t.Context(), &archive)
	if err != nil {
		d.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, loaded.Body)
	_ = loaded.Body.Close()
	made, err := cli.ImageInspect(d.t.Context(), image.ref) // its id is the config's digest or the manifest's, by the image store
	if err != nil {
		d.t.Fatal(err)
	}
	return engine.ImageID(made.ID)
}

func put(t *testing.T, w *tar.Writer, header *tar.Header, data []byte) {
	t.Helper()
	if err := w.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
}

// eventually gives what takes that long at most ten times as long: the machine may have more to do.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(10 * limit)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", 10*limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// record is a Sink that remembers.
type record struct {
	mu         sync.Mutex
	health     []engine.Health
	resyncs    int
	images     int
	pods       map[engine.PodID]engine.PodStatus
	containers map[engine.ContainerID]engine.ContainerStatus
}

func (r *record) Health(h engine.Health) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.health = append(r.health, h)
}

func (r *record) Resync(s engine.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resyncs++
	r.pods, r.containers = map[engine.PodID]engine.PodStatus{}, map[engine.ContainerID]engine.ContainerStatus{}
	for _, p := range s.Pods {
		r.pods[p.ID] = p
	}
	for _, c := range s.Containers {
		r.containers[c.ID] = c
	}
}

func (r *record) PodChanged(p engine.PodStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods[p.ID] = p
}

func (r *record) ContainerChanged(c engine.ContainerStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[c.ID] = c
}

func (r *record) PodRemoved(id engine.PodID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pods, id)
}

func (r *record) ContainerRemoved(id engine.ContainerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, id)
}

func (r *record) ImagesChanged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images++
}

func (r *record) last() engine.Health {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.health) == 0 {
		return engine.Health{}
	}
	return r.health[len(r.health)-1]
}

func (r *record) resynced() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resyncs
}

func (r *record) container(id engine.ContainerID) engine.ContainerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.containers[id]
}

func (r *record) pod(id engine.PodID) (engine.PodStatus, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.pods[id]
	return p, ok
}

// watched makes an engine on the socket and watches it until the test ends.
func watched(t *testing.T, socket string, change func(*Options)) (*Engine, *record) {
	t.Helper()
	dir := t.TempDir()
	opts := Options{Socket: "unix://" + socket, RunDir: filepath.Join(dir, "run"), RootDir: filepath.Join(dir, "root")}
	if change != nil {
		change(&opts)
	}
	e, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	sink := &record{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Watch(ctx, sink) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return e, sink
}

func (r *record) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, "the engine is ready", func() bool { return r.last().Ready })
}
