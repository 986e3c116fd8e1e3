package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// Started in the place of cri-dockerd, with its flags, the daemon goes on with its pods, and leaves what cri-dockerd needs in
// order to take new ones back: its checkpoint with its checksum, the plugins' results in its cache, Docker's own log behind
// the link at the log path. Pods of before are left as they are.
func TestInThePlaceOfCRIDockerdPodsCanBeTakenBack(t *testing.T) {
	harness.AboutDocker(t)
	harness.Require(t)
	root, cache := filepath.Join(t.TempDir(), "cri-dockerd"), t.TempDir()
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{})
	image := n.Pull(t, harness.Busybox)
	tick := []string{"sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 1; done"}
	before := n.RunPod(t, "before").Run("c", image, tick)
	before.WaitLines(1)

	n.Shim.RunAs("cri-dockerd", "--container-runtime-endpoint=unix://"+n.Shim.Socket, "--network-plugin=cni", "--hairpin-mode=hairpin-veth",
		"--cri-dockerd-root-directory", root, "--cni-cache-dir", cache, "--config", n.Shim.ConfigFile)
	n.Shim.Restart()
	pod := n.RunPod(t, "json", hostPort(18986, 80))
	c := pod.Run("c", image, []string{"sh", "-c", "echo hello; exec sleep 1000"})
	host := n.RunPod(t, "json-host", onHostNetwork)

	for _, row := range []struct {
		pod  *harness.Pod
		data string
	}{
		{pod, `{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18986}]},"checksum":4087776329`},
		{host, `{"host_network":true},"checksum":12315789`},
	} {
		meta := row.pod.Config.Metadata
		want := fmt.Sprintf(`{"version":"v1","name":%q,"namespace":%q,"data":%s}`, meta.Name, meta.Namespace, row.data)
		if got, err := os.ReadFile(filepath.Join(root, "sandbox", row.pod.ID)); err != nil || string(got) != want {
			t.Errorf("checkpoint of %s: %s, %v; want %s", meta.Name, got, err, want)
		}
	}
	results, err := filepath.Glob(filepath.Join(cache, "results", "*-"+pod.ID+"-eth0"))
	if err != nil || len(results) != 1 {
		t.Errorf("cached results of the plugins: %v, %v", results, err)
	}
	linked := func() error {
		target, err := os.Readlink(c.Log)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(target)
		if err == nil && !strings.Contains(string(data), `"log":"hello\n"`) {
			err = fmt.Errorf("%q", data)
		}
		return err
	}
	harness.Eventually(t, 10*time.Second, "the line in Docker's log", linked)
	_, err = n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
	wantCode(t, "reopening a log that Docker rotates", err, codes.Unimplemented)

	// A log that was begun as a file goes on as one, also past the restart, and can be reopened.
	lines := len(before.WaitLines(3))
	if _, err := n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: before.ID}); err != nil {
		t.Errorf("reopening the log of a container of before, with %d lines: %v", lines, err)
	}
	n.Shim.KillAndRestart()
	if err := linked(); err != nil {
		t.Errorf("after a restart: %v", err)
	}

	c.Remove()
	pod.Remove()
	host.Remove()
	if _, err := os.Lstat(c.Log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link outlived its container: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(root, "sandbox", "*"))
	if more, _ := filepath.Glob(filepath.Join(cache, "results", "*")); err != nil || len(left)+len(more) > 0 {
		t.Errorf("left of removed pods: %v %v, %v", left, more, err)
	}
}
