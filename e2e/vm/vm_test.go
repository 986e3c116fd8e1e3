package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// share is what the host gave: hack/test-vm.sh.
const share = "/mnt"

const config = `
engine = "native"
checkpoint = true

[handlers.runc]
engine = "native"
oci_runtime = "/usr/sbin/runc"

[handlers.crun]
engine = "native"
oci_runtime = "/usr/bin/crun"
`

// host is the virtual machine with the service installed and running on the native engine.
type host struct {
	runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
	image  string
}

// node is the host of all tests: made by the first, never unmade, as the machine goes with them.
var node *host

func onNode(t *testing.T) *host {
	t.Helper()
	if os.Getenv("CRISHIM_VM") == "" {
		t.Skip("this test installs the package and its service on the machine it runs on: make test-vm")
	}
	if node != nil {
		return node
	}
	run(t, "dpkg", "-i", share+"/crishim.deb")
	for file, content := range map[string]string{
		"/etc/crishim/config.toml":                            config,
		"/etc/cni/net.d/10-crishim.conflist":                  read(t, share+"/10-crishim.conflist"),
		"/run/systemd/system/crishim.service.d/watchdog.conf": "[Service]\nWatchdogSec=20\n",
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", "crishim") // returns after READY=1
	conn, err := grpc.NewClient("unix:///run/crishim/crishim.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	h := &host{RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn)}
	h.image = h.pullBusybox(t)
	node = h
	return h
}

func (h *host) pullBusybox(t *testing.T) string {
	t.Helper()
	return h.pull(t, "busybox:1", busyboxLayer(t), nil)
}

func busyboxLayer(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}))
	}
	err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))}))
	_, werr := w.Write(busybox)
	for _, applet := range []string{"sh", "cat", "sleep", "tail", "echo", "touch", "ls", "dd", "rm", "tty", "stty", "test"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}))
	}
	if err = errors.Join(err, werr, w.Close()); err != nil {
		t.Fatal(err)
	}
	return content.Bytes()
}

// pull makes an image of one layer, which the service pulls.
func (h *host) pull(t *testing.T, called string, content []byte, annotations map[string]string) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.Append(empty.Image, mutate.Addendum{Layer: layer})
	if err != nil {
		t.Fatal(err)
	}
	if annotations != nil {
		image = mutate.Annotations(mutate.MediaType(image, types.OCIManifestSchema1), annotations).(v1.Image)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/" + called)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	if _, err := h.images.PullImage(within(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref.String()}}); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// pod is a running pod that the test's end removes.
type pod struct {
	*host
	id     string
	config *runtimeapi.PodSandboxConfig
}

func (h *host) pod(t *testing.T, parent string) *pod {
	t.Helper()
	return h.podOf(t, parent, "")
}

// podOf is pod with a runtime handler.
func (h *host) podOf(t *testing.T, parent, handler string) *pod {
	t.Helper()
	p := &pod{host: h, config: podConfig(t, parent)}
	made, err := h.RunPodSandbox(within(t), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	p.id = made.PodSandboxId
	p.removeAtEnd(t)
	return p
}

var podCount int

func podConfig(t *testing.T, parent string) *runtimeapi.PodSandboxConfig {
	t.Helper()
	podCount++
	uid := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")) + "-" + strconv.Itoa(podCount)
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: uid, Namespace: "default", Uid: uid}, Hostname: "vm", LogDirectory: t.TempDir(),
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent},
	}
}

func (p *pod) removeAtEnd(t *testing.T) {
	h := p.host
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, err := h.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		_, rerr := h.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		if err := errors.Join(err, rerr); err != nil {
			journal, _ := exec.Command("journalctl", "--no-pager", "-n", "40").Output()
			t.Errorf("remove the pod: %v\n%s", err, journal)
		}
	})
}

// start runs a container; the error is of its creation or start.
func (p *pod) start(t *testing.T, name string, linux *runtimeapi.LinuxContainerConfig, command ...string) (string, error) {
	t.Helper()
	return p.startAs(t, p.container(name, linux, command...))
}

func (p *pod) container(name string, linux *runtimeapi.LinuxContainerConfig, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: p.image}, Command: command, LogPath: name + ".log", Linux: linux,
	}
}

func (p *pod) startAs(t *testing.T, config *runtimeapi.ContainerConfig) (string, error) {
	t.Helper()
	made, err := p.CreateContainer(within(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: config})
	if err != nil {
		return "", err
	}
	_, err = p.StartContainer(within(t), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	return made.ContainerId, err
}

// sleeper is a running container.
func (p *pod) sleeper(t *testing.T, name string, linux *runtimeapi.LinuxContainerConfig) string {
	t.Helper()
	id, err := p.start(t, name, linux, "sleep", "100000")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (h *host) exec(t *testing.T, id, script string) (string, int32) {
	t.Helper()
	r, err := h.ExecSync(within(t), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(r.Stdout) + string(r.Stderr)), r.ExitCode
}

func (h *host) status(t *testing.T, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	r, err := h.ContainerStatus(within(t), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}

// scope is the folder of a container's cgroup, as the systemd driver names it.
func scope(t *testing.T, id string) string {
	t.Helper()
	var found string
	// Other units come and go meanwhile.
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, _ os.DirEntry, _ error) error {
		if filepath.Base(path) == "crishim-"+id+".scope" {
			found = path
			return filepath.SkipAll
		}
		return nil
	})
	if found == "" {
		t.Fatalf("container %s has no scope", id)
	}
	return found
}

// pids are those in a cgroup's folder.
func pids(t *testing.T, dir string) []int {
	t.Helper()
	var list []int
	for field := range strings.FieldsSeq(read(t, dir+"/cgroup.procs")) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, pid)
	}
	return list
}

func property(t *testing.T, unit, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "systemctl", "show", "--value", "-p", name, unit))
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(within(t), program, args...).CombinedOutput()
	if err != nil {
		journal, _ := exec.Command("journalctl", "--no-pager", "-n", "60", "-u", "crishim", "-u", "kubelet", "-u", "cri-docker").Output()
		t.Fatalf("%s %v: %v\n%s\n%s", program, args, err, out, journal)
	}
	return string(out)
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatal(fmt.Errorf("%s: %w", what, err))
}
